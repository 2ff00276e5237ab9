"""What settings cause is one line; what is a fault, or memory, stays what it is."""

import pytest

from data_prep.errors import UserError
from training.trainers.setup_errors import explain_setup_errors


@pytest.mark.parametrize(
    "error",
    [
        ImportError("install it\nby pip"),
        ValueError("wrong"),
        NotImplementedError("not on a CPU"),
        RuntimeError("Error building extension 'cpu_adam'"),
        type("ZeRORuntimeException", (Exception,), {"__module__": "deepspeed.runtime.zero.utils"})("untested"),
    ],
)
def test_an_error_of_settings_is_one_line(error):
    with pytest.raises(UserError) as found, explain_setup_errors("training"):
        raise error
    assert str(found.value) == f"training: {' '.join(str(error).split())}"


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("x"), UserError("already one line")])
def test_others_pass(error):
    with pytest.raises(type(error)) as found, explain_setup_errors():
        raise error
    assert found.value is error
