"""Decides what each key of a record means: from `data.sources.N.columns`, else from the names in well-known data sets.

The layout depends only on the keys of a record and the types of its values, never on their text. If two layouts are
possible, neither is used, and the reason names the line of the recipe that chooses one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data_prep.options import Kind, find_named_kind
from data_prep.parse.conversation import RecordError
from data_prep.parse.known_columns import (
    LABELS,
    OPTIONAL,
    PAIRS,
    PREFERENCES,
    PREFERRED,
    PROMPTS,
    TEXT_TURN_COLUMNS,
    TREE_COLUMNS,
    TURN_COLUMNS,
)  # fmt: skip
from data_prep.parse.messages import ROLES, TurnNames, find_exchange_keys, find_turn_keys

Columns = tuple[tuple[str, str], ...]  # (target, key of the record) in a fixed order; key "" leaves a target out


@dataclass(frozen=True)
class Layout:
    """The kind of a record, and its keys by target (`prompt`, `completion`, `messages`, …)."""

    kind: Kind
    keys: dict[str, str]

    def describe(self, record: dict[str, Any]) -> str:
        """Describe the used and unused keys, for the log."""
        used = ", ".join(what if what == key else f"{what} = {key}" for what, key in self.keys.items())
        unused = ", ".join(find_unused(self, record))
        return used + (f"; not used: {unused}" if unused else "")


def find_unused(layout: Layout, record: Any) -> list[str]:
    """Keys of a record that are not used."""
    if not isinstance(record, dict):
        return []
    used = {key for key in layout.keys.values()} | {key.partition(".")[0] for key in layout.keys.values()}
    return [str(key) for key in record if key not in used]


def take(record: dict[str, Any], key: str) -> Any:
    """Return the value under a key or a dotted path of keys; None if there is none."""
    if key in record or "." not in key:
        return record.get(key)
    head, _, rest = key.partition(".")
    inner = record.get(head)
    return take(inner, rest) if isinstance(inner, dict) else None


def find_layout(record: dict[str, Any], kind: Kind, columns: Columns) -> Layout | None:
    """Find the keys of a conversation or of a pair of conversations; None if a record looks like neither.

    Raises RecordError when two layouts are possible, or a column that the recipe names is missing.
    """
    chosen = dict(columns)
    named = {target: key for target, key in chosen.items() if key and target not in ("role", "content")}
    values = {**record, **{key: take(record, key) for key in named.values()}}
    turn_names = (chosen.get("role") or None, chosen.get("content") or None)
    forms = tuple((key, _form_of(item, turn_names)) for key, item in values.items() if item is not None)
    return _find(forms, kind, columns)


def _form_of(item: Any, names: TurnNames) -> str:
    """Classify a value by its type and structure: turns, texts, objects, or the name of its type."""
    if isinstance(item, str) and item.lstrip()[:2] in ("[{", "[]", "{'"):
        return "sharegpt turns" if '"from"' in item[:200] else "turns text"
    if not isinstance(item, list):
        return type(item).__name__
    if not item:
        return "empty list"
    if isinstance(item[0], str):
        return "texts"
    if not isinstance(item[0], dict):
        return "list"
    role, content = find_turn_keys(item[0], names)
    if role == "from" and content == "value":
        return "sharegpt turns"
    is_turn = (role is not None and content is not None) or find_exchange_keys(item[0]) is not None
    return "turns" if is_turn or role == "role" else "objects"


@lru_cache(maxsize=4096)
def _find(forms: tuple[tuple[str, str], ...], kind: Kind, columns: Columns) -> Layout | None:
    chosen, form_of = dict(columns), dict(forms)
    by_name = {key.strip().casefold(): key for key, _ in reversed(forms)}
    found = _Finder(by_name, form_of, {target: key for target, key in chosen.items() if key})
    if kind == "auto":
        kind = find_named_kind(columns) or "auto"
    for looked_for, find in (
        ("preference", found.find_preference),
        ("messages", found.find_turns),
        ("sharegpt", found.find_turns),
        ("alpaca", found.find_pair),
        ("prompt_completion", found.find_pair),
    ):
        if kind in ("auto", looked_for) and (keys := find()) is not None:
            keys = {**keys, **found.find_optional(looked_for, keys)}
            return Layout(found.name_kind(looked_for, keys), {t: k for t, k in keys.items() if chosen.get(t) != ""})
    return None


@dataclass(frozen=True)
class _Finder:
    """Finds the layout of a record.

    by_name: its keys by their name in lower case; form_of: the form of each value by key.
    chosen: keys that the recipe names, by target.
    """

    by_name: dict[str, str]
    form_of: dict[str, str]
    chosen: dict[str, str]

    def find_preference(self) -> dict[str, str] | None:
        pair = next((pair for pair in PREFERENCES if all(name in self.by_name for name in pair)), None)
        keys = dict(zip(("chosen", "rejected"), (self.by_name[name] for name in pair), strict=True)) if pair else {}
        keys |= {target: self._named(target) for target in ("chosen", "rejected") if target in self.chosen}
        if len(keys) < 2:
            return None
        if "prompt" in self.chosen:
            return {"prompt": self._named("prompt"), **keys}
        if "prompt" not in self.by_name and (turns := self.find_turns()):
            return {**turns, **keys}
        prompts = [name for name in PROMPTS if name in self.by_name]
        prompts = _prefer([(name, None) for name in prompts])
        if len(prompts) > 1:
            raise RecordError(_explain_choice([f"prompt: {self.by_name[name]}" for name, _ in prompts]))
        return {**({"prompt": self.by_name[prompts[0][0]]} if prompts else {}), **keys}

    def find_turns(self) -> dict[str, str] | None:
        if "messages" in self.chosen:
            return {"messages": self._named("messages")}
        for name in (*TURN_COLUMNS, "data"):
            form = self.form_of.get(self.by_name.get(name, ""))
            is_certain = name in ("messages", "conversations") and form in (
                "turns text",
                "empty list",
                "objects",
                "list",
            )
            if name in TEXT_TURN_COLUMNS and form == "texts":
                is_certain = True
            if is_certain or (name != "data" and form in ("turns", "sharegpt turns", "turns text")):
                return {"messages": self.by_name[name]}
        return None

    def find_pair(self) -> dict[str, str] | None:
        named = {target: self._named(target) for target in ("prompt", "completion") if target in self.chosen}
        if len(named) == 2:
            return named
        pairs = [pair for pair in PAIRS if all(name in self.by_name for name in pair)]
        if "prompt" in named:
            answers = dict.fromkeys(answer for _, answer in PAIRS if answer in self.by_name)
            pairs = [(named["prompt"], self.by_name[name]) for name in answers if self.by_name[name] != named["prompt"]]
        elif "completion" in named:
            questions = dict.fromkeys(question for question, _ in PAIRS if question in self.by_name)
            rest = _prefer([(name, None) for name in questions if self.by_name[name] != named["completion"]])
            pairs = [(self.by_name[name], named["completion"]) for name, _ in rest]
        else:
            pairs = [(self.by_name[one], self.by_name[two]) for one, two in _prefer(pairs)]
        if len(pairs) > 1:
            raise RecordError(_explain_choice([f"prompt: {one}, completion: {two}" for one, two in pairs]))
        return dict(zip(("prompt", "completion"), pairs[0], strict=True)) if pairs else None

    def find_optional(self, kind: str, keys: dict[str, str]) -> dict[str, str]:
        """Find the optional keys: the system prompt, tools, a label, and so on."""
        wanted = {"messages": ("system", "tools"), "sharegpt": ("system", "tools"),
                  "preference": ("context", "system", "tools")}.get(kind, tuple(OPTIONAL))  # fmt: skip
        found: dict[str, str] = {}
        for target in wanted:
            names = OPTIONAL[target] + (("input",) if target == "context" and self._is_instruction(keys) else ())
            there = [self.by_name[name] for name in names if name in self.by_name]
            there = [self._named(target)] if target in self.chosen else there
            there = [key for key in there if key not in keys.values()]
            if len(there) > 1:
                raise RecordError(_explain_choice([f"{target}: {key}" for key in there]))
            if there:
                found[target] = there[0]
        if kind != "preference" and (label := self._find_label()):
            found["label"] = label
        return found

    def _is_instruction(self, keys: dict[str, str]) -> bool:
        return keys.get("prompt", "").strip().casefold() == "instruction"

    def _find_label(self) -> str | None:
        if "label" in self.chosen:
            return self._named("label")
        there = [self.by_name[name] for name in LABELS if name in self.by_name]
        certain = [key for key in there if self.form_of[key] in ("bool", "int", "float", "str")]
        return certain[0] if certain else None

    def name_kind(self, looked_for: str, keys: dict[str, str]) -> Kind:
        if looked_for == "messages" and self.form_of.get(keys["messages"]) == "sharegpt turns":
            return "sharegpt"
        if looked_for == "alpaca" and (keys["prompt"], keys["completion"]) != ("instruction", "output"):
            return "prompt_completion"
        return looked_for  # type: ignore[return-value]

    def _named(self, target: str) -> str:
        """Return the key that the recipe names for a target. Raises RecordError when the record does not have it."""
        key = self.chosen[target]
        if key not in self.form_of:
            found = ", ".join(self.form_of) or "none"
            raise RecordError(f"columns.{target}: {key!r} is missing or null (found keys: {found})")
        return key


def _prefer(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Drop pairs that are secondary to another pair (`PREFERRED`)."""
    for (prompt, answer), (less_prompt, less_answer) in PREFERRED:
        if any(one == prompt and answer in (None, two) for one, two in pairs):
            pairs = [(one, two) for one, two in pairs if one != less_prompt or less_answer not in (None, two)]
    return pairs


