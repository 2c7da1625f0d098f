"""Reading a constrained reply as it is written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_proxy.tools.reply import Arguments, CallBegun, Piece, ReplyReader, Text

CALL = '{"name": "add", "arguments": {"a": [1, {"b": "}\\""}], "c": null}}'


def read(*texts: str, is_cut: bool = False) -> list[Piece]:
    """All pieces of a reply that comes in these texts, those of one kind joined."""
    reader = ReplyReader("answer")
    pieces = [piece for text in texts for piece in reader.feed(text)]
    joined: list[Piece] = []
    for piece in [*pieces, *reader.finish(is_cut=is_cut)]:
        match joined[-1:], piece:
            case [Text(before)], Text(text):
                joined[-1] = Text(before + text)
            case [Arguments(one, before)], Arguments(other, text) if one == other:
                joined[-1] = Arguments(one, before + text)
            case _:
                joined.append(piece)
    return joined


REPLIES: dict[str, tuple[str, list[Piece]]] = {
    "an answer": ('{"name": "answer", "arguments": {"text": "Paris."}}', [Text("Paris.")]),
    "escapes": (
        '{"name":"answer","arguments":{"text":"a\\"b\\\\c\\n\\u00e9\\ud83d\\ude00/"}}',
        [Text('a"b\\c\né😀/')],
    ),
    "an answer in the client's schema": (
        '{"name": "answer", "arguments": {"text": {"a": [1, "x"]}}}',
        [Text('{"a": [1, "x"]}')],
    ),
    "a call": (CALL, [CallBegun(0, "add"), Arguments(0, '{"a": [1, {"b": "}\\""}], "c": null}')]),
    "whitespace": (
        ' {\n "name" : "add" ,\n "arguments" : {} \n}\n',
        [CallBegun(0, "add"), Arguments(0, "{}")],
    ),
    "arguments first": (
        '{"arguments": {"a": 1}, "name": "add"}',
        [CallBegun(0, "add"), Arguments(0, '{"a": 1}')],
    ),
    "several calls": (
        '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]',
        [CallBegun(0, "f"), Arguments(0, '{"x": 1}'), CallBegun(1, "g"), Arguments(1, "{}")],
    ),
    "scalar arguments": (
        '[{"name": "f", "arguments": 12}, {"name": "g", "arguments": true }]',
        [CallBegun(0, "f"), Arguments(0, "12"), CallBegun(1, "g"), Arguments(1, "true")],
    ),
    "plain text": ("Hello, world.", [Text("Hello, world.")]),
    "another object": ('{"city": "Paris"}', [Text('{"city": "Paris"}')]),
    "an array of something else": ("[1, 2]", [Text("[1, 2]")]),
    "a lone surrogate": ('{"name":"answer","arguments":{"text":"a\\udc00b"}}', [Text("a\ufffdb")]),
    "nothing": ("", []),
}


@pytest.mark.parametrize(("text", "pieces"), REPLIES.values(), ids=REPLIES.keys())
def test_a_reply_gives_its_pieces(text: str, pieces: list[Piece]) -> None:
    """Whole, or one character at a time: the same pieces."""
    assert read(text) == pieces
    assert read(*text) == pieces


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
    st.sampled_from([None, 2]),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_arguments_pass_unchanged_on_any_split(
    value: Any, indent: int | None, ascii_only: bool, draw: Any
) -> None:
    """The arguments' text, joined, is exactly what the model wrote, wherever its text is cut."""
    written = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    text = f'[{{"name": "f", "arguments": {written}}},{{"name": "g", "arguments": {written}}}]'
    cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(6)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert read(*parts) == [
        CallBegun(0, "f"),
        Arguments(0, written),
        CallBegun(1, "g"),
        Arguments(1, written),
    ]


@given(st.text(), st.booleans())
def test_any_answer_is_read_as_it_was_meant(answer: str, ascii_only: bool) -> None:
    """A string survives its JSON form, one character at a time."""
    text = json.dumps({"name": "answer", "arguments": {"text": answer}}, ensure_ascii=ascii_only)

    assert read(*text) == ([Text(answer)] if answer else [])


@given(st.text(alphabet='{}[]",:\\ natme1usgr'))
def test_any_text_is_read_without_an_error(text: str) -> None:
    """What is no reply is an answer, and never a failure."""
    assert read(*text) == read(text)


@pytest.mark.parametrize("end", range(len(CALL)))
def test_a_reply_that_is_cut_gives_what_there_is(end: int) -> None:
    """Cut by the limit on tokens, a call is as far as it came, and never half a frame as text."""
    pieces = read(CALL[:end], is_cut=True)

    assert not any(isinstance(piece, Text) for piece in pieces)
    assert all(
        CALL[CALL.index("{", 1) :].startswith(piece.text) for piece in pieces if isinstance(piece, Arguments)
    )


def test_an_answer_streams_as_it_is_written() -> None:
    """Each text that the model writes comes out at once."""
    reader = ReplyReader("answer")
    assert reader.feed('{"name": "answer", "arguments": {"text": "Pa') == [Text("Pa")]
    assert reader.feed("ris") == [Text("ris")]
    assert reader.feed('."}}') == [Text(".")]
    assert reader.finish(is_cut=False) == []
