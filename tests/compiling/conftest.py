"""One cache of compiled code for all tests of this package."""

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.utils import counters

from training.compiling.cache import set_cache_environment


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The cache directory of this session, and DDP's switch put back afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
            patch.setenv(name, "")
            patch.delenv(name)
        environ: dict[str, str] = {}
        set_cache_environment(str(tmp_path_factory.mktemp("compiled")), environ)
        for name, value in environ.items():
            patch.setenv(name, value)
        optimizes_ddp = torch._dynamo.config.optimize_ddp
        yield
        torch._dynamo.config.optimize_ddp = optimizes_ddp


@pytest.fixture
def fresh_compiler(compile_cache: None) -> None:
    """Dynamo as in a new process."""
    torch._dynamo.reset()
    counters.clear()
