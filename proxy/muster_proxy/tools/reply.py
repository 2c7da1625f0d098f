"""Reads a constrained reply as it is written: text in, on any chunking, pieces of an answer or of calls out.

A reply is one of

    {"name": "answer", "arguments": {"text": "..."}}          an answer, under the name that was agreed on
    {"name": "calculator", "arguments": {...}}                one call
    [{"name": ..., "arguments": {...}}, ...]                  several calls

The grammar fixes the order of the keys; the reader takes any order. Text that is no such reply (an engine
that did not apply the grammar) is an answer as it stands.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Text:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call has begun; `index` counts the reply's calls from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of a call's arguments, as the JSON text that the model writes."""

    index: int
    text: str


Piece: TypeAlias = Text | CallBegun | Arguments

_Step: TypeAlias = Generator[None, None, str]
_Steps: TypeAlias = Generator[None, None, None]
_Sink: TypeAlias = Callable[[str], None]

_WHITESPACE = " \t\r\n"
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HIGH_SURROGATES = range(0xD800, 0xDC00)
_LOW_SURROGATES = range(0xDC00, 0xE000)


class _NoReplyError(Exception):
    """The text is not of a reply's form."""


class ReplyReader:
    """Reads one reply.

    The parser is a generator that stops wherever the text written so far ends, and goes on from there.

    Args:
        answer_name: The name under which the model answers instead of calling.
    """

    def __init__(self, answer_name: str) -> None:
        self._answer_name = answer_name
        self._written = ""  # everything, while nothing has been made of it
        self._buffer = ""
        self._at = 0
        self._pieces: list[Piece] = []
        self._has_spoken = False
        self._calls = 0
        self._is_plain = False
        self._is_whole = False
        self._parser = self._reply()
        next(self._parser)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text`, the next that the model wrote, completes."""
        self._pieces = []
        if self._is_plain:
            return [Text(text)] if text else []
        if not self._has_spoken:
            self._written += text
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        self._advance()
        return self._pieces

    def finish(self, *, is_cut: bool) -> list[Piece]:
        """The pieces that are left when the model has stopped.

        Args:
            is_cut: Whether it was stopped before its end, by a limit on tokens. What it wrote of a reply
                without having said anything yet is then dropped: half a frame is nobody's answer.
        """
        if self._is_whole or self._has_spoken or self._is_plain or is_cut:
            return []
        return [Text(self._written)] if self._written else []

    def _advance(self) -> None:
        try:
            next(self._parser)
        except StopIteration:
            self._is_whole = True
            self._parser = self._rest()
            next(self._parser)
        except _NoReplyError:
            if self._has_spoken:  # too late to say something else: what was said stands
                self._parser = self._rest()
                next(self._parser)
            else:
                self._is_plain = True
                self._pieces = [Text(self._written)]

    def _say(self, piece: Piece) -> None:
        self._has_spoken = True
        self._written = ""
        match self._pieces[-1:], piece:
            case [Text(before)], Text(text):
                self._pieces[-1] = Text(before + text)
            case [Arguments(index, before)], Arguments(same, text) if index == same:
                self._pieces[-1] = Arguments(index, before + text)
            case _:
                self._pieces.append(piece)

    def _rest(self) -> _Steps:
        while True:  # whitespace after the reply, or what follows a fault
            self._at = len(self._buffer)
            yield

    def _next(self) -> _Step:
        while self._at >= len(self._buffer):
            yield
        self._at += 1
        return self._buffer[self._at - 1]

    def _next_significant(self) -> _Step:
        while True:
            char = yield from self._next()
            if char not in _WHITESPACE:
                return char

    def _expect(self, wanted: str) -> _Steps:
        if (yield from self._next_significant()) != wanted:
            raise _NoReplyError

    def _reply(self) -> _Steps:
        first = yield from self._next_significant()
        if first == "{":
            yield from self._call()
        elif first == "[":
            yield from self._expect("{")
            yield from self._call()
            while (yield from self._next_significant()) == ",":
                yield from self._expect("{")
                yield from self._call()
        else:
            raise _NoReplyError

    def _call(self) -> _Steps:
        """Read the members of a call, its opening brace read already, up to its closing one."""
        name: str | None = None
        early_arguments: list[str] = []
        while True:
            yield from self._expect('"')
            key = yield from self._whole_string()
            yield from self._expect(":")
            if key == "name":
                yield from self._expect('"')
                name = yield from self._whole_string()
                self._begin(name, early_arguments)
            elif key != "arguments":
                raise _NoReplyError
            elif name is None:
                yield from self._value(early_arguments.append)
            else:
                yield from self._arguments(name)
            after = yield from self._next_significant()
            if after == "}":
                return
            if after != ",":
                raise _NoReplyError

    def _begin(self, name: str, early_arguments: list[str]) -> None:
        if name == self._answer_name:
            if early_arguments:
                raise _NoReplyError
            return
        self._say(CallBegun(self._calls, name))
        if early_arguments:
            self._say(Arguments(self._calls, "".join(early_arguments)))
        self._calls += 1

    def _arguments(self, name: str) -> _Steps:
        if name != self._answer_name:
            index = self._calls - 1
            yield from self._value(lambda text: self._say(Arguments(index, text)))
            return
        yield from self._expect("{")
        yield from self._expect('"')
        yield from self._whole_string()
        yield from self._expect(":")
        first = yield from self._next_significant()
        if first == '"':
            yield from self._string(lambda text: self._say(Text(text)))
        else:
            self._at -= 1
            yield from self._value(lambda text: self._say(Text(text)))
        yield from self._expect("}")

    def _value(self, sink: _Sink) -> _Steps:
        """Pass one JSON value on as it is written, without the whitespace before it."""
        depth = 0
        char = yield from self._next_significant()
        while True:
            sink(char)
            if char == '"':
                yield from self._raw_string(sink)
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
            if depth == 0 and char in '"}]':
                return
            char = yield from self._next()
            if depth == 0 and (char in ",}]" or char in _WHITESPACE):
                self._at -= 1  # the end of a number or a literal belongs to what is around it
                return

    def _raw_string(self, sink: _Sink) -> _Steps:
        while True:
            char = yield from self._next()
            sink(char)
            if char == "\\":
                sink((yield from self._next()))
            elif char == '"':
                return

    def _whole_string(self) -> _Step:
        parts: list[str] = []
        yield from self._string(parts.append)
        return "".join(parts)

    def _string(self, sink: _Sink) -> _Steps:
        """Pass a string's characters on, its opening quote read already, up to its closing one."""
        while True:
            char = yield from self._next()
            if char == '"':
                return
            sink((yield from self._escaped()) if char == "\\" else char)

    def _escaped(self) -> _Step:
        char = yield from self._next()
        if char != "u":
            return _ESCAPES.get(char, char)
        code = yield from self._hex()
        if code not in _HIGH_SURROGATES:
            return "\N{REPLACEMENT CHARACTER}" if code in _LOW_SURROGATES else chr(code)
        if (yield from self._next()) != "\\" or (yield from self._next()) != "u":
            raise _NoReplyError
        low = yield from self._hex()
        if low not in _LOW_SURROGATES:
            raise _NoReplyError
        return chr(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00))

    def _hex(self) -> Generator[None, None, int]:
        digits = ""
        for _ in range(4):
            digits += yield from self._next()
        try:
            return int(digits, 16)
        except ValueError:
            raise _NoReplyError from None
