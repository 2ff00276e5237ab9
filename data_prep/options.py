"""The sections `tokenizer:` and `data:` of a recipe.

They live beside their owner, because `python -m data_prep.prepare` runs without `training`. Every field does
something; which of them name the store on disk is decided in `fingerprint.py` (packing and `seq_len` do not: the same
store serves every row length).
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EMBEDDED = "embedded"
HUB_PREFIX = "hf:"
MAX_RECORD_BYTES = 64 * 2**20

FileFormat = Literal["auto", "jsonl", "json", "parquet", "arrow", "csv", "tsv", "text"]
Kind = Literal["auto", "text", "messages", "alpaca", "sharegpt", "prompt_completion", "preference"]
SplitChoice = Literal["auto", "train", "validation"]
Packing = Literal["best_fit", "wrapped", "none"]
LongDocuments = Literal["split", "truncate", "drop"]
TrainOn = Literal["assistant", "last_assistant", "all"]
Deduplicate = Literal["none", "exact", "minhash"]
OnDropped = Literal["refuse", "allow"]
SpecialInText = Literal["text", "token", "refuse"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A section of a recipe: unknown keys are refused, values are not converted."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerSection(Section):
    """`path` names a tokenizer (directory or hub name); without it one is trained on `data.sources`."""

    path: str | None = Field(None, description="tokenizer directory or hub name; absent: train one on data.sources")
    vocab_size: int = Field(8192, ge=300, le=1_000_000, description="words of a trained tokenizer, with special ones")
    sample_bytes: int = Field(
        64 * 2**20, ge=1, description="most bytes of text that the tokenizer is trained on; documents chosen by hash"
    )
    special_tokens: list[str] = Field(
        ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"],
        min_length=1,
        description="ids from 0 on: the first ends a document, the second pads (one alone does both)",
    )
    seed: int = Field(0, description="chooses the sample when the text is larger than sample_bytes")

    @model_validator(mode="after")
    def _check_special_tokens(self) -> "TokenizerSection":
        if len(set(self.special_tokens)) != len(self.special_tokens) or "" in self.special_tokens:
            raise ValueError(f"special_tokens holds an empty or repeated token: {self.special_tokens}")
        return self


TURN_TARGETS = ("role", "content", "system", "tools")
PAIR_TARGETS = (*TURN_TARGETS, "prompt", "completion", "context", "history", "reasoning", "label")
# What the records of a kind are made of, as `columns` calls it.
TARGETS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": (*TURN_TARGETS, "messages", "label"),
    "sharegpt": (*TURN_TARGETS, "messages", "label"),
    "alpaca": PAIR_TARGETS,
    "prompt_completion": PAIR_TARGETS,
    "preference": (*TURN_TARGETS, "chosen", "rejected", "prompt", "context", "messages"),
}


def find_named_kind(columns: Iterable[tuple[str, str]]) -> Kind | None:
    """The kind that the columns of a recipe, (what, key), make of a record; None where they leave it open."""
    targets = {target for target, key in columns if key}
    if targets & {"chosen", "rejected"}:
        return "preference"
    if "messages" in targets:
        return "messages"
    if targets & {"prompt", "completion"}:
        return "prompt_completion"
    return "text" if "text" in targets else None


class ColumnsSection(Section):
    """What the keys of a source's records are; "" leaves out a key that would be found by its name. `meta.text` goes
    into objects."""

    text: str | None = Field(None, description="the text of a `text` record, as text_key")
    messages: str | None = Field(None, description="the turns of a conversation")
    role: str | None = Field(None, description="within a turn, who speaks")
    content: str | None = Field(None, description="within a turn: its text")
    chosen: str | None = Field(None, description="the better answer of a preference pair")
    rejected: str | None = Field(None, description="the worse answer of a preference pair")
    prompt: str | None = Field(None, description="what is asked")
    completion: str | None = Field(None, description="the answer that is trained")
    context: str | None = Field(None, description="what comes in the line behind the prompt")
    system: str | None = Field(None, description="the system prompt")
    history: str | None = Field(None, description="earlier turns: [question, answer] pairs or messages")
    reasoning: str | None = Field(None, description="the thoughts before the answer")
    tools: str | None = Field(None, description="the tools that may be called")
    label: str | None = Field(None, description="whether an answer is good: those that are not are never trained")

    def named(self) -> tuple[tuple[str, str], ...]:
        """What is set, as (what, key)."""
        return tuple((name, key) for name, key in self if key is not None)


class SourceSection(Section):
    """One input: the embedded corpus, a file, a glob, a directory or a Hugging Face dataset."""

    path: str = Field(
        EMBEDDED,
        description='"embedded" (Python\'s own sources), a file, a glob, a directory (also of save_to_disk), '
        '"hf:NAME" or "hf:NAME:CONFIG"',
    )
    hf_split: str = Field("train", description="split of a Hugging Face dataset, by name or saved on disk")
    format: FileFormat = Field(
        "auto", description="how files are read, and those of a directory chosen; auto: by suffix, records before text"
    )
    kind: Kind = Field("auto", description="what a record is; auto: found from the first records and logged")
    text_key: str | None = Field(None, description="key or column that holds the text of a `text` record")
    columns: ColumnsSection | None = Field(
        None, description="which key is what, where the names are none that are known; absent: by their names"
    )
    records_key: str | None = Field(
        None,
        description="of a JSON file, the key under which its records lie (a.b: b within a); absent: found",
    )
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="what splits the fields of a CSV or TSV file; absent: found"
    )
    text_unit: Literal["file", "line"] = Field("file", description="a text file is one document, or each line is one")
    split: SplitChoice = Field("auto", description="auto: by content hash and data.validation_share")
    weight: float = Field(
        1.0, gt=0.0, le=1000.0, description="times that a training document is seen per epoch; 0.25: a quarter of them"
    )
    max_documents: int | None = Field(None, ge=1, description="take only the first documents of this source")
    max_tokens: int | None = Field(None, ge=1, description="stop this source before it passes this many tokens")

    @model_validator(mode="after")
    def _check_format(self) -> "SourceSection":
        if self.format != "auto" and (self.path == EMBEDDED or self.path.startswith(HUB_PREFIX)):
            raise ValueError(f"format: {self.format} is of files, {self.path} has its own: leave it out")
        return self

    @property
    def named_columns(self) -> tuple[tuple[str, str], ...]:
        """What `columns` says, as (what, key)."""
        return () if self.columns is None else self.columns.named()

    @model_validator(mode="after")
    def _check_columns(self) -> "SourceSection":
        named = dict(self.named_columns)
        if self.text_key and named.get("text", self.text_key) != self.text_key:
            raise ValueError(f"text_key: {self.text_key} and columns.text: {named['text']} differ: keep one")
        kind = self.kind if self.kind != "auto" else "text" if self.text_key else find_named_kind(named.items())
        if kind is not None and (others := sorted(set(named) - set(TARGETS[kind]))):
            takes = ", ".join(TARGETS[kind])
            raise ValueError(f"records of kind {kind} have no {', '.join(others)} among their columns, but {takes}")
        return self


class DataSection(Section):
    """What to train on and how it becomes rows of `seq_len` tokens."""

    sources: list[SourceSection] = Field(
        [SourceSection.model_validate({})], min_length=1, description="what is trained on; several are mixed by weight"
    )
    columns: ColumnsSection | None = Field(None, description="columns of every source that has none of its own")
    seq_len: int = Field(512, ge=8, description="tokens in a row")
    packing: Packing = Field("best_fit", description="best_fit: whole documents; wrapped: one stream cut in rows; none")
    long_documents: LongDocuments = Field("split", description="what happens to documents over seq_len (not wrapped)")
    pad_to_multiple_of: int = Field(64, ge=1, description="row length multiple with packing: none")
    store_dir: str = Field("stores", description="where token stores and trained tokenizers are cached")
    validation_share: Share = Field(0.02, description="share of documents held out, chosen by content hash")
    train_on: TrainOn = Field("assistant", description="turns of a conversation that carry loss")
    chat_template: str | None = Field(
        None, description='absent: the tokenizer\'s own, else ChatML; "chatml"; or the path of a Jinja file'
    )
    on_dropped_content: OnDropped = Field(
        "refuse",
        description="what a record says and its chat template leaves out; refuse: a bad record; allow: trained without",
    )
    special_tokens_in_text: SpecialInText = Field(
        "text",
        description="a special token spelled in a text or message; text: encoded as ordinary text; token: as the "
        "special token; refuse: a bad record",
    )
    max_record_bytes: int = Field(
        64 * 2**20, ge=1024, description="a larger line, JSON record, row or text file is a bad record"
    )
    on_bad_record: Literal["error", "skip"] = Field(
        "error", description="error: the first one stops the build; skip: they are left out, counted and listed"
    )
    max_bad_share: Share = Field(0.01, description="with on_bad_record: skip, the share at which the build stops")
    deduplicate: Deduplicate = Field(
        "none", description="over all sources, the first stays; exact: equal content; minhash: similar content too"
    )
    minhash_similarity: float = Field(
        0.8, ge=0.5, le=1.0, description="estimated Jaccard similarity of word 5-grams from which one is a duplicate"
    )
    min_document_tokens: int | None = Field(None, ge=1, description="shorter documents are left out and counted")
    max_document_tokens: int | None = Field(None, ge=1, description="longer documents are left out and counted")
    streaming: bool = Field(
        False, description="train straight from data.sources, with no store first; needs training.max_steps"
    )
    validation_rows: int = Field(
        256, ge=1, description="with streaming: most rows held out for evaluation, from the beginning of the sources"
    )
    num_proc: Annotated[int, Field(ge=1)] | Literal["auto"] = Field("auto", description="processes that tokenize")
    executor: Literal["processes", "ray"] = Field(
        "processes", description="what tokenizes: processes of this machine, or a Ray cluster (requirements-ray.txt)"
    )
    ray_address: str | None = Field(
        None, description='with executor: ray, HOST:PORT, "auto" or ray://…; absent: one on this machine'
    )
    seed: int = Field(0, ge=0, description="order of the rows")
    group_by_length: bool = Field(
        False, description="with packing: none, rows of about one length come together: less padding"
    )
    max_tokens_per_batch: int | None = Field(
        None,
        ge=1,
        description="with packing: none, a micro-batch holds as many rows as fit in this many tokens, padding "
        "included, instead of training.per_device_train_batch_size; rows are grouped by length",
    )
    verify_packing: bool = Field(
        True, description="before the first step, check that packed documents give the losses they give alone"
    )
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="processes of each rank that prepare batches; auto: 0 on a CPU, half of its cores on a GPU"
    )

    def list_sources(self) -> list[SourceSection]:
        """The sources with `columns` where they have none of their own."""
        return [
            source if source.columns is not None or source.text_key or source.kind == "text" or source.path == EMBEDDED
            else source.model_copy(update={"columns": self.columns})
            for source in self.sources
        ]  # fmt: skip

    @model_validator(mode="after")
    def _check_left_out(self) -> "DataSection":
        if self.streaming and self.deduplicate != "none":
            raise ValueError(f"deduplicate: {self.deduplicate} needs all documents first, streaming none: keep one")
        least, most = self.min_document_tokens, self.max_document_tokens
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_document_tokens: {least} is above max_document_tokens: {most}: no document is left")
        return self
