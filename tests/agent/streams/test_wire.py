"""JSON of whatever a state may hold."""

import functools
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from muster_agent.wire import plain, to_json


def _nested(levels: int, inside: object = "x") -> Any:
    return functools.reduce(lambda value, _: [value], range(levels), inside)


class _Mute:
    def __str__(self) -> str:
        raise RuntimeError("it has no text")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (2**64, "18446744073709551616"),
        (-(2**63) - 1, "-9223372036854775809"),
        (2**64 - 1, 2**64 - 1),
        (10**5000, "<int>"),  # Python refuses to write so many digits
        ("a\ud800", "a?"),
        (_Mute(), "<_Mute>"),
        ({2**70: True}, {str(2**70): True}),
        ([2**64, datetime(2026, 1, 2, tzinfo=UTC)], ["18446744073709551616", "2026-01-02T00:00:00+00:00"]),
    ],
    ids=["long", "long and negative", "just short", "very long", "surrogate", "mute", "key", "beside"],
)
def test_what_has_no_json(value: object, told: object) -> None:
    """It becomes text, and what stands beside it stays what it is."""
    assert plain({"value": value, "beside": [1, None, 1.5]}) == {"value": told, "beside": [1, None, 1.5]}


@pytest.mark.parametrize("levels", [300, 100_000])
def test_what_is_nested_too_deeply(levels: int) -> None:
    """It becomes text where it is too deep, with room for what it will be part of."""
    written = to_json({"deep": _nested(levels), "beside": 1})

    assert json.loads(written)["beside"] == 1
    assert json.loads(to_json(_nested(40, plain(_nested(levels)))))


def test_what_contains_itself() -> None:
    """It ends somewhere."""
    circle: list[Any] = []
    circle.append(circle)

    assert json.loads(to_json({"circle": circle}))


def test_a_tool_call_of_a_model_that_went_astray() -> None:
    """A message is written field by field though its arguments are deep or its numbers long."""
    calls: list[Any] = [{"name": "add", "args": {"a": 2**70, "deep": _nested(400)}, "id": "1"}]

    told = plain([AIMessage("text", tool_calls=calls)])

    assert (told[0]["type"], told[0]["content"]) == ("ai", "text")
    assert told[0]["tool_calls"][0]["args"]["a"] == str(2**70)
