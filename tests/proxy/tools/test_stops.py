"""Ending an answer at a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from muster_proxy.tools.stops import StopText


@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    st.randoms(use_true_random=False),
)
def test_text_ends_at_the_first_stop_string_on_any_split(text: str, stops: list[str], draw: object) -> None:
    """What passes is what stands before the stop string that ends first, wherever the text is cut."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    cut = draw.randrange(len(text) + 1)  # type: ignore[attr-defined]
    passing = StopText(stops)

    passed = passing.feed(text[:cut]) + passing.feed(text[cut:])

    assert passed + passing.finish() == (text[: min(found)[1]] if found else text)
    assert passing.has_stopped == bool(found)


def test_text_that_cannot_be_a_stop_string_is_not_held() -> None:
    """Only an end that may begin a stop string waits for what comes next."""
    passing = StopText(["END"])
    assert passing.feed("hello E") == "hello "
    assert passing.feed("x") == "Ex"
