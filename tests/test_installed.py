"""Redline as a wheel in an environment of its own, and what its commands say where a package is missing."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT
from training.config.loading import sections

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = sorted(PROJECT["scripts"])
SOURCES = ("data_prep", "training", "configs", "ds_configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """`bin` of a new environment with the wheel in it; packages of others come from the one that runs the tests."""
    root = tmp_path_factory.mktemp("installed")
    clone = root / "clone"
    clone.mkdir()
    for name in SOURCES:  # setuptools writes beside its sources
        subprocess.run(["cp", "-r", str(ROOT / name), str(clone)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(clone)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = root.glob("redline-*.whl")
    venv.create(root / "env", with_pip=False)
    python = root / "env" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (root / "env" / "lib").glob("python3*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python.parent


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    argv = [*map(str, command)]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_its_help_from_another_folder(command, installed, tmp_path):
    done = run([installed / command, "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower() and len(done.stdout) > 80


def test_recipes_come_with_it_and_those_of_the_user_go_first(installed, tmp_path):
    code = (
        "import training; from training.config import load_config\n"
        "loaded = load_config(['--config', 'minigpt_quickstart', '--deepspeed', 'zero2_bf16'], 2)\n"
        "print(training.__file__, loaded.config.argument('max_steps'), loaded.deepspeed['zero_optimization']['stage'])"
    )
    done = run([installed / "python", "-c", code], tmp_path)
    file, *values = done.stdout.split()
    assert (values, done.stderr) == (["120", "2"], "") and "site-packages" in file
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "minigpt_quickstart.yaml").write_text("training: {max_steps: 7}\n")
    assert run([installed / "python", "-c", code], tmp_path).stdout.split()[1] == "7"
    unknown = run([installed / "redline-plan", "--config", "minigpt_quickstar"], tmp_path)
    assert unknown.returncode == 2 and "minigpt_quickstart" in unknown.stderr


def test_the_wheel_has_types_a_licence_and_a_version(installed, tmp_path):
    (wheel,) = installed.parents[1].glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"training/py.typed", "data_prep/py.typed", "training/reporting/report.css"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith("tests")]
    code = "from training.environment import find_redline_version; print(find_redline_version())"
    assert run([installed / "python", "-c", code], tmp_path).stdout.strip() == PROJECT["version"]


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("training.train", "transformers"), ("training.train", "pydantic"), ("training.train", "torch"),
        ("training.train", "psutil"),
        ("training.plan", "transformers"), ("training.generate", "transformers"), ("training.export", "peft"),
        ("training.report", "numpy"), ("training.monitor", "rich"), ("training.compare", "numpy"),
        ("data_prep.prepare", "pyarrow"), ("data_prep.inspect", "rich"), ("training.benchmark", "pydantic"),
    ],
)  # fmt: skip
def test_a_missing_package_is_one_line(module, package, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(package=package))
    arguments = {"training.train": ["--max_steps", "1"], "training.benchmark": ["advise", "--config", "debug"]}
    needs = {"training.generate": ["--model", "x", "--prompt", "y"], "training.export": ["x", "y", "--format", "llama"]}
    argv = arguments.get(module) or needs.get(module) or (["x"] if module.endswith(("report", "monitor")) else [])
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", module, *argv]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert re.match(rf"error: {package} is not installed: pip install {package}", line)


def test_help_describes_every_key():
    done = run([sys.executable, ROOT / "training" / "train.py", "--help"], ROOT)
    blocks = re.split(r"\n(?=\w+:\n)", done.stdout)
    found = {block.partition(":")[0]: block for block in blocks}
    for name, model in sections().items():
        for key, info in model.model_fields.items():
            (entry,) = re.findall(rf"\n  {key}\n((?:      .*\n?)+)", found[name])
            text = " ".join(entry.split())
            assert info.description and " ".join(info.description.split()) in text, (name, key)
            assert "(default" in text or text.startswith(("a list", "a mapping")), (name, key)
            assert "Undefined" not in text and max(map(len, entry.splitlines())) <= 110
