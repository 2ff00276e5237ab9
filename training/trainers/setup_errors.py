"""What transformers, accelerate and DeepSpeed raise while they build an optimizer or an engine, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from data_prep.errors import UserError

# of torch.utils.cpp_extension and of DeepSpeed, about an operator that is compiled when it is needed
_EXTENSIONS = ("Error building extension", "Unable to JIT load", "Ninja is required", "CUDA_HOME")


@contextmanager
def explain_setup_errors(what: str = "training: optimizer, schedule or DeepSpeed cannot be set up") -> Iterator[None]:
    """Settings that do not go together, or a package that is not there, as UserError. Out of memory stays itself."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not _is_of_settings(error):
            raise
        raise UserError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error


def _is_of_settings(error: Exception) -> bool:
    if isinstance(error, ImportError | NotImplementedError | ValueError | TypeError | AssertionError):
        return True
    return type(error).__module__.startswith("deepspeed") or any(text in str(error) for text in _EXTENSIONS)
