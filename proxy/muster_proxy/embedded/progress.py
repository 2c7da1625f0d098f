"""How a fetch tells how far it is: the seam, and what a terminal or a log file shows of it."""

from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID


class Progress(Protocol):
    """What `fetch_weights` tells as it goes. Calls come from one thread."""

    def start(self, source: str, done_bytes: int, total_bytes: int) -> None:
        """Bytes come from `source` from now on; `done_bytes` are here. Called for each source anew."""
        ...

    def advance(self, done_bytes: int) -> None:
        """`done_bytes` of the whole are here now; fewer than before when a source starts over."""
        ...

    def note(self, message: str) -> None:
        """Something happened that the user should read, in a line."""
        ...

    def stop(self) -> None:
        """The fetch is over, well or not; called once and last."""
        ...


class PlainProgress:
    """A line for each tenth of the way: for log files and pipes.

    Args:
        stream: Where lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total_bytes = 1
        self._told_tenths = 0

    def start(self, source: str, done_bytes: int, total_bytes: int) -> None:
        """Tell the source and where it goes on."""
        self._total_bytes = total_bytes
        self._told_tenths = _tenths(done_bytes, total_bytes)
        self.note(
            f"fetching the model from {source}: {done_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB here"
        )

    def advance(self, done_bytes: int) -> None:
        """Tell each tenth once."""
        tenths = _tenths(done_bytes, self._total_bytes)
        if tenths > self._told_tenths:
            self._told_tenths = tenths
            self.note(f"fetching the model: {tenths * 10} %")

    def note(self, message: str) -> None:
        """Write the line at once, so that a pipe's reader sees it."""
        print(message, file=self._stream, flush=True)

    def stop(self) -> None:
        """Leave nothing open: each line is already out."""


def _tenths(done_bytes: int, total_bytes: int) -> int:
    return 10 * done_bytes // total_bytes


class TerminalProgress:
    """A bar with bytes, rate, time left and source.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: RichBar | None = None
        self._task: TaskID | None = None

    def start(self, source: str, done_bytes: int, total_bytes: int) -> None:
        """Draw a bar for this source in the place of the last one."""
        self.stop()
        self._bar = _new_bar(self._stream)
        self._task = self._bar.add_task(source, total=total_bytes, completed=done_bytes)
        self._bar.start()

    def advance(self, done_bytes: int) -> None:
        """Move the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done_bytes)

    def note(self, message: str) -> None:
        """Write the line above the bar, which an answer to the next `start` replaces."""
        self.stop()
        print(message, file=self._stream, flush=True)

    def stop(self) -> None:
        """Leave the bar as it stands and give the cursor back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _new_bar(stream: TextIO) -> "RichBar":
    # rich costs 50 ms of import, and a start from the cache draws nothing.
    from rich import progress  # noqa: PLC0415 - as said above
    from rich.console import Console  # noqa: PLC0415 - likewise

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(file=stream),
    )


def progress_on(stream: TextIO) -> Progress:
    """A bar when `stream` is a terminal, else plain lines."""
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream)
