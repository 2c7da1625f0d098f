"""Paths into JSON as LangGraph's clients write them: `values.messages[-1].content`."""

import re
from collections.abc import Sequence
from typing import Any, cast

from muster_agent.api.requests import ApiError

Path = Sequence[str | int]
"""Names of keys, and places in lists; -1 is the last."""

_MOST_CHARACTERS = 512
_PATH = re.compile(r"[^.\[\]]+(\[-?\d{1,9}\])*(\.[^.\[\]]+(\[-?\d{1,9}\])*)*")
_STEP = re.compile(r"\[(-?\d+)\]|([^.\[\]]+)")


def parsed(text: str) -> Path:
    """A path.

    Raises:
        ApiError: 422, it is none.
    """
    if len(text) > _MOST_CHARACTERS or _PATH.fullmatch(text) is None:
        raise ApiError(422, "extract must be an object of paths like values.messages[-1].content")
    return [int(place) if place else name for place, name in _STEP.findall(text)]


def at(value: Any, path: Path) -> Any:  # noqa: ANN401 - JSON
    """What is at a path; None where there is nothing."""
    for step in path:
        value = _inside(value, step)
    return value


def _inside(value: object, step: str | int) -> object:
    if isinstance(step, str):
        return cast("dict[str, object]", value).get(step) if isinstance(value, dict) else None
    items = cast("list[object]", value) if isinstance(value, list) else []
    return items[step] if -len(items) <= step < len(items) else None
