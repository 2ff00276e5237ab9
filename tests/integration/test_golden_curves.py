"""The first losses of each shipped recipe, made small, stay what they were: `golden_curves.json`.

A change of the numbers is seen here whatever caused it: data order, initialisation, kernels, optimizer, schedule. To
accept a new curve, run this file's test with REDLINE_WRITE_GOLDEN=1 and commit the JSON with the reason.
"""

import json
import os
import random
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM, set_seed

from data_prep.prepare import prepare
from data_prep.recipe import load_data_recipe
from tests.integration.conftest import ROOT
from training.metrics import names

GOLDEN = Path(__file__).with_name("golden_curves.json")
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
STEPS = 8
VOCAB_SIZE = 512
# CPUs add bfloat16 products in different orders: after a few steps losses differ in the fourth digit after the point.
TOLERANCE = 4e-3
SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def write_words(path: Path, records: int, fields: list[str]) -> None:
    """Records of made-up words, some of them frequent: the same ones for every Python and every day."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 6))) for _ in range(300)]
    shares = [1 / rank for rank in range(1, len(words) + 1)]

    def write_text() -> str:
        return " ".join(draw.choices(words, shares, k=draw.randint(20, 160)))

    with path.open("w") as file:
        for _ in range(records):
            texts = [write_text() for _ in fields]
            is_chat = fields != ["text"]
            record = {"messages": [{"role": r, "content": t} for r, t in zip(fields, texts, strict=True)]}
            file.write(json.dumps(record if is_chat else {"text": texts[0]}) + "\n")


@pytest.fixture(scope="module")
def small_recipes(recipe, tmp_path_factory) -> dict[str, Path]:
    """Each recipe with `debug` on top, a tiny model in place of its own, and made-up data."""
    folder = tmp_path_factory.mktemp("golden")
    write_words(folder / "texts.jsonl", 200, ["text"])
    write_words(folder / "chats.jsonl", 120, ["user", "assistant"])
    data = {"store_dir": str(folder / "stores"), "num_proc": 1}
    training = {
        "max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False, "dataloader_prefetch_factor": None, "torch_compile": False,
    }  # fmt: skip
    shared = {"training": training, "monitor": {"plot_every": 0, "sample_prompt": None}}
    texts = {"sources": [{"path": str(folder / "texts.jsonl")}], **data}
    scratch = {"tokenizer": {"path": None, "vocab_size": VOCAB_SIZE}, "data": texts}
    written = {}
    for name in RECIPES:
        own = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        is_profile = "model" not in own and "extends" not in own
        extends = ["minigpt_small", name, "debug"] if is_profile else [name, "debug"]
        if "sft" in name:
            chats = {"sources": [{"path": str(folder / "chats.jsonl")}], **data}
            content = {"model": {"path": str(folder / "base")}, "data": chats}
        else:
            content = {"model": {"config": SHAPE}, **scratch}
            if "vocab_size" in (own.get("model") or {}).get("config", {}):
                content["model"] = {"config": {**SHAPE, "vocab_size": VOCAB_SIZE}}
        written[name] = folder / f"little_{name}.yaml"
        written[name].write_text(yaml.safe_dump({"extends": list(dict.fromkeys(extends)), **shared, **content}))
    save_base(folder / "base", written["minigpt_small"])
    return written


def save_base(path: Path, recipe: Path) -> None:
    """A Qwen2 with random weights and the tokenizer that `recipe` trains."""
    AutoTokenizer.from_pretrained(prepare(*load_data_recipe(["--config", str(recipe)])).tokenizer_dir).save_pretrained(
        path
    )
    set_seed(0)
    special = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 0, "tie_word_embeddings": True}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB_SIZE, **SHAPE, **special)).save_pretrained(path)


@pytest.mark.launch
@pytest.mark.timeout(600)
def test_first_losses_of_each_recipe_are_what_they_were(launch_all, small_recipes, tmp_path):
    runs = {name: ["--config", str(path)] for name, path in small_recipes.items()}
    finished = launch_all("python", tmp_path, runs, config=small_recipes["debug"])
    curves = {name: [round(loss, 4) for loss in run.values(names.TRAIN_LOSS)] for name, run in finished.items()}
    assert all(len(curve) == STEPS for curve in curves.values()), curves
    if os.environ.get("REDLINE_WRITE_GOLDEN"):
        GOLDEN.write_text("{\n" + ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in curves.items()) + "\n}\n")
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(RECIPES)
    different = {
        name: (curve, golden[name]) for name, curve in curves.items() if furthest(curve, golden[name]) > TOLERANCE
    }
    assert not different, f"losses now and in {GOLDEN.name}: {different}"


def furthest(curve: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(curve, other, strict=True))
