"""Exceptions for logs: kinds and frames, without the texts, which may quote a prompt or a key."""

import traceback
from collections.abc import Generator
from itertools import pairwise
from typing import cast

_CAUSED = "The above exception was the direct cause of the following exception:"
_MEANWHILE = "During handling of the above exception, another exception occurred:"
_INDENT = "  "


def trace_of(error: BaseException) -> str:
    """What Python would print of an exception, of those before it and those it is a group of, but for every text."""
    return "\n".join(_lines(error))


def _lines(error: BaseException) -> Generator[str]:
    oldest_first = _chain(error)[::-1]
    for before, after in pairwise(oldest_first):
        yield from _one(before)
        yield from ("", _CAUSED if after.__cause__ is before else _MEANWHILE, "")
    yield from _one(error)


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and those that were raised before it, newest first."""
    chain = [error]
    told = {id(error)}  # one can be raised again while what it has led to is handled
    while (before := _before(chain[-1])) is not None and id(before) not in told:
        chain.append(before)
        told.add(id(before))
    return chain


def _before(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _one(error: BaseException) -> Generator[str]:
    if error.__traceback__ is not None:  # it was raised, and not only made
        yield "Traceback (most recent call last):"
    # The lines of source that are in it are code, and hold nothing that came with a request.
    yield from "".join(traceback.format_tb(error.__traceback__)).splitlines()
    kind = type(error)
    yield kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(error, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from (_INDENT + line for line in _lines(each))
