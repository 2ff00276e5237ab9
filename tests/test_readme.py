"""What README shows can be pasted."""

import re
import shlex

import pytest

from tests.integration.conftest import ROOT
from training.config import load_config

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_whole_recipe_loads(tmp_path):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my.yaml").write_text(recipe, encoding="utf-8")
    config = load_config(["--config", str(tmp_path / "my.yaml")]).config
    assert config.tokenizer.path == config.model.path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert (config.training["report_to"], config.training["project"]) == (["wandb", "tensorboard"], "my-project")
    assert config.monitor.wandb_mode == "offline"


COMMANDS = re.findall(r"`?(?:python|deepspeed --num_gpus 8|torchrun \S+) training/train.py ([^`…\n]*)", README)


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_parse(arguments):
    argv = shlex.split(arguments)
    if "my.yaml" not in argv:
        load_config(argv)


def test_commands_were_found():
    assert len(COMMANDS) >= 5


def test_flags_of_wandb_are_keys():
    (line,) = re.findall(r"\*\*W&B\*\*: `(.*?)`", README)
    config = load_config(shlex.split(line)).config
    assert (config.training["project"], config.monitor.wandb_entity, config.monitor.wandb_group) == ("P", "E", "G")


def test_linked_pages_are_there():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 5 and all((ROOT / link).exists() for link in links)
