"""The folder: which documents there are, and what text they hold.

What counts as a document is decided here alone. Hidden files and folders do not, nor does anything that lies
outside the folder once its symbolic links are followed. (A mounted ConfigMap is links to a hidden folder, and
so is read once, by its plain names.)
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bs4
import bs4.exceptions
import markdownify

from muster_agent.tools.documents.passages import (
    Headings,
    Passage,
    cut,
    markdown_headings,
    no_headings,
    rst_headings,
)

_HTML: Final = frozenset({".html", ".htm", ".xhtml"})
_HEADINGS: Final[dict[str, Headings]] = {
    ".md": markdown_headings,
    ".markdown": markdown_headings,
    ".rst": rst_headings,
} | dict.fromkeys(_HTML, markdown_headings)
_NOT_PROSE: Final = ("script", "style", "noscript", "template", "nav", "svg", "head")
_XML_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")
_BYTE_ORDER_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


class NotADocumentError(Exception):
    """A file holds no text that can be searched; the message says why, for the log."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file of the folder.

    Attributes:
        path: Its path below the folder, with slashes; what it is called.
        place: Where it really is, links followed.
        stamp: Differs after any change; the same after none.
    """

    path: str
    place: Path
    stamp: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of documents.

    Args:
        root: The folder.
        patterns: Which files below it are documents.
        most_file_bytes: A larger file is left out.
    """

    root: Path
    patterns: Sequence[str]
    most_file_bytes: int

    def documents(self) -> list[Document]:
        """List the documents, in the order of their paths.

        Raises:
            OSError: The folder cannot be listed.
        """
        root = self.root.resolve(strict=True)
        os.scandir(root).close()  # a glob takes a folder that cannot be read for an empty one
        places = {place for pattern in self.patterns for place in root.glob(pattern)}
        found = [document for place in sorted(places) if (document := _document(root, place))]
        return sorted({document.path: document for document in found}.values(), key=lambda each: each.path)

    def read(self, document: Document) -> bytes:
        """A document's bytes.

        Raises:
            NotADocumentError: It is too large, or cannot be read.
        """
        try:
            with document.place.open("rb") as file:
                content = file.read(self.most_file_bytes + 1)
        except OSError as error:
            raise NotADocumentError(f"cannot be read: {type(error).__name__}") from None
        if len(content) > self.most_file_bytes:
            raise NotADocumentError(f"larger than {self.most_file_bytes} bytes")
        return content


def passages_of(path: str, content: bytes) -> list[Passage]:
    """A document's passages. HTML costs most: two to three seconds for each megabyte.

    Raises:
        NotADocumentError: It is no text, or HTML that cannot be read.
    """
    kind = Path(path).suffix.lower()
    text = _decoded(content).replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise NotADocumentError("not text")
    return cut(_text_of_html(text) if kind in _HTML else text, _HEADINGS.get(kind, no_headings))


def _document(root: Path, place: Path) -> Document | None:
    """The document at a place found below the folder; None if it is none."""
    relative = place.relative_to(root)
    path = unicodedata.normalize("NFC", relative.as_posix())  # macOS writes accents apart; nobody else does
    if any(part.startswith(".") for part in relative.parts) or not _is_sayable(path):
        return None
    try:
        real = place.resolve(strict=True)
        if not real.is_relative_to(root) or not real.is_file():
            return None
        status = real.stat()
    except (OSError, RuntimeError):  # it went away, or links to itself
        return None
    return Document(path, real, f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_size}")


def _is_sayable(path: str) -> bool:
    """Whether the name can be told to a model, and come back: no line ends, nothing that is not Unicode."""
    return not any(unicodedata.category(character) in {"Cc", "Cs"} for character in path)


def _decoded(content: bytes) -> str:
    """UTF-8, or UTF-16 where it is marked so; what is neither shows as replacement characters."""
    if content.startswith(_BYTE_ORDER_MARKS):
        return content.decode("utf-16", "replace")
    return content.decode("utf-8-sig", "replace")


def _text_of_html(text: str) -> str:
    if "<" not in text:
        return text
    try:
        soup = bs4.BeautifulSoup(_XML_DECLARATION.sub("", text, count=1), "html.parser")
        for element in soup.find_all(_NOT_PROSE):
            element.decompose()
        return str(markdownify.MarkdownConverter(heading_style="ATX").convert_soup(soup)).strip() + "\n"
    except (RecursionError, bs4.exceptions.ParserRejectedMarkup):
        raise NotADocumentError("HTML that cannot be read") from None
