"""Which variants a configuration has, by hand for a few."""

import json
from dataclasses import replace

import pytest

from training import allocator
from training.benchmark.advise.levers import LEVERS, Baseline, Variant, combine, list_variants
from training.benchmark.advise.running import change_json
from training.config import load_config


def describe(arguments, device="cpu", world_size=1, num_threads=1):
    return Baseline(load_config(arguments, world_size), world_size, device, num_threads)


def list_labels(base, lever) -> list[str] | str:
    variants, reasons = list_variants(base, [lever])
    return [variant.label for variant in variants] or reasons[lever]


def test_the_rows_of_a_step_stay_the_same():
    base = describe(["--config", "debug", "--batch_size", "4", "--gradient_accumulation_steps", "6"])
    variants, _ = list_variants(base, ["micro-batch"])
    sizes = [tuple(variant.recipe.values()) for variant in variants]
    assert sizes == [(8, 3), (2, 12)]
    variants, _ = list_variants(describe(["--config", "debug", "--batch_size", "1"]), ["micro-batch"])
    assert [(one.label, bool(one.changes_training)) for one in variants] == [("2", True)]
    assert "auto" in list_labels(describe(["--config", "debug", "perf.micro_batch_size=auto"]), "micro-batch")


@pytest.mark.parametrize(
    ("device", "lever", "expected"),
    [
        ("cpu", "precision", ["float32"]),
        ("cuda", "precision", ["float16", "float32"]),
        ("cpu", "attention", ["sdpa", "eager"]),
        ("cpu", "fused-layers", ["off"]),
        ("cuda", "fused-layers", "on CUDA layers are fused by Liger, which is not installed"),
        ("cpu", "pinned-memory", "on a CPU batches are not copied"),
        ("cuda", "pinned-memory", ["off"]),
        ("cuda", "threads", "threads matter only for training on a CPU"),
        ("cpu", "workers", ["1 a rank", "2 a rank"]),
        ("cpu", "packing", ["wrapped", "none", "none, grouped by length"]),
        ("cpu", "bucket-size", "one rank has no gradients to reduce"),
    ],
)
def test_levers_fit_the_device(device, lever, expected):
    assert list_labels(describe(["--config", "debug"], device), lever) == expected


def test_only_what_computes_the_same_claims_to_train_the_same():
    variants, _ = list_variants(describe(["--config", "debug"], world_size=2), list(LEVERS))
    changing = {variant.lever for variant in variants if variant.changes_training}
    assert changing == {"micro-batch", "packing", "precision", "optimizer", "ZeRO stage"}
    fused = next(variant for variant in variants if variant.label == "adamw_torch")
    assert not fused.changes_training


def test_a_deepspeed_set_up_is_turned_in_its_json(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}))
    base = describe(["--config", "debug", "--deepspeed", str(file)], world_size=2)
    assert list_labels(base, "zero-stage") == ["stage 1", "stage 3", "without DeepSpeed"]
    variants, _ = list_variants(base, ["bucket-size"])
    assert [variant.json["zero_optimization.reduce_bucket_size"] for variant in variants] == [
        2_000_000_000,
        125_000_000,
    ]
    changed = change_json(base.loaded, {**variants[1].json, "zero_optimization.stage": 1})
    assert changed == {
        "bf16": {"enabled": True}, "zero_optimization": {"stage": 1, "reduce_bucket_size": 125_000_000},
    }  # fmt: skip
    assert json.loads(file.read_text())["zero_optimization"] == {"stage": 2}
    assert list_labels(describe(["--config", "debug", "--deepspeed", str(file)]), "zero-stage") == ["without DeepSpeed"]


def test_allocators_that_the_machine_has_are_tried(monkeypatch):
    monkeypatch.setattr(allocator, "find_usable", lambda: [*allocator.LIBRARIES, allocator.GLIBC])

    def labels(device="cpu", **in_use):
        return list_labels(replace(describe(["--config", "debug"], device), allocator=in_use), "allocator")

    assert labels() == ["tcmalloc", "jemalloc", "glibc"]  # a run of an older Redline
    assert labels(name="tcmalloc", set_by="restart") == ["jemalloc", "glibc", "off"]
    assert labels(name="glibc", set_by="mallopt") == ["tcmalloc", "jemalloc", "off"]
    assert labels(name="glibc", set_by="unchanged") == ["tcmalloc", "jemalloc", "glibc"]
    loaded = labels(name="jemalloc", library="/x/libjemalloc.so.2", set_by="LD_PRELOAD")
    assert loaded == "/x/libjemalloc.so.2 is already loaded when a process starts"
    assert labels("cuda") == "tensors on a GPU are not allocated by malloc"


def test_every_variant_of_every_shipped_recipe_is_a_valid_configuration():
    for arguments in (["--config", "minigpt_quickstart"], ["--config", "qwen2.5_0.5b_sft_lora"]):
        base = describe(arguments, world_size=2)
        for variant in list_variants(base, list(LEVERS))[0]:
            changes = [
                f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in variant.recipe.items() if "." in k
            ]
            load_config([*arguments, *changes], 2)


def test_together_nothing_of_a_json_is_turned_that_is_no_longer_used():
    away = Variant("ZeRO stage", "without DeepSpeed", {"--deepspeed": "none"})
    bucket = Variant("bucket size", "more", json={"zero_optimization.reduce_bucket_size": 1})
    threads = Variant("threads", "2", {"perf.num_threads": 2})
    assert combine([bucket, threads]).json and combine([bucket, threads]).recipe == {"perf.num_threads": 2}
    assert not combine([away, bucket, threads]).json
