import pytest

from training.kernels.cpu import build


@pytest.fixture(scope="session")
def kernels() -> None:
    if obstacle := build.load():
        pytest.skip(obstacle)
