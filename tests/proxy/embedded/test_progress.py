"""What a fetch shows."""

import io

from muster_proxy.embedded.progress import PlainProgress, TerminalProgress, progress_on


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


def test_plain_progress_tells_each_tenth_once() -> None:
    """A log file gets a line for each tenth, not one for each piece, and none for a step back."""
    stream = io.StringIO()
    progress = PlainProgress(stream)

    progress.start("the hub", 15_000_000, 100_000_000)
    for done_mb in (16, 20, 21, 39, 40, 12, 40, 100):
        progress.advance(done_mb * 1_000_000)
    progress.stop()

    assert stream.getvalue().splitlines() == [
        "fetching the model from the hub: 15 of 100 MB here",
        "fetching the model: 20 %",
        "fetching the model: 30 %",
        "fetching the model: 40 %",
        "fetching the model: 100 %",
    ]


def test_terminal_progress_draws_a_bar_for_each_source() -> None:
    """A terminal gets a bar with the bytes and the source, and keeps the notes between the bars."""
    stream = Terminal()
    progress = progress_on(stream)

    progress.start("the hub [1]", 0, 100_000_000)
    progress.advance(20_000_000)
    progress.note("the hub: it answered 404")
    progress.start("the index", 20_000_000, 100_000_000)
    progress.advance(100_000_000)
    progress.stop()

    drawn = stream.getvalue()
    assert isinstance(progress, TerminalProgress)
    assert "the hub [1]" in drawn
    assert "20.0/100.0 MB" in drawn
    assert "the hub: it answered 404\n" in drawn
    assert "100.0/100.0 MB" in drawn


def test_a_pipe_gets_plain_lines() -> None:
    """What is no terminal gets no control characters."""
    stream = io.StringIO()
    progress = progress_on(stream)

    progress.start("the hub", 0, 1)
    progress.stop()

    assert isinstance(progress, PlainProgress)
    assert "\x1b" not in stream.getvalue()
