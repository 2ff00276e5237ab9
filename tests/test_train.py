"""Exit codes of the entrypoint, for what ends it before anything trains."""

import pytest

from data_prep.errors import UserError
from training import train


@pytest.mark.parametrize(
    ("ending", "code", "message"),
    [(KeyboardInterrupt(), 130, "--resume auto"), (UserError("data.sources: no such file"), 2, "no such file")],
)
def test_what_ends_it_is_one_line(monkeypatch, capsys, ending, code, message):
    def end(*_):
        raise ending

    monkeypatch.setattr(train, "load_config", end)
    assert train.main([]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
