"""Turn a trained model directory into one that other programs load.

    python -m training.export MODEL_DIR OUT --format llama     a SwiGLU MiniGPT as stock LlamaForCausalLM, equal logits
    python -m training.export MODEL_DIR OUT --format merged    a LoRA adapter merged into its base, saved whole

A 4-bit base is loaded unquantised for merging (merging into NF4 would round the adapter away), in the dtype of its
checkpoint. The tokenizer goes along where MODEL_DIR (or, for an adapter, its base) has one. What is written is loaded
again, and it computes the logits of what it was made of, or nothing is written.
"""

import json
import logging
import sys
from pathlib import Path

from data_prep.command import CommandParser, program_name, run_command, with_exit_code
from data_prep.errors import UserError

logger = logging.getLogger("redline.export")


@with_exit_code
def main(argv: list[str] | None = None) -> int:
    """Export a model; the exit code."""
    program = program_name("training.export")
    parser = CommandParser(prog=program, description="Export a trained model directory.")
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=("llama", "merged"), required=True)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with an adapter's base")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(args.model_dir, args.out, args.format, trust_remote_code=args.trust_remote_code)
    return 0


def export(model_dir: Path, out: Path, target_format: str, *, trust_remote_code: bool = False) -> None:
    """Writes `model_dir` to `out` in `target_format` ("llama" or "merged"). Raises UserError for unfit input."""
    from training.models.saved_files import complete_files

    is_adapter = (model_dir / "adapter_config.json").exists()
    if not is_adapter and not (model_dir / "config.json").exists():
        raise UserError(f"{model_dir}: no model here (neither config.json nor adapter_config.json)")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is no empty directory: give a new one")
    tokenizer_source = str(model_dir)
    if target_format == "merged":
        if not is_adapter:
            raise UserError(f"{model_dir}: is no adapter (no adapter_config.json), there is nothing to merge")
        from training.models.merging import merge_adapter

        base = merge_adapter(model_dir, out, trust_remote_code=trust_remote_code)
        if not _has_tokenizer(model_dir):
            tokenizer_source = base
    else:
        model_type = None if is_adapter else _read_model_type(model_dir / "config.json")
        if model_type != "minigpt":
            what = "an adapter: merge it first with --format merged" if is_adapter else f"a {model_type}, not a minigpt"
            raise UserError(f"{model_dir}: --format llama: this is {what}")
        from training.models.llama_export import export_llama

        export_llama(model_dir, out)
    _copy_tokenizer(tokenizer_source, out)
    complete_files(out)
    logger.info("exported %s to %s (%s)", model_dir, out, target_format)


def _read_model_type(file: Path) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        what = "names no model_type" if isinstance(error, KeyError | TypeError) else f"cannot be read: {error}"
        raise UserError(f"{file}: {what}: it is no config of a model") from None


def _has_tokenizer(directory: Path) -> bool:
    return (directory / "tokenizer.json").exists() or (directory / "tokenizer_config.json").exists()


def _copy_tokenizer(source: str, out: Path) -> None:
    if Path(source).exists() and not _has_tokenizer(Path(source)):
        logger.info("no tokenizer in %s: none written", source)
        return
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source).save_pretrained(out)


if __name__ == "__main__":
    sys.exit(run_command(main, prints=False))
