"""Tests the places of leaves, in marked texts that a record fits and in records that are analysed alone."""

import pytest

from data_prep.parse.kinds import Conversation
from data_prep.render.chat import ChatTemplate
from data_prep.render.leaves import Leaf, mark_leaves
from data_prep.render.located import Located, MarkedSource, Place, ReplacedSource, count_common_prefix, fit
from data_prep.render.rendering import Renderer

MARK = "\ue0000000000\ue001"


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("A", "[A]"),
        ("  A\n", "[  A\n]"),
        ("  A\n", "[A]"),
        ("  A\n", "[A\n]"),
        ("  A\n", "[  A]"),
        ("\n\n A \n", "[ A ]"),
        ('say "é"\n!', '[say \\"é\\"\\n!]'),
        ("]", "[]]"),
    ],
)
def test_a_leaf_fits_whole_trimmed_or_escaped(said: str, text: str):
    located = Located(f"[{MARK}] end", [Place(0, 1, 10)], [])
    found = fit(located, [Leaf(0, "content", said)], f"{text} end")
    assert found is not None
    assert found.move((1, 10)) == (1, len(text) - 1)
    assert found.move((11, 15)) == (len(text), len(text) + 4)


@pytest.mark.parametrize("text", ["[B] end", "(A] end", "[A] end.", "[A]", "[ A] end"])
def test_another_text_does_not_fit(text: str):
    assert fit(Located(f"[{MARK}] end", [Place(0, 1, 10)], []), [Leaf(0, "content", "A")], text) is None


def test_replaced_leaves_are_where_marked_ones_are():
    renderer = Renderer("{% for m in messages %}<{{ m.role }}>{{ m.name }}{{ m.content | trim }}{% endfor %}", {})
    messages = [{"role": "user", "content": " Q ", "name": "Bo"}, {"role": "assistant", "content": "AA"}]
    marked = mark_leaves(messages)
    text = renderer.render(messages, None).text
    assert text == "<user>BoQ<assistant>AA"
    replaced = ReplacedSource(renderer, messages, marked.leaves, None).whole()
    assert [text[p.start : p.end] for p in replaced.places] == ["Bo", "Q", "AA"]
    whole = MarkedSource(renderer, marked.messages, marked.leaves, None).whole()
    fitted = fit(whole, marked.leaves, text)
    assert fitted is not None
    assert [fitted.move((p.start, p.end)) for p in whole.places] == [(p.start, p.end) for p in replaced.places]
    # Leaves are numbered in the order of the keys: content, name, content.
    assert [p.leaf for p in replaced.places] == [p.leaf for p in whole.places] == [1, 0, 2]


def test_a_record_of_a_known_frame_costs_one_rendering(monkeypatch: pytest.MonkeyPatch):
    counts = []
    run = Renderer._run
    monkeypatch.setattr(Renderer, "_run", lambda self, *args, **more: counts.append(1) or run(self, *args, **more))
    chat = ChatTemplate(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}<|end|>{% endfor %}", {}
    )  # fmt: skip
    for i, said in enumerate(("A", "  B ", "\nC")):
        call = {"id": f"c{i}", "type": "function", "function": {"name": "f", "arguments": {"a": f'x"{i}'}}}
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": said, "tool_calls": [call]}]
        counts.clear()
        chat.render(Conversation(messages), "assistant")
    assert len(counts) == 1


def test_common_prefix():
    assert [count_common_prefix(a, b) for a, b in (("", "a"), ("abc", "abd"), ("ab", "abc"), ("x", "y"))] == [
        0,
        2,
        2,
        0,
    ]
