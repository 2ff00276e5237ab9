"""Whether the trackers of `training.report_to` can start, checked before torch is imported or data is prepared.

The check reads the API key of W&B from where W&B reads it (environment, netrc, its settings files). It needs neither
the network nor the second that `import wandb` takes. A key that the server refuses is found when the run is opened,
which restores an older run (`training/run/session.py`).
"""

import configparser
import importlib.util
import netrc
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_prep.errors import UserError

WITHOUT_SERVER = ("offline", "dryrun", "disabled")
WANDB_MODES = ("online", "run", "shared", *WITHOUT_SERVER)
WANDB_SERVER = "https://api.wandb.ai"
KEY_LENGTH = 40  # and more; before it may stand a name and a dash
_FORBIDDEN = set("/\\#?%:")  # in the name of a W&B project
_LONGEST_PROJECT = 128


def find_trackers(report_to: Any) -> list[str]:
    """`training.report_to` as a list: a name, several, or none."""
    asked = report_to or "none"
    return [name for name in ([asked] if isinstance(asked, str) else asked) if name != "none"]


def find_project(training: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> str:
    """The W&B project: `training.project`, else WANDB_PROJECT, else redline."""
    return str(training.get("project") or environ.get("WANDB_PROJECT") or "redline")


def find_wandb_mode(environ: Mapping[str, str] = os.environ) -> str:
    """WANDB_MODE, else what `wandb offline` wrote, else online; WANDB_DISABLED, as transformers has it, is disabled."""
    if environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "disabled"
    return (environ.get("WANDB_MODE") or _read_settings(environ).get("mode") or "online").lower()


def check_trackers(training: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
    """Raises UserError when a tracker is not installed, or W&B has no login, no known mode or no valid project."""
    for tracker in find_trackers(training.get("report_to")):
        if importlib.util.find_spec(tracker) is None:
            raise UserError(
                f"training.report_to: {tracker} is not installed: pip install {tracker}, or remove it from the list"
            )
        for problem in _wandb_problems(training, environ) if tracker == "wandb" else ():
            raise UserError(f"training.report_to: wandb: {problem}")


def _wandb_problems(training: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    mode = find_wandb_mode(environ)
    if mode not in WANDB_MODES:
        yield f"WANDB_MODE = {mode!r}: must be one of {', '.join(WANDB_MODES)}"
    project = find_project(training, environ)
    if found := _FORBIDDEN & set(project):
        forbidden = " ".join(sorted(found))
        yield f"the project {project!r} contains {forbidden}, which W&B does not allow: change training.project"
    if len(project) > _LONGEST_PROJECT:
        yield f"the name of the project has {len(project)} characters, and W&B allows {_LONGEST_PROJECT}: shorten it"
    if mode in WITHOUT_SERVER or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return
    server = environ.get("WANDB_BASE_URL") or _read_settings(environ).get("base_url") or WANDB_SERVER
    key = environ.get("WANDB_API_KEY") or _read_settings(environ).get("api_key") or _read_netrc(server, environ)
    advice = "log in (wandb login, or WANDB_API_KEY), or set WANDB_MODE=offline"
    if not key:
        yield f"no API key for {server}: {advice}"
    elif key.count(".") != 2 and len(key.split("-", 1)[-1]) < KEY_LENGTH:
        yield f"the API key has {len(key)} characters, and W&B's have {KEY_LENGTH} or more: {advice}"


def _read_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """W&B's settings files, the working directory's over the user's."""
    home = Path(environ.get("HOME") or Path.home())
    user = Path(environ.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    here = Path(environ.get("WANDB_DIR") or ".") / "wandb"
    found: dict[str, str] = {}
    for file in (user / "settings", here / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # W&B passes over it as well
        if parser.has_section("default"):
            found |= dict(parser.items("default"))
    return found


def _read_netrc(server: str, environ: Mapping[str, str]) -> str | None:
    """The key that `wandb login` wrote for this server."""
    home = Path(environ.get("HOME") or Path.home())
    given = environ.get("NETRC")
    for path in [Path(given).expanduser()] if given else [home / ".netrc", home / "_netrc"]:
        try:
            login = netrc.netrc(path).authenticators(urlsplit(server).netloc)
        except (netrc.NetrcParseError, OSError):
            continue
        if login and login[2]:
            return login[2]
    return None
