"""Where compiled code is kept."""

import pytest

from data_prep.errors import UserError
from training.compiling.cache import set_cache_environment


def test_the_default_is_in_the_user_s_cache(tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    directory = set_cache_environment(None, environ)
    assert directory == tmp_path / "redline" / "compiled" and directory.is_dir()
    assert environ["TORCHINDUCTOR_CACHE_DIR"] == str(directory)
    assert environ["TRITON_CACHE_DIR"] == str(directory / "triton")


def test_a_recipe_names_another(tmp_path):
    environ: dict[str, str] = {}
    assert set_cache_environment(str(tmp_path / "mine"), environ) == tmp_path / "mine"


def test_what_the_user_has_set_stays(tmp_path):
    environ = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "shell"), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    before = dict(environ)
    assert set_cache_environment(str(tmp_path / "recipe"), environ) == tmp_path / "shell"
    assert environ == before and not (tmp_path / "recipe").exists()


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"perf.compile_cache_dir: .*file/below cannot be created \(Not a directory\)"):
        set_cache_environment(str(tmp_path / "file" / "below"), {})
