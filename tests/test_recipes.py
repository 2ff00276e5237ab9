"""Every recipe that is shipped parses, builds on the meta device and plans, without weights, data or a network."""

import json

import pytest

from tests.integration.conftest import ROOT
from training import plan
from training.config import load_config

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
PROMISED = {
    "minigpt_quickstart", "minigpt_small", "minigpt_medium", "minigpt_124m_pretrain", "qwen2_tiny_pretrain",
    "qwen2.5_0.5b_pretrain", "qwen2.5_0.5b_sft_full", "qwen2.5_0.5b_sft_lora", "qwen2.5_7b_sft_qlora",
    "fast", "max_throughput", "low_memory", "debug",
}  # fmt: skip
# Parameters as published (Qwen2.5 model cards: 0.49 B and 7.61 B), or worked out in the recipe's own comment.
SIZES = {
    "minigpt_quickstart": (10e6, 12e6), "minigpt_medium": (10e6, 11e6), "minigpt_124m_pretrain": (115e6, 135e6),
    "qwen2.5_0.5b_pretrain": (494_032_768, 494_032_768), "qwen2.5_0.5b_sft_full": (494_032_768, 494_032_768),
    "qwen2.5_7b_sft_qlora": (7_615_616_512, 7_700_000_000),
}  # fmt: skip


def test_the_promised_recipes_are_there():
    assert set(RECIPES) >= PROMISED


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_parses_builds_and_plans(name, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load_config(["--config", name])
    assert loaded.recipe == name
    assert plan.main(["--config", name, "--world_size", "2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    least, most = SIZES.get(name, (1e5, 1e9))
    assert least <= planned["parameters"] <= most
    assert 0 < planned["trained_parameters"] <= planned["parameters"]
    assert planned["device_peak_bytes"] > 2 * planned["trained_parameters"]
    assert planned["step_flops"] > 2 * planned["trained_parameters"] * planned["tokens_per_step"] / 2


@pytest.mark.parametrize("profile", ["fast", "max_throughput", "low_memory", "debug"])
def test_a_profile_keeps_the_recipe_s_model(profile, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: [minigpt_medium, {profile}]\n")
    combined, alone = load_config(["--config", str(path)]).config, load_config(["--config", "minigpt_medium"]).config
    assert combined.model == alone.model
    assert combined != alone
