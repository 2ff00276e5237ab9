"""What `save_pretrained` of transformers 5 leaves out for programs that still have transformers 4.

transformers 5 moved fields of `config.json` and `tokenizer_config.json`. A program with transformers 4, such as servers
that have not moved on, reads only the old ones, takes a default where they are missing, and computes other logits
without a word. transformers 5 reads both, so the files get both:

| transformers 5 | transformers 4 |
|---|---|
| `rope_parameters.rope_theta`, `.partial_rotary_factor` | `rope_theta`, `partial_rotary_factor` |
| `rope_parameters` with another `rope_type` than default | `rope_scaling` |
| `rope_parameters` by kind of layer (Gemma 3) | `rope_theta`, `rope_scaling`, `rope_local_base_freq` |
| `dtype` | `torch_dtype` |
| `num_local_experts` where it was `num_experts` | `num_experts` |
| `extra_special_tokens`, a list | `additional_special_tokens` (a list under the new name is an error there) |
| `tokenizer_class: TokenizersBackend` | `PreTrainedTokenizerFast` |

Guarantee: transformers 5 makes the same config of the completed file as of the saved one, or the file stays as it was
and one line says so.
"""

from __future__ import annotations

import json
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import CONFIG_MAPPING, GenerationConfig

logger = logging.getLogger("redline.models")

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
SAMPLING_OPTIONS = {"temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}
KEPT_OPTIONS = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length")
_OF_THE_WRITER = ("is_local", "local_files_only")  # how the tokenizer was found here: nothing of it


def complete_files(directory: Path) -> None:
    """Adds the fields of transformers 4 to the JSON files that `save_pretrained` wrote into `directory`."""
    for name, complete in ((CONFIG, complete_config), (TOKENIZER_CONFIG, complete_tokenizer_config)):
        path = directory / name
        if path.is_file():
            completed = complete(json.loads(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(completed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_generation_config(model: Any, directory: Path) -> None:
    """Writes the `generation_config.json` that an adapter's `save_pretrained` leaves out: it says which tokens stop."""
    if (generation := find_generation_config(model)) is not None:
        generation.save_pretrained(directory)


def find_base(model: Any) -> Any:
    """The Hugging Face model, where an adapter is around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def find_generation_config(model: Any) -> GenerationConfig | None:
    """That of a model, or of the base under an adapter."""
    return getattr(find_base(model), "generation_config", None)


def make_savable(model: Any) -> None:
    """Mends a generation config that transformers reads and does not write once it is changed: the end of a run would
    fail on it. Sampling options of a model that does not sample by default switch sampling on, as their authors meant;
    what is still refused is left out. Logged."""
    generation = find_generation_config(model)
    if generation is None or (reason := _find_fault(generation)) is None:
        return
    if not generation.do_sample and SAMPLING_OPTIONS & set(generation.to_diff_dict()):
        generation.do_sample = True
    if _find_fault(generation) is None:
        logger.warning("generation_config.json of the model: do_sample: true is added, which its other options need")
        return
    kept = {key: getattr(generation, key, None) for key in KEPT_OPTIONS}
    kept = {key: value for key, value in kept.items() if not (isinstance(value, int) and value < 0)}
    find_base(model).generation_config = GenerationConfig(**kept)
    logger.warning("generation_config.json of the model: not valid, only its token ids are kept (%s)", reason)


def _find_fault(generation: GenerationConfig) -> str | None:
    try:
        generation.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())[:200]
    return None


def complete_config(saved: dict[str, Any]) -> dict[str, Any]:
    """The config with the fields of both generations, or as it is where transformers 5 would read another one of it."""
    model_type = str(saved.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        return saved  # the model brings its own code, which knows its own fields
    completed = {**_find_old_fields(saved, CONFIG_MAPPING[model_type]), **saved}
    if _has_old_words(saved.get("rope_parameters") or {}) and _reads_the_same(
        CONFIG_MAPPING[model_type], saved, completed
    ):
        return dict(sorted(completed.items()))
    logger.warning(
        "config.json: no fields of transformers 4 say the rope_parameters of this %s: read it with transformers 5",
        model_type,
    )
    return saved


def complete_tokenizer_config(saved: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's config in the words that both generations read."""
    completed = {key: value for key, value in saved.items() if key not in _OF_THE_WRITER}
    if isinstance(completed.get("extra_special_tokens"), list):
        completed["additional_special_tokens"] = completed.pop("extra_special_tokens")
    if completed.get("tokenizer_class") == "TokenizersBackend":
        completed["tokenizer_class"] = "PreTrainedTokenizerFast"
    return dict(sorted(completed.items()))


def _find_old_fields(saved: dict[str, Any], config_class: Any) -> dict[str, Any]:
    found = _find_old_rope(saved.get("rope_parameters") or {})
    if isinstance(saved.get("dtype"), str):
        found["torch_dtype"] = saved["dtype"]
    if "num_local_experts" in saved and config_class.attribute_map.get("num_experts") == "num_local_experts":
        found["num_experts"] = saved["num_local_experts"]
    return found


def _has_old_words(parameters: dict[str, Any]) -> bool:
    """Whether version 4 can say them: of kinds of layers only sliding ones beside full ones, and those plain."""
    kinds = {kind: value for kind, value in parameters.items() if isinstance(value, dict)}
    local = kinds.get("sliding_attention", {})
    return kinds.keys() <= {"full_attention", "sliding_attention"} and local.get("rope_type", "default") == "default"


def _find_old_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    if isinstance(parameters.get("full_attention"), dict):
        found = _find_old_rope(parameters["full_attention"])
        local = (parameters.get("sliding_attention") or {}).get("rope_theta")
        return found if local is None else {**found, "rope_local_base_freq": local}
    apart = ("rope_theta", "partial_rotary_factor")
    found = {key: parameters[key] for key in apart if parameters.get(key) is not None}
    if parameters.get("rope_type", "default") != "default":
        found["rope_scaling"] = {key: value for key, value in parameters.items() if key not in apart}
    return found


def _reads_the_same(config_class: Any, saved: dict[str, Any], completed: dict[str, Any]) -> bool:
    """Whether every field that the saved file gives is the same when read from the completed one."""
    try:
        before, after = (config_class.from_dict(deepcopy(value)).to_dict() for value in (saved, completed))
    except (ValueError, TypeError, KeyError):  # a check of the config class refuses a pair of fields
        return False
    return all(after.get(key) == value for key, value in before.items())
