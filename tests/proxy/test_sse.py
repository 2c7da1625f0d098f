"""Event borders on any chunking."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_proxy import sse

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.binary(max_size=12), max_size=6), ENDS, st.randoms(use_true_random=False))
def test_events_pass_whole_and_nothing_is_lost(events: list[bytes], end: bytes, draw: object) -> None:
    """Whatever the split, what passes are the same bytes, and always up to the end of an event."""
    events = [event.replace(b"\r", b"").replace(b"\n", b"") for event in events]
    stream = b"".join(b"data: " + event + end * 2 for event in events)
    borders, passed, at = sse.EventBorders(), b"", 0
    while at < len(stream):
        size = draw.randrange(1, 8)  # type: ignore[attr-defined]
        passed += borders.feed(stream[at : at + size])
        at += size
        assert passed == b"" or passed.endswith(end * 2)

    assert passed + borders.held == stream
    assert borders.held == b""
    assert list(sse.data_of(passed)) == events


def test_an_event_without_end_is_refused() -> None:
    """What is held is bounded."""
    borders = sse.EventBorders()
    borders.feed(b"data: " + b"x" * (sse.MAX_EVENT_BYTES - 10))
    with pytest.raises(sse.EventTooLargeError):
        borders.feed(b"x" * 10)


def test_comments_and_other_fields_are_passed_over() -> None:
    """Only data counts; several data lines are one event."""
    assert list(sse.data_of(b": ping\n\nevent: x\nid: 3\ndata: a\ndata: b\n\ndata:c\n\n")) == [b"a\nb", b"c"]