def _explain_choice(choices: Iterable[str]) -> str:
    lines = " or ".join(f"columns: {{{choice}}}" for choice in choices)
    return f"the keys can be read in more than one way: in the source, set {lines}"


def explain_unknown(record: dict[str, Any]) -> str:
    """Explain why the kind of a record is unknown, with the YAML line that sets it."""
    folded = {str(key).strip().casefold() for key in record}
    if folded & set(TREE_COLUMNS) and {"role", "text"} <= folded:
        return "a record is one message of a tree (parent_id): write each path from the root as one list of messages"
    role, content = find_turn_keys(record)
    if role and content and str(record[role]).casefold() in ROLES:
        return f"a record is one message ({role}, {content}): write the messages of a conversation as one list"
    if objects := [str(key) for key, item in record.items() if _form_of(item, (None, None)) == "objects"]:
        line = f"columns: {{messages: {objects[0]}, role: …, content: …}}"
        return f"no known keys: if {objects[0]!r} contains the turns, set {line}"
    texts = [str(key) for key, item in record.items() if isinstance(item, str)]
    found = ", ".join(map(str, record)) or "none"
    if len(texts) < 2:
        return f"no text and no conversation under the keys {found}: set text_key, kind or columns"
    example = f"columns: {{prompt: {texts[0]}, completion: {texts[1]}}}"
    return f"cannot tell which of the keys {found} is the text: set text_key or kind, or assign keys by {example}"
