"""Writes the parts' logs to one terminal, each line under its part's name."""

import asyncio
import contextlib
import sys
from typing import TextIO

_COLOURS = {"engine": "\033[36m", "proxy": "\033[32m", "agent": "\033[35m", "muster": "\033[1m"}
_RESET = "\033[0m"
_CHUNK_BYTES = 64 * 1024


class Output:
    """The terminal that all parts share.

    Args:
        stream: Where lines go.
    """

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._is_coloured = stream.isatty()

    def say(self, text: str) -> None:
        """Write lines of the supervisor's own."""
        for line in text.splitlines():
            self._write("muster", line)

    def show(self, text: str) -> None:
        """Write lines that are there to be copied: without a prefix."""
        self._print(text)

    async def copy(self, part: str, source: asyncio.StreamReader) -> None:
        """Write a part's lines until it ends; a line without an end is broken, never held without bound."""
        held = b""
        while chunk := await source.read(_CHUNK_BYTES):
            *lines, held = (held + chunk).split(b"\n")
            if len(held) > _CHUNK_BYTES:
                lines, held = [*lines, held], b""
            for line in lines:
                self._write(part, line.decode("utf-8", "replace"))
        if held:
            self._write(part, held.decode("utf-8", "replace"))

    def _write(self, part: str, line: str) -> None:
        prefix = f"{part:<6} |"
        if self._is_coloured:
            prefix = f"{_COLOURS[part]}{prefix}{_RESET}"
        self._print(f"{prefix} {line}")

    def _print(self, text: str) -> None:
        # Whoever read this may be gone; the stack is stopped by its signals, not by its log.
        with contextlib.suppress(OSError):
            print(text, file=self._stream, flush=True)
