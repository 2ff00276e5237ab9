import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import UserError
from data_prep.options import DataSection, TokenizerSection
from data_prep.recipe import (
    COMMAND_LINE,
    Grammar,
    Layer,
    Names,
    Origin,
    apply,
    check_sections,
    dump_sections,
    either,
    load_data_recipe,
    load_recipe,
    merge,
)
from data_prep.recipe.yaml_file import parse_value, parse_yaml

SECTIONS = {"data": DataSection, "tokenizer": TokenizerSection}


def write(directory: Path, name: str, text: str) -> str:
    (directory / name).write_text(text, encoding="utf-8")
    return str(directory / name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("6e4", 6e4), ("1.5", 1.5), (".5", 0.5), ("-.inf", -math.inf), ("1_000", 1000), ("-3", -3),
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("true", True), ("False", False), ("null", None), ("~", None),
        ("0123", "0123"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("1e5x", "1e5x"),
        ("'1'", "1"), ("[1, a]", [1, "a"]),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "r.yaml:4: duplicate key a.b: first written in line 2"),
        ("a: [1,\n", "r.yaml:2: not valid YAML"),
        ("- 1\n", "r.yaml:1: expected `key: value` lines"),
        ("base: &x\n  a: 1\nb:\n  <<: *x\n", "r.yaml:4: merge keys (`<<`) are not supported: use `extends"),
        ("a: !!python/object:os.system x\n", "r.yaml:1: cannot read 'x'"),
        ("[a, b]: 1\n", "r.yaml:1: a key must be text"),
        ("a: &a [*a]\n", "r.yaml: an anchor contains itself"),
    ],
)
def test_bad_yaml_names_file_and_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_yaml(text, "r.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_node_knows_its_line() -> None:
    layer = parse_yaml("data:\n  seq_len: 8\n  sources:\n    - path: a\n    - path: b\n      weight: 2.0\n", "r.yaml")
    assert layer.origin(("data", "seq_len")) == Origin("r.yaml", 2)
    assert layer.origin(("data", "sources", 1, "weight")) == Origin("r.yaml", 6)
    assert str(layer.origin(("data", "seed"))) == "default"
    assert layer.nearest_origin(("data", "sources", 1, "nothing")) == Origin("r.yaml", 5)


def test_later_layers_win(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "data: {seq_len: 1, seed: 1, store_dir: a}\n")
    write(tmp_path, "b.yaml", "data: {seq_len: 2, seed: 2}\n")
    layer, file = load_recipe(write(tmp_path, "c.yaml", "extends: [a, b]\ndata:\n  seq_len: 3\n"))
    assert layer.values == {"data": {"seq_len": 3, "seed": 2, "store_dir": "a"}}
    assert [Path(layer.origin(("data", k)).source).name for k in ("seq_len", "seed", "store_dir")] == [
        "c.yaml", "b.yaml", "a.yaml",
    ]  # fmt: skip
    assert file.name == "c.yaml"


PROFILE = (
    "data: {seed: 1}\nalone:\n  model: {kind: minigpt, config: {hidden_size: 8}}\n  data: {seq_len: 64, seed: 9}\n"
)
SMALL = {"kind": "minigpt", "config": {"hidden_size": 8}}


@pytest.mark.parametrize(
    ("text", "model", "seq_len"),
    [
        (None, SMALL, 64),  # loaded by its name
        ("extends: p\n", SMALL, 64),
        ("extends: [p, q]\n", SMALL, 64),  # q is a profile, too
        ("extends: [q, p]\n", SMALL, 64),
        ("extends: [p, m]\n", {"kind": "minigpt"}, None),  # m is a recipe with a model
        ("extends: [m, p]\n", {"kind": "minigpt"}, None),
        ("extends: p\ndata: {seq_len: 32}\n", SMALL, 32),  # the recipe's own keys have priority
        ("extends: p\nmodel: {dtype: float32}\n", {**SMALL, "dtype": "float32"}, 64),
        ("extends: p\nmodel: {path: org/x}\n", {"path": "org/x"}, 64),  # weights define their shape
        ("extends: p\nmodel: {config: {model_type: qwen2}}\n", {"config": {"model_type": "qwen2"}}, 64),
        ("extends: between\n", SMALL, 64),  # between extends p
    ],
)
def test_a_profile_brings_its_model_where_no_recipe_beside_it_does(tmp_path, text, model, seq_len) -> None:
    profile = write(tmp_path, "p.yaml", PROFILE)
    write(tmp_path, "q.yaml", "data: {store_dir: s}\n")
    write(tmp_path, "m.yaml", "model: {kind: minigpt}\n")
    write(tmp_path, "between.yaml", "extends: p\n")
    values = load_recipe(profile if text is None else write(tmp_path, "r.yaml", text))[0].values
    assert values["model"] == model
    assert values["data"].get("seq_len") == seq_len
    assert values["data"]["seed"] == 1


def test_weights_replace_the_tokenizer_that_a_profile_trains(tmp_path: Path) -> None:
    write(tmp_path, "p.yaml", "alone:\n  tokenizer: {vocab_size: 1024}\n")
    recipe = write(tmp_path, "r.yaml", "extends: p\nmodel: {path: org/x}\n")
    assert load_data_recipe(["--config", recipe])[1].path == "org/x"


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b\n")
    write(tmp_path, "b.yaml", "# b\nextends: a\n")
    with pytest.raises(UserError, match=r"b\.yaml:2: extends forms a cycle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "extends: minigpt_smal\n",
            "r.yaml:1: extends: recipe 'minigpt_smal' does not exist; did you mean minigpt_small? (others: ",
        ),
        ("extends: nowhere\n", "r.yaml:1: extends: recipe 'nowhere' is neither a file nor one of: debug, "),
        ("extends: 3\n", "r.yaml:1: extends = 3: must be the name of a recipe"),
        ("alone: 3\n", "r.yaml:1: alone = 3: must be a mapping of sections"),
    ],
)
def test_bad_extends(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_recipe(write(tmp_path, "r.yaml", text))
    assert message in str(error.value)


def test_a_list_is_replaced_whole_and_forgets_its_lines() -> None:
    lower = parse_yaml("data:\n  sources:\n    - path: a\n    - path: b\n", "low")
    merged = merge(lower, parse_yaml("data:\n  sources:\n    - path: c\n", "up"))
    assert merged.values == {"data": {"sources": [{"path": "c"}]}}
    assert ("data", "sources", 1) not in merged.origins
    assert merged.origin(("data", "sources", 0, "path")) == Origin("up", 3)


def test_exclusive_keys_replace_each_other_across_layers_only() -> None:
    group = either(("t", "a"), ("t", "b"))
    lower, upper = parse_yaml("t: {a: 1}", "low"), parse_yaml("t: {b: 2}", "up")
    assert merge(lower, upper, group).values == {"t": {"b": 2}}
    assert merge(lower, parse_yaml("t: {b: -1}", "up"), group).values == {"t": {"a": 1, "b": -1}}
    both = parse_yaml("t: {a: 3, b: 4}", "up")
    assert merge(lower, both, group).values == {"t": {"a": 3, "b": 4}}


# Sections and values have different names, so no recipe has a number where another has a section.
trees = st.recursive(
    st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(trees, trees, trees)
def test_merge_is_associative_and_keeps_its_arguments(a: dict, b: dict, c: dict) -> None:
    layers = [Layer.of(tree, Origin(name)) for tree, name in ((a, "a"), (b, "b"), (c, "c"))]
    left = merge(merge(layers[0], layers[1]), layers[2])
    right = merge(layers[0], merge(layers[1], layers[2]))
    assert left.values == right.values
    assert [layer.values for layer in layers] == [a, b, c]
    assert merge(left, left).values == left.values


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from(["no", "1e5", "a_b"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(min_size=1).filter(lambda key: key != "<<"), values, min_size=1, max_size=3))
def test_dump_loads_again(tree: dict) -> None:
    if "<<" in repr(tree):
        return  # refused on reading, by design
    assert parse_yaml(dump_sections(tree, Layer()), "dump").values == tree


def grammar() -> Grammar:
    names = Names({"length": "data.seq_len"})
    return Grammar(SECTIONS, {"config": "config"}, names, {"data.num_proc": "is not for you"})


@pytest.mark.parametrize(
    "argv",
    [
        ["data.seq_len=64"], ["--data.seq_len", "64"], ["--seq_len", "64"], ["--seq-len=64"], ["--length", "64"],
        ["data.seq-len=64"], ["--data.seq-len=64"], ["--seq_len", "1", "--seq_len", "64"],
    ],
)  # fmt: skip
def test_ways_to_write_an_override(argv: list[str]) -> None:
    layer = apply(Layer(), grammar().parse(argv), SECTIONS)
    assert layer.values == {"data": {"seq_len": 64}}
    assert layer.origin(("data", "seq_len")) == COMMAND_LINE


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", "1"], "--seed is ambiguous: write one of --data.seed, --tokenizer.seed"),
        (["--seq_lne", "1"], "unknown flag --seq_lne: did you mean --seq_len?"),
        (["dat.seq_len=1"], "unknown section dat: did you mean data?"),
        (["--seq_len"], "--seq_len needs a value"),
        (["--seq_len", "--packing", "none"], "--seq_len needs a value"),
        (["seq_len=1"], "unexpected 'seq_len=1': write section.key=value or --key value"),
        (["64"], "unexpected '64'"),
        (["--num_proc", "2"], "--num_proc: is not for you"),
    ],
)
def test_bad_command_lines(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        grammar().parse(argv)
    assert str(error.value).startswith("command line: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("123", "123"), ("null", None), ("# a: b", "# a: b"), ("def f(x):", "def f(x):"), ("", ""), ("'q'", "'q'")],
)
def test_a_key_that_takes_text_gets_it_as_typed(typed: str, value: object) -> None:
    parsed = grammar().parse(["--chat_template", typed])
    assert parsed.assignments == [(("data", "chat_template"), value)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  seq_lenn: 8\n", "r.yaml:2: unknown key data.seq_lenn: did you mean data.seq_len?"),
        ("data:\n  vocab_size: 8\n", "r.yaml:2: unknown key data.vocab_size: did you mean tokenizer.vocab_size?"),
        ("dta:\n  seq_len: 8\n", "r.yaml:1: unknown section dta: did you mean data?"),
        ("data:\n  seq_len: many\n", "r.yaml:2: data.seq_len = 'many': must be an integer"),
        ("data:\n  seq_len: '8'\n", "r.yaml:2: data.seq_len = '8': must be an integer"),
        ("data:\n  seq_len: 8.0\n", "r.yaml:2: data.seq_len = 8.0: must be an integer"),
        ("data:\n  seq_len: 1\n", "r.yaml:2: data.seq_len = 1: must be greater than or equal to 8"),
        ("data:\n  packing: best-fit\n", "must be one of best_fit, wrapped, none: did you mean best_fit?"),
        ("data:\n  num_proc: all\n", "r.yaml:2: data.num_proc = 'all': must be an integer or auto"),
        ("data:\n  sources: x\n", "r.yaml:2: data.sources = 'x': must be a list of mappings with the keys path"),
        ("data:\n  sources:\n    - pth: a\n", "r.yaml:3: unknown key data.sources.0.pth: did you mean data"),
        ("data:\n  sources:\n    - path: 3\n", "r.yaml:3: data.sources.0.path = 3: must be text"),
        ("data: 3\n", "r.yaml:1: data = 3: must be a section with keys"),
        ("tokenizer:\n  seed: true\n", "r.yaml:2: tokenizer.seed = true: must be an integer"),
    ],
)  # fmt: skip
def test_bad_values(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_sections(parse_yaml(text, "r.yaml"), SECTIONS)
    assert message in str(error.value)


def test_data_recipe_reads_its_own_sections_only(tmp_path: Path) -> None:
    recipe = write(tmp_path, "r.yaml", "model: {path: org/model}\nnonsense: 1\ndata:\n  seq_len: 64\n")
    data, tokenizer = load_data_recipe(["--config", recipe, "--packing", "none"])
    assert (data.seq_len, data.packing) == (64, "none")
    assert tokenizer.path == "org/model"  # a pretrained model defines its tokenizer
    assert load_data_recipe([]) == (DataSection.model_validate({}), TokenizerSection.model_validate({}))
