"""What a database answered, and how the model is shown it: a table of text, as narrow as can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from muster_agent.tools.complaints import ToolComplaint

CELL_CHARACTERS: Final = 200
"""Of one cell; a longer text is cut."""
_CUT: Final = "\N{HORIZONTAL ELLIPSIS}"
_FOOT_CHARACTERS: Final = 60
"""For the line under a table."""
_ONE_LINE: Final = str.maketrans("\n\r\t\v\f\0", "      ")


class QueryComplaint(ToolComplaint):
    """The database does not take the model's query; the text is what it says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a query.

    Attributes:
        columns: Their names.
        rows: The cells of each row, cut.
        is_whole: Whether these are all the rows there are.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_whole: bool


def cell(value: object) -> str:
    """A value as text in one line, cut."""
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    text = str(value)[: CELL_CHARACTERS + 1].translate(_ONE_LINE)
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + _CUT


def as_text(answer: Answer, most_characters: int) -> str:
    """The table, with a line under it where not all rows are shown."""
    lines = [" | ".join(cell(name) for name in answer.columns)]
    lines += [" | ".join(row) for row in answer.rows]
    shown = fitting(lines, most_characters - _FOOT_CHARACTERS)
    rows = max(len(shown) - 1, 0)
    if not answer.rows:
        shown.append("(no rows)")
    elif rows < len(answer.rows) or not answer.is_whole:
        shown.append(
            f"(the first {rows} rows; there are more)" if rows else "(the rows are too wide to show)"
        )
    return "\n".join(shown)[:most_characters]


def fitting(lines: Sequence[str], most_characters: int) -> list[str]:
    """As many of the lines, from the first, as fit."""
    shown: list[str] = []
    for line in lines:
        most_characters -= len(line) + 1
        if most_characters < 0:
            break
        shown.append(line)
    return shown
