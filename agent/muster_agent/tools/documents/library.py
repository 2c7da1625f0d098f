"""The library: what the model is told of the documents, as text within a bound."""

import re
import time
import unicodedata
from pathlib import PurePosixPath
from typing import Final

from muster_agent.tools.complaints import ToolComplaint
from muster_agent.tools.documents.index import Hit, Index, terms_of
from muster_observability import logs

_log = logs.get("agent")

_MOST_SUGGESTIONS: Final = 3
_MOST_LINES: Final = 10**9
_SHOWN_CHARACTERS: Final = 100
_FRAME_CHARACTERS: Final = 80
"""For what is said around a document's text."""
_SEPARATOR: Final = "\n---\n"
_CUT: Final = " [...]"
_WITH_LINE: Final = re.compile(r"(.+):(\d{1,9})(?:-\d+)?")
"""A path with a line, as a search shows it."""


class Library:
    """Answers the model's calls, in the thread of its index.

    Args:
        index: Brought up to date just now.
        results: Most passages of a search.
        most_characters: Most characters of an answer.
        refresh_s: Seconds after which the folder is looked at again.
    """

    def __init__(self, index: Index, *, results: int, most_characters: int, refresh_s: float) -> None:
        self._index = index
        self._results = results
        self._most_characters = most_characters
        self._refresh_s = refresh_s
        self._refreshed_s = time.monotonic()

    def search(self, query: str) -> str:
        """The best passages for a query.

        Raises:
            ToolComplaint: The query has no words.
        """
        if not terms_of(query):
            raise ToolComplaint("the query is empty; write the words to look for")
        self._refresh()
        hits = self._index.search(query, self._results)
        if not hits:
            return "No document has any of these words. Try other words for the same thing, or fewer."
        return _shortened(_SEPARATOR.join(_shown(hit) for hit in hits), self._most_characters)

    def read(self, path: str, first_line: int) -> str:
        """A document's lines from `first_line` on, as many as fit.

        Raises:
            ToolComplaint: There is no such document, or no such line.
        """
        self._refresh()
        path, first_line = self._asked(path, first_line)
        lines = self._index.lines(path)
        if not lines:
            raise self._no_document(path)
        if first_line > lines:
            raise ToolComplaint(f"the document has {lines} lines, so none at {first_line}")
        text = self._text_from(path, first_line)
        room = max(self._most_characters - len(path) - _FRAME_CHARACTERS, _FRAME_CHARACTERS)
        shown, last_line = _whole_lines(text, first_line, room)
        more = f"\n(continue with first_line={last_line + 1})" if last_line < lines else ""
        return f"{path}, lines {first_line}-{last_line} of {lines}:\n{shown}{more}"

    def _text_from(self, path: str, first_line: int) -> str:
        passages = self._index.read(path, first_line, self._most_characters)
        text = "".join(passage.text for passage in passages)
        for _ in range(first_line - passages[0].first_line):
            text = text.partition("\n")[2]
        return text

    def _asked(self, path: str, first_line: int) -> tuple[str, int]:
        """The document and the line that are meant, whether or not the path was written as a search shows it."""
        name = unicodedata.normalize("NFC", path.strip().encode(errors="replace").decode()).removeprefix("./")
        if first_line <= 1 and (match := _WITH_LINE.fullmatch(name)) and not self._index.lines(name):
            name, first_line = match[1], int(match[2])
        return name, min(max(first_line, 1), _MOST_LINES)

    def _no_document(self, path: str) -> ToolComplaint:
        name = PurePosixPath(path.replace("\\", "/")).name.casefold()
        alike = [each for each in self._index.paths() if PurePosixPath(each).name.casefold() == name]
        hint = (
            f"did you mean {', '.join(alike[:_MOST_SUGGESTIONS])}?"
            if alike
            else "search to see which there are"
        )
        return ToolComplaint(f"there is no document {path[:_SHOWN_CHARACTERS]!a} to read; {hint}")

    def _refresh(self) -> None:
        """Look at the folder again, if it is time. One that is gone for a while stays known as it was."""
        if time.monotonic() - self._refreshed_s < self._refresh_s:
            return
        try:
            self._index.refresh()
        except OSError as error:
            _log.warning("documents not listed", error=type(error).__name__)
        self._refreshed_s = time.monotonic()


def _shown(hit: Hit) -> str:
    heading = f" ({hit.passage.heading})" if hit.passage.heading else ""
    return f"{hit.path}:{hit.passage.first_line}{heading}\n{hit.passage.text.strip()}"


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def _whole_lines(text: str, first_line: int, most: int) -> tuple[str, int]:
    """As many whole lines as fit, and the number of the last; a first line that does not fit is cut."""
    if len(text) > most:
        end = text.rfind("\n", 0, most)
        if end < 0:
            return text[: most - len(_CUT)] + _CUT, first_line
        text = text[:end]
    text = text.removesuffix("\n")
    return text, first_line + text.count("\n")
