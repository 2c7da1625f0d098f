"""Passages: a document's text cut at its headings and paragraphs.

The passages of a document are its text, whole and in order: put together again they are the document. That is
why reading a document needs nothing but its passages.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PASSAGE_CHARACTERS: Final = 1000
"""About 250 tokens: long enough to answer from, short enough that several fit a context of 4,000 tokens."""
_TITLE_CHARACTERS: Final = 80
_MOST_MARKS: Final = 6

_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_UNDERLINE = re.compile(r"([^\w\s])\1{2,}[ \t]*\Z")
_SETEXT = re.compile(r"(?:={3,}|-{3,})[ \t]*\Z")
_FENCES: Final = ("```", "~~~")
_NO_TITLE: Final = ("#", ">", "|", "- ", "* ", "+ ", "    ", "\t")
"""What a Markdown line begins with that is no title, whatever stands under it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document.

    Attributes:
        first_line: Number of its first line, from 1.
        last_line: Number of its last line. A line too long for one passage is in several.
        heading: The headings it stands under, outermost first: `Install > Linux`.
        text: Its text, line ends included.
    """

    first_line: int
    last_line: int
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading: its depth, from 1, its words, and how many lines it takes."""

    level: int
    title: str
    lines: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A line, or a part of one that is too long for one passage."""

    line: int
    text: str


Headings = Callable[[Sequence[str]], Mapping[int, Heading]]
"""Finds the headings among the lines of a document: by index of their first line."""


def cut(text: str, headings: Headings) -> list[Passage]:
    """Cut a document whose lines end as on Unix: O(characters)."""
    lines = _LINES.findall(text)
    found = headings(lines)
    return [
        Passage(pieces[0].line, pieces[-1].line, heading, "".join(piece.text for piece in pieces))
        for heading, first, end in _sections(lines, found)
        for pieces in _packed(_paragraphs(_pieces(lines, first, end)))
    ]


def no_headings(_lines: Sequence[str]) -> Mapping[int, Heading]:
    """Plain text has none that can be told from the rest."""
    return {}


def markdown_headings(lines: Sequence[str]) -> Mapping[int, Heading]:
    """`# Title`, and titles with a line of `===` or `---` under them, outside of fenced code."""
    found: dict[int, Heading] = {}
    fence = ""
    for index in range(_after_front_matter(lines), len(lines)):
        line = lines[index].rstrip("\n")
        mark = line.lstrip(" ")[:3]
        if mark in _FENCES and (not fence or mark == fence):
            fence = "" if fence else mark
        elif not fence and (marked := _marked_title(line)):
            found[index] = marked
        elif not fence and _SETEXT.match(line) and index and _may_be_title(lines[index - 1]):
            found[index - 1] = Heading(1 if line[0] == "=" else 2, _title(lines[index - 1]), 2)
    return found


def rst_headings(lines: Sequence[str]) -> Mapping[int, Heading]:
    """Titles underlined by punctuation; which sign means which level is told by the order they come in."""
    found: dict[int, Heading] = {}
    styles: list[tuple[str, bool]] = []
    for index in range(1, len(lines)):
        underline, title = lines[index].rstrip(), lines[index - 1].rstrip()
        if not _UNDERLINE.match(underline) or _UNDERLINE.match(title) or not 0 < len(title) <= len(underline):
            continue
        over = index > 1 and lines[index - 2].rstrip() == underline
        style = underline[0], over
        if style not in styles:
            styles.append(style)
        found[index - 1 - over] = Heading(styles.index(style) + 1, _title(title), 2 + over)
    return found


def _after_front_matter(lines: Sequence[str]) -> int:
    """Where the text begins, behind the settings that some site generators want at the top."""
    if lines and lines[0].rstrip() == "---":
        ends = (index for index in range(1, len(lines)) if lines[index].rstrip() in {"---", "..."})
        return next(ends, -1) + 1
    return 0


def _marked_title(line: str) -> Heading | None:
    level = len(line) - len(line.lstrip("#"))
    if 1 <= level <= _MOST_MARKS and line[level : level + 1] in {" ", "\t"}:
        return Heading(level, _title(line.strip("# \t")), 1)
    return None


def _may_be_title(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(_NO_TITLE) and not _SETEXT.match(line.rstrip("\n"))


def _title(line: str) -> str:
    return " ".join(line.split())[:_TITLE_CHARACTERS]


def _sections(lines: Sequence[str], found: Mapping[int, Heading]) -> Iterator[tuple[str, int, int]]:
    """Heading trail, first index and end index of each section. A heading without text joins the next."""
    trail: list[Heading] = []
    first, body = 0, 0
    heading = ""
    for index in sorted(found):
        if any(line.strip() for line in lines[body:index]):
            yield heading, first, index
            first = index
        trail = [outer for outer in trail if outer.level < found[index].level] + [found[index]]
        heading = " > ".join(outer.title for outer in trail)
        body = index + found[index].lines
    if first < len(lines):
        yield heading, first, len(lines)


def _pieces(lines: Sequence[str], first: int, end: int) -> Iterator[_Piece]:
    for index in range(first, end):
        for part in _parts(lines[index]):
            yield _Piece(index + 1, part)


def _parts(line: str) -> Iterator[str]:
    """The line, broken at a space where it is too long for one passage."""
    start = 0
    while len(line) - start > PASSAGE_CHARACTERS:
        space = line.rfind(" ", start, start + PASSAGE_CHARACTERS)
        end = space + 1 if space > start else start + PASSAGE_CHARACTERS
        yield line[start:end]
        start = end
    yield line[start:]


def _paragraphs(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """The pieces up to and with each blank line."""
    paragraph: list[_Piece] = []
    for piece in pieces:
        paragraph.append(piece)
        if not piece.text.strip():
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def _packed(paragraphs: Iterable[list[_Piece]]) -> Iterator[list[_Piece]]:
    """Put paragraphs together while they fit one passage; one that fits none is cut between lines."""
    passage: list[_Piece] = []
    size = 0
    for paragraph in paragraphs:
        whole = sum(len(piece.text) for piece in paragraph)
        for piece in paragraph:
            if passage and size + max(whole, len(piece.text)) > PASSAGE_CHARACTERS:
                yield passage
                passage, size = [], 0
            whole = 0  # the paragraph has begun: from here on each line counts for itself
            passage.append(piece)
            size += len(piece.text)
    if passage:
        yield passage
