"""The sections `tokenizer:` and `data:` of a recipe.

They are in this package because `python -m data_prep.prepare` runs without `training`. `fingerprint.py` decides which
fields identify a store on disk. Packing and `seq_len` do not: one store serves every row length.
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
    """The tokenizer: an existing one (`path`), or one that is trained on `data.sources`."""

    path: str | None = Field(
        default=None,
        description="Existing tokenizer: a directory or a name on the Hugging Face Hub. By default, the tokenizer of "
        "model.path, else one that is trained on data.sources.",
    )
    vocab_size: int = Field(
        default=8192,
        ge=300,
        le=1_000_000,
        description="Vocabulary size of a trained tokenizer, special tokens included.",
    )
    sample_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        description="Largest amount of text that a tokenizer is trained on, in bytes. From larger sources, a sample of "
        "documents is drawn by their hash.",
    )
    special_tokens: list[str] = Field(
        default=["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"],
        min_length=1,
        description="Special tokens of a trained tokenizer, with ids from 0. The first one ends a document and the "
        "second one is the padding token; a single token serves as both.",
    )
    seed: int = Field(default=0, description="Random seed of the sample of documents that a tokenizer is trained on.")

    @model_validator(mode="after")
    def _check_special_tokens(self) -> "TokenizerSection":
        if len(set(self.special_tokens)) != len(self.special_tokens) or "" in self.special_tokens:
            raise ValueError(f"special_tokens = {self.special_tokens}: a token is empty or repeated: remove it")
        return self


TURN_TARGETS = ("role", "content", "system", "tools")
PAIR_TARGETS = (*TURN_TARGETS, "prompt", "completion", "context", "history", "reasoning", "label")
# Kind -> the parts of its records, by their names in `columns`.
TARGETS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": (*TURN_TARGETS, "messages", "label"),
    "sharegpt": (*TURN_TARGETS, "messages", "label"),
    "alpaca": PAIR_TARGETS,
    "prompt_completion": PAIR_TARGETS,
    "preference": (*TURN_TARGETS, "chosen", "rejected", "prompt", "context", "messages"),
}


def find_named_kind(columns: Iterable[tuple[str, str]]) -> Kind | None:
    """The kind of record that the columns of a recipe, (part, key), imply; None if they fit several kinds."""
    targets = {target for target, key in columns if key}
    if targets & {"chosen", "rejected"}:
        return "preference"
    if "messages" in targets:
        return "messages"
    if targets & {"prompt", "completion"}:
        return "prompt_completion"
    return "text" if "text" in targets else None


class ColumnsSection(Section):
    """The key of each part of a record, for keys with unknown names. "" ignores a key that would be found by its name;
    `meta.text` is the key `text` in the object `meta`."""

    text: str | None = Field(default=None, description="Key of the text of a `text` record; the same as text_key.")
    messages: str | None = Field(default=None, description="Key of the list of turns of a conversation.")
    role: str | None = Field(default=None, description="Key of the speaker's role in a turn.")
    content: str | None = Field(default=None, description="Key of the text of a turn.")
    chosen: str | None = Field(default=None, description="Key of the better answer of a preference pair.")
    rejected: str | None = Field(default=None, description="Key of the worse answer of a preference pair.")
    prompt: str | None = Field(default=None, description="Key of the prompt.")
    completion: str | None = Field(default=None, description="Key of the answer, which is trained.")
    context: str | None = Field(default=None, description="Key of the text that is added to the prompt on a new line.")
    system: str | None = Field(default=None, description="Key of the system prompt.")
    history: str | None = Field(
        default=None, description="Key of the earlier turns, which are [question, answer] pairs or messages."
    )
    reasoning: str | None = Field(default=None, description="Key of the reasoning that precedes the answer.")
    tools: str | None = Field(
        default=None, description="Key of the definitions of the tools that the assistant can call."
    )
    label: str | None = Field(
        default=None,
        description="Key of the label that rates an answer. Answers with a negative label are never trained.",
    )

    def named(self) -> tuple[tuple[str, str], ...]:
        """The columns that are set, as (part of the record, key)."""
        return tuple((name, key) for name, key in self if key is not None)


class SourceSection(Section):
    """One input: the embedded corpus, a file, a glob, a directory or a Hugging Face dataset."""

    path: str = Field(
        default=EMBEDDED,
        description="Location of the data: a file, a glob, a directory (including one from save_to_disk), hf:NAME or "
        "hf:NAME:CONFIG for a dataset on the Hugging Face Hub, or embedded for the source code of Python's standard "
        "library.",
    )
    hf_split: str = Field(
        default="train",
        description="Split of a Hugging Face dataset, from the Hub or in a directory from save_to_disk.",
    )
    format: FileFormat = Field(
        default="auto",
        description="File format. In a directory, only files of this format are read. auto recognizes files by their "
        "suffix; in a directory, it reads either the record files or the text files, whichever have more bytes.",
    )
    kind: Kind = Field(
        default="auto", description="Kind of the records. auto detects it from the first records and logs the result."
    )
    text_key: str | None = Field(
        default=None, description="Key or column of the text in a `text` record. By default, it is found by its name."
    )
    columns: ColumnsSection | None = Field(
        default=None,
        description="Keys or columns of the records, for names that are not known. By default, they are found by "
        "their names.",
    )
    records_key: str | None = Field(
        default=None,
        description="Key of the list of records in a JSON file; a.b is the key b in the object a. By default, the "
        "list is found automatically.",
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="Character that separates the fields of a CSV or TSV file. By default, it is detected.",
    )
    text_unit: Literal["file", "line"] = Field(
        default="file", description="What one document of a text file is: the whole file, or each line."
    )
    split: SplitChoice = Field(
        default="auto",
        description="Split that the documents belong to. auto assigns each document by its content hash, so that "
        "data.validation_share of them are in validation.",
    )
    weight: float = Field(
        default=1.0,
        gt=0.0,
        le=1000.0,
        description="Number of times that an epoch repeats each training document. 0.25 takes a quarter of the "
        "documents.",
    )
    max_documents: int | None = Field(
        default=None,
        ge=1,
        description="Largest number of documents to read, from the beginning. By default, all are read.",
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Largest number of tokens to read, from the beginning, in whole documents. By default, all are "
        "read.",
    )

    @model_validator(mode="after")
    def _check_format(self) -> "SourceSection":
        if self.format != "auto" and (self.path == EMBEDDED or self.path.startswith(HUB_PREFIX)):
            raise ValueError(f"format: {self.format} applies to files only, not to path: {self.path}: leave format out")
        return self

    @property
    def named_columns(self) -> tuple[tuple[str, str], ...]:
        """The columns that `columns` sets, as (part of the record, key)."""
        return () if self.columns is None else self.columns.named()

    @model_validator(mode="after")
    def _check_columns(self) -> "SourceSection":
        named = dict(self.named_columns)
        if self.text_key and named.get("text", self.text_key) != self.text_key:
            raise ValueError(f"text_key: {self.text_key} and columns.text: {named['text']} differ: keep one")
        kind = self.kind if self.kind != "auto" else "text" if self.text_key else find_named_kind(named.items())
        if kind is not None and (others := sorted(set(named) - set(TARGETS[kind]))):
            takes = ", ".join(TARGETS[kind])
            raise ValueError(
                f"records of kind {kind} have no {', '.join(others)}: remove it from columns, or use one of {takes}"
            )
        return self


class DataSection(Section):
    """The training data, and how documents become rows of `seq_len` tokens."""

    sources: list[SourceSection] = Field(
        default=[SourceSection.model_validate({})],
        min_length=1,
        description="Data sources. Several sources are mixed by their weights.",
    )
    columns: ColumnsSection | None = Field(
        default=None, description="Keys or columns of the records, for every source without columns of its own."
    )
    seq_len: int = Field(default=512, ge=8, description="Length of a row, in tokens.")
    packing: Packing = Field(
        default="best_fit",
        description="How documents fill rows. best_fit puts as many whole documents into a row as fit; wrapped joins "
        "all documents and cuts them every seq_len tokens; none gives each document a row of its own, padded.",
    )
    long_documents: LongDocuments = Field(
        default="split",
        description="What happens to documents longer than seq_len. split makes several pieces; truncate keeps the "
        "beginning; drop leaves them out. With packing: wrapped, this key has no effect.",
    )
    pad_to_multiple_of: int = Field(
        default=64, ge=1, description="Multiple that row lengths are padded to with packing: none, in tokens."
    )
    store_dir: str = Field(default="stores", description="Cache directory of token stores and trained tokenizers.")
    validation_share: Share = Field(
        default=0.02, description="Fraction of documents held out for validation, chosen by content hash."
    )
    train_on: TrainOn = Field(
        default="assistant",
        description="Turns of a conversation that the loss is computed on: every assistant turn, the last assistant "
        "turn, or all turns.",
    )
    chat_template: str | None = Field(
        default=None,
        description="Chat template: chatml, or the path of a Jinja file. By default, the template of the tokenizer, "
        "or ChatML if it has none.",
    )
    on_dropped_content: OnDropped = Field(
        default="refuse",
        description="What happens to a record when its chat template drops part of its content. refuse treats it as a "
        "bad record; allow trains on it without that part.",
    )
    special_tokens_in_text: SpecialInText = Field(
        default="text",
        description="How the spelling of a special token in a text or message is encoded. text encodes it as ordinary "
        "text; token encodes it as the special token; refuse treats the record as a bad record.",
    )
    max_record_bytes: int = Field(
        default=64 * 2**20,
        ge=1024,
        description="Largest size of a line, JSON record, table row or text file, in bytes. A larger one is a bad "
        "record.",
    )
    on_bad_record: Literal["error", "skip"] = Field(
        default="error",
        description="What happens to bad records. error stops at the first one; skip leaves them out, "
        "and counts and lists them.",
    )
    max_bad_share: Share = Field(
        default=0.01,
        description="Largest fraction of bad records with on_bad_record: skip. Above it, data preparation fails.",
    )
    deduplicate: Deduplicate = Field(
        default="none",
        description="Which duplicate documents are removed, across all sources; the first one is kept. exact removes "
        "documents of equal content; minhash also removes similar ones.",
    )
    minhash_similarity: float = Field(
        default=0.8,
        ge=0.5,
        le=1.0,
        description="Similarity from which deduplicate: minhash treats documents as duplicates: the estimated Jaccard "
        "similarity of their word 5-grams.",
    )
    min_document_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Smallest length of a document, in tokens. Shorter ones are left out and counted.",
    )
    max_document_tokens: int | None = Field(
        default=None, ge=1, description="Largest length of a document, in tokens. Longer ones are left out and counted."
    )
    streaming: bool = Field(
        default=False,
        description="Whether to tokenize data.sources during training instead of building a token store first. Needs "
        "training.max_steps.",
    )
    validation_rows: int = Field(
        default=256,
        ge=1,
        description="Largest number of rows held out for evaluation with streaming, from the beginning of the sources.",
    )
    num_proc: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="Number of processes that tokenize. auto uses one per CPU core, at most 16."
    )
    executor: Literal["processes", "ray"] = Field(
        default="processes",
        description="What runs tokenization: processes of this machine, or a Ray cluster (which needs "
        "requirements-ray.txt).",
    )
    ray_address: str | None = Field(
        default=None,
        description="Address of the Ray cluster with executor: ray: HOST:PORT, auto or ray://… By default, a cluster "
        "is started on this machine.",
    )
    seed: int = Field(default=0, ge=0, description="Random seed of the order of rows.")
    group_by_length: bool = Field(
        default=False,
        description="Whether rows of similar length are batched together, which reduces padding. Needs packing: none.",
    )
    max_tokens_per_batch: int | None = Field(
        default=None,
        ge=1,
        description="Largest size of a micro-batch in tokens, padding included, instead of "
        "training.per_device_train_batch_size rows. Rows are grouped by length. Needs packing: none.",
    )
    verify: Literal["sample", "full", "off"] = Field(
        default="sample",
        description="Which shards of a cached token store are compared with their hashes at the start: as many as one "
        "second is enough for, drawn again each time (sample), all (full), or none (off).",
    )
    verify_packing: bool = Field(
        default=True,
        description="Whether to check before the first step that a packed document has the same loss as "
        "the document alone.",
    )
    num_workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="Number of processes of each rank that load batches. auto uses none on a CPU; on a GPU, half of "
        "the rank's CPU cores, at most 16.",
    )

    def list_sources(self) -> list[SourceSection]:
        """The sources; one without columns of its own has those of the section."""
        return [
            source if source.columns is not None or source.text_key or source.kind == "text" or source.path == EMBEDDED
            else source.model_copy(update={"columns": self.columns})
            for source in self.sources
        ]  # fmt: skip

    @model_validator(mode="after")
    def _check_left_out(self) -> "DataSection":
        if self.streaming and self.deduplicate != "none":
            raise ValueError(
                f"deduplicate: {self.deduplicate} reads all documents before training, which streaming does not do: "
                "set deduplicate to none or streaming to false"
            )
        least, most = self.min_document_tokens, self.max_document_tokens
        if least is not None and most is not None and least > most:
            raise ValueError(
                f"min_document_tokens: {least} is above max_document_tokens: {most}, so that no document is left: "
                "lower the first or raise the second"
            )
        return self
