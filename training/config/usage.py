"""Text of `--help`: the options, then every key of every section with its type, default and description."""

import textwrap
from collections.abc import Mapping
from typing import Any

from data_prep.recipe import Sections
from data_prep.recipe.sections import describe_sections

_HEAD = """\
usage: train.py [--config NAME_OR_PATH] [--deepspeed NAME_OR_PATH] [--resume auto|PATH|never] [overrides]

--config      a YAML file, or a bare name in configs/; left out: the quickstart's MiniGPT on the embedded corpus
--deepspeed   a DeepSpeed JSON, or a bare name in ds_configs/ (also --deepspeed_config); none: without DeepSpeed
--resume      auto: newest valid checkpoint of the run directory; PATH: this one; never (default)
overrides     section.key=value, --section.key value, or --key value where one section only has the key;
              `-` and `_` are the same; --key alone sets true
"""


def usage(sections: Sections, synonyms: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The whole text. defaults: by dotted key, of fields whose default is not in their model."""
    blocks = [_HEAD + describe_sections(sections, defaults)]
    blocks.append("synonyms:\n" + _wrap(" ".join(f"--{flag}" for flag in synonyms)))
    return "\n".join(blocks)


def _wrap(text: str) -> str:
    return textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
