"""Ends an answer at the client's stop strings, where the engine cannot: it sees the frame around it."""

from collections.abc import Sequence


class StopText:
    """Passes text on up to the stop string that is complete first, as if it came character by character.

    Args:
        stops: The strings that end the text; they are no part of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held: str = ""
        self.has_stopped = False

    def feed(self, text: str) -> str:
        """The text that can be passed on: all but an end that may be the beginning of a stop string."""
        if self.has_stopped or not self._stops:
            return "" if self.has_stopped else text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.has_stopped, self._held = True, ""
            return text[: min(found)[1]]
        end = len(text) - self._held_size(text)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> str:
        """What was held back when the text ends."""
        held = self._held
        self._held = ""
        return held

    def _held_size(self, text: str) -> int:
        """How many characters at the text's end may be the beginning of a stop string."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
