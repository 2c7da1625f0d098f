"""Event borders on any chunking."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_proxy import sse

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXTS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12).map(str.encode),
    min_size=1,
    max_size=6,
)


def chunks(stream: bytes, cuts: list[int]) -> list[bytes]:
    """A stream cut at some places."""
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[begin:end] for begin, end in itertools.pairwise(places)]


CUTS = st.lists(st.integers(0, 1000), max_size=20)


@given(TEXTS, ENDS, CUTS)
def test_events_pass_whole_and_nothing_is_lost(texts: list[bytes], end: bytes, cuts: list[int]) -> None:
    """Whatever the split, what passes are the same bytes, and always up to the end of an event."""
    stream = b"".join(b"data: " + text + end * 2 for text in texts)
    borders, passed = sse.EventBorders(), b""
    for chunk in chunks(stream, cuts):
        passed += borders.feed(chunk)

        assert passed == b"" or passed.endswith(end * 2)

    assert passed == stream
    assert borders.held == b""
    assert list(sse.data_of(passed)) == texts
    assert b"".join(sse.events_of(passed)) == stream
    assert len(list(sse.events_of(passed))) == len(texts)


@given(st.lists(st.tuples(TEXTS, ENDS, ENDS), min_size=1, max_size=4), CUTS)
def test_line_ends_may_be_mixed(parts: list[tuple[list[bytes], bytes, bytes]], cuts: list[int]) -> None:
    """A CR LF that is cut in two is one line end, and each run that passes reads as a part of the whole."""
    stream = b"".join(
        b"".join(b"data: " + text + line for text in texts) + blank for texts, line, blank in parts
    )
    stream += b": the last\n\n"
    borders = sse.EventBorders()
    runs = [run for chunk in chunks(stream, cuts) if (run := borders.feed(chunk))]

    assert b"".join(runs) == stream
    assert [data for run in runs for data in sse.data_of(run)] == list(sse.data_of(stream))
    assert b"".join(sse.events_of(stream)) == stream


@given(st.binary(max_size=40), CUTS)
def test_bytes_of_any_kind_stay_in_order(stream: bytes, cuts: list[int]) -> None:
    """What passes and what is held are together what came."""
    borders = sse.EventBorders()
    passed = b"".join(borders.feed(chunk) for chunk in chunks(stream, cuts))

    assert passed + borders.held == stream
    assert sse.whole_events(stream).startswith(passed)


def test_every_byte_by_itself_makes_the_same_events() -> None:
    """Letters of several bytes are cut too."""
    stream = "data: é€𝄞\r\n\r\ndata: [DONE]\r\n\r\n".encode()
    borders = sse.EventBorders()
    runs = [run for at in range(len(stream)) if (run := borders.feed(stream[at : at + 1]))]

    assert runs == ["data: é€𝄞\r\n\r\n".encode(), b"data: [DONE]\r\n\r\n"]


def test_an_event_without_end_is_refused() -> None:
    """What is held is bounded."""
    borders = sse.EventBorders()
    borders.feed(b"data: " + b"x" * (sse.MAX_EVENT_BYTES - 10))
    with pytest.raises(sse.EventTooLargeError):
        borders.feed(b"x" * 10)


def test_a_byte_order_mark_is_no_part_of_a_field() -> None:
    """A stream may begin with one."""
    assert list(sse.data_of(b"\xef\xbb\xbfdata: a\n\n")) == [b"a"]


def test_comments_and_other_fields_are_passed_over() -> None:
    """Only data counts; several data lines are one event, and one without a colon is empty."""
    run = b": ping\n\nevent: x\nid: 3\ndata: a\ndata: b\n\ndata:c\n\ndata\n\n"

    assert list(sse.data_of(run)) == [b"a\nb", b"c", b""]


@pytest.mark.parametrize(
    "run",
    [
        b'data: {"a": "}{"}\n\n',
        b'data: {"a": 1}\n\ndata: {"b": 2}\n\n',
        b'event: x\r\ndata:{"a": 1}\r\n\r\n',
        b'data: {"a":\ndata: 1}\n\n',
        b": ping\n\n",
        b'data: {"a": 1}\n\ndata: [DONE]\n\n',
    ],
)
def test_json_objects_and_the_end_are_understood(run: bytes) -> None:
    """However they are laid out."""
    assert sse.is_understood(run)


@pytest.mark.parametrize(
    "run",
    [
        b'data: {"a": 1}{"b": 2}\n\n',
        b'data: {"a": 1}\ndata: {"b": 2}\n\n',
        b"data: {oops}\n\n",
        b"data: oops\n\n",
        b"data: [1]\n\n",
        b'data: {"a": 1\n\n',
        b'data: {"a": 1}\n\ndata: <html>\n\n',
        b"data: {" + b'"a":{' * 100_000 + b"}\n\n",
    ],
)
def test_other_data_is_not_understood(run: bytes) -> None:
    """Two objects in one event, or what is no JSON, are a fault of the engine's."""
    assert not sse.is_understood(run)
