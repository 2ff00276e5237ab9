"""What a tracker needs is found where it looks itself, without importing it."""

import pytest

from data_prep.errors import UserError
from training.config.trackers import check_trackers, find_project, find_wandb_mode

KEY = "k" * 40


@pytest.fixture
def environ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {"HOME": str(tmp_path)}


def check(environ, **training):
    check_trackers({"report_to": "wandb", **training}, environ)


def test_no_key_is_one_line_with_the_way_out(environ):
    with pytest.raises(UserError) as error:
        check(environ)
    assert str(error.value) == (
        "training.report_to: wandb: no API key for https://api.wandb.ai: log in (wandb login, or WANDB_API_KEY), "
        "or set WANDB_MODE=offline"
    )


@pytest.mark.parametrize("mode", ["offline", "dryrun", "disabled", "OFFLINE"])
def test_without_a_server_no_key_is_needed(environ, mode):
    check({**environ, "WANDB_MODE": mode})
    with pytest.raises(UserError, match="no API key"):
        check({**environ, "WANDB_MODE": "online"})


def test_a_key_is_found_wherever_login_may_have_put_it(environ, tmp_path):
    check({**environ, "WANDB_API_KEY": KEY})
    check({**environ, "WANDB_API_KEY": f"local-{KEY}"})
    check({**environ, "WANDB_IDENTITY_TOKEN_FILE": "token"})
    (tmp_path / "logins").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    check({**environ, "NETRC": str(tmp_path / "logins")})
    with pytest.raises(UserError, match="no API key for https://wandb.example.org"):
        check({**environ, "NETRC": str(tmp_path / "logins"), "WANDB_BASE_URL": "https://wandb.example.org"})
    (tmp_path / "logins").rename(tmp_path / ".netrc")
    check(environ)


def test_settings_files_count(environ, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert find_wandb_mode(environ) == "offline"
    check(environ)
    assert find_wandb_mode({**environ, "WANDB_MODE": "online"}) == "online"
    assert find_wandb_mode({**environ, "WANDB_DISABLED": "true"}) == "disabled"


@pytest.mark.parametrize(
    ("more", "training", "message"),
    [
        ({"WANDB_MODE": "ofline"}, {}, "WANDB_MODE = 'ofline': must be one of online"),
        ({"WANDB_API_KEY": "short"}, {}, "the API key has 5 characters"),
        ({"WANDB_MODE": "offline", "WANDB_PROJECT": "a/b"}, {}, "the project 'a/b' contains /"),
        ({"WANDB_MODE": "offline"}, {"project": "p" * 129}, "has 129 characters"),
    ],
)
def test_what_w_and_b_would_refuse_late(environ, more, training, message):
    with pytest.raises(UserError) as error:
        check({**environ, **more}, **training)
    assert message in str(error.value)


def test_the_recipe_s_project_comes_first():
    assert find_project({"project": "mine"}, {"WANDB_PROJECT": "theirs"}) == "mine"
    assert find_project({}, {"WANDB_PROJECT": "theirs"}) == "theirs"
    assert find_project({}, {}) == "redline"


def test_a_tracker_that_is_not_installed_is_named(environ, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="tensorboard is not installed: pip install tensorboard"):
        check_trackers({"report_to": ["tensorboard"]}, environ)
    check_trackers({"report_to": "none"}, environ)
