"""The parts' logs on one terminal."""

import asyncio
import io

from muster_proxy.up.output import Output


async def copied(*chunks: bytes) -> list[str]:
    """The lines that a part's output makes, when it comes in these chunks."""
    stream, source = io.StringIO(), asyncio.StreamReader()
    for chunk in chunks:
        source.feed_data(chunk)
    source.feed_eof()
    await Output(stream).copy("proxy", source)
    return stream.getvalue().splitlines()


async def test_each_line_has_its_parts_name() -> None:
    """Whatever the chunks; the last line needs no end."""
    assert await copied(b"one\ntw", b"o\nthr", b"ee") == ["proxy  | one", "proxy  | two", "proxy  | three"]


async def test_bytes_that_are_no_text_do_not_stop_it() -> None:
    """They are shown as replaced."""
    assert await copied(b"a\xffb\n") == ["proxy  | a\N{REPLACEMENT CHARACTER}b"]


async def test_a_line_without_end_is_broken() -> None:
    """What is held is bounded; nothing is lost."""
    lines = await copied(b"x" * 200_000, b"\n")

    assert len(lines) > 1
    assert "".join(line.removeprefix("proxy  | ") for line in lines) == "x" * 200_000


async def test_a_reader_that_is_gone_does_not_end_the_stack() -> None:
    """The terminal closed; the parts go on until their signals come."""
    written: list[str] = []

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            raise BrokenPipeError

    output = Output(Closed())
    output.say("one")
    output.show("two")

    assert written == ["muster | one", "two"]
