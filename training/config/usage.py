"""Text of `--help` of the commands that take a recipe: the options, then every key of every section with its type,
default and description."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.command import program_name
from data_prep.recipe import Sections
from data_prep.recipe.usage import describe_options, describe_sections, format_call, wrap_text

_OPTIONS = {
    "--config": "Recipe: a YAML file, or the name of a file in configs/ without .yaml. By default, the quickstart: a "
    "MiniGPT from scratch on the embedded corpus.",
    "--deepspeed": "DeepSpeed configuration: a JSON file, or the name of a file in ds_configs/ without .json. none "
    "disables the DeepSpeed configuration of the recipe. --deepspeed_config and --ds_config are the same option.",
    "--resume": "What the run starts from. auto resumes from the latest valid checkpoint in the run directory, PATH "
    "resumes from that checkpoint, and never starts from scratch (default).",
    "OVERRIDE": "Value for a key of the recipe: section.key=value or --section.key value; --key value if only one "
    "section has the key. Values are YAML. In key names, - and _ are the same. --key without a value sets true.",
}
_ARGUMENTS = ("[--config NAME_OR_PATH]", "[--deepspeed NAME_OR_PATH]", "[--resume auto|PATH|never]")
_SYNONYMS = "Names from other training programs, which are accepted in place of the keys above:"


@dataclass(frozen=True)
class Command:
    """A command that takes a recipe, as `--help` describes it.

    module: as in `python -m MODULE`. about: what the command does. options: those that only it has, name ->
    description. arguments: how the usage line shows these.
    """

    module: str
    about: str
    options: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


TRAIN = Command("training.train", "Train a model from a recipe, and measure the training.")


def usage(command: Command, sections: Sections, synonyms: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The whole text. defaults: by dotted key, of fields whose default is not in their model."""
    arguments = (*_ARGUMENTS, *command.arguments, "[OVERRIDE ...]")
    return "\n".join(
        [
            format_call(program_name(command.module), arguments) + "\n",
            wrap_text(command.about) + "\n",
            describe_options({**_OPTIONS, **command.options}) + describe_sections(sections, defaults),
            wrap_text(_SYNONYMS),
            wrap_text(" ".join(f"--{flag}" for flag in synonyms), "  "),
        ]
    )
