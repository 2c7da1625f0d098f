"""HTML as Markdown, in time and memory that a stranger's page cannot drive up.

markdownify alone cannot be given such a page: it recurses into nested elements, and long runs of spaces, lists
or wide cells make it take time that grows with the square of the page, or hold the interpreter's lock for
minutes. So `Outline` first copies what can be read into a small, well-nested document: one pass, no recursion,
every part of it bounded. markdownify then sees nothing else.

Bounds: text and links together `most_characters`, `MAX_TAGS` elements, `MAX_DEPTH` inside one another, and no
attribute but `href`. Parsing stops at the first bound that ends the text, so a large page costs little more
than a small one.
"""

import re
from contextlib import suppress
from html import escape
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urljoin

from markdownify import markdownify

MAX_TAGS: Final = 2000
"""Elements that are copied; of those after them only the text is. markdownify's lists are quadratic."""
MAX_DEPTH: Final = 24
"""Elements inside one another: more than any page needs that is to be read."""
MAX_HREF: Final = 300
"""Characters of a link that is worth showing."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DROPPED: Final = _words(
    "script style nav noscript template svg math canvas iframe object select button textarea audio video"
)
_COPIED: Final = _words(
    "h1 h2 h3 h4 h5 h6 p ul ol li dl dt dd blockquote pre code a table thead tbody tr th td div"
)
_EMPTY: Final = _words("br hr")
_BLOCKS: Final = _words("title section article main header footer aside figure figcaption address")
"""Copied as `div`: all that is left of them is that they stand on lines of their own."""
_ENDED_BY: Final = {
    **dict.fromkeys(_words("p h1 h2 h3 h4 h5 h6 ul ol dl pre table blockquote div"), _words("p")),
    **dict.fromkeys(_words("dt dd"), _words("dt dd p")),
    **dict.fromkeys(_words("td th"), _words("td th p")),
    "li": _words("li p"),
    "tr": _words("td th tr p"),
}
"""What the start of an element ends, where HTML lets an author leave the end tag out."""

_SPACES = re.compile(r"\s+")
_WIDE = re.compile(r"[^\S\n]{80,}")
_GAP = re.compile(r"\n(?:[^\S\n]*\n){2,}")


class _FullError(Exception):
    """As much is copied as may be."""


class Outline(HTMLParser):
    """Copies the readable part of a page.

    Args:
        base: The page's address, for its relative links.
        most_characters: Bound of text and links together.
    """

    def __init__(self, base: str, most_characters: int) -> None:
        super().__init__(convert_charrefs=True)
        self._base = base
        self._room = most_characters
        self._tags = 0
        self._written: list[str] = []
        self._open: list[str] = []
        self._dropped: tuple[str, int] | None = None
        self._ends_in_space = True

    def read(self, html: str) -> tuple[str, bool]:
        """Copy `html`; returns the copy, and whether it ends before the page does.

        The parser's `close` is never called: on a page that ends within a tag or a comment it takes time that
        grows with the square of what is left (CVE-2025-6069). The added line break makes the parser hand
        over all text before it.
        """
        is_whole = False
        # Older parsers fail an assertion at a broken `<![`.
        with suppress(_FullError, AssertionError):
            self.feed(f"{html}<br>")
            is_whole = True
        while self._open:
            self._end()
        return "".join(self._written), not is_whole

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Copy an element's start, or begin to drop it."""
        if self._dropped is not None:
            if tag == self._dropped[0]:
                self._dropped = (tag, self._dropped[1] + 1)
        elif tag in _DROPPED:
            self._dropped = (tag, 1)
        elif tag in _EMPTY:
            self._write_tag(f"<{tag}>")
        else:
            self._start(_copied_name(tag), dict(attrs).get("href"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """`<nav/>` of XHTML is empty; what is dropped must not wait for its end."""
        if tag not in _DROPPED:
            self.handle_starttag(tag, attrs)
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        """Copy an element's end, and the ends that the author left out before it."""
        if self._dropped is not None:
            if tag == self._dropped[0]:
                self._dropped = (tag, self._dropped[1] - 1) if self._dropped[1] > 1 else None
            return
        name = _copied_name(tag)
        if name in self._open:
            while self._end() != name:
                pass

    def handle_data(self, data: str) -> None:
        """Copy text, without the spaces that HTML ignores.

        Raises:
            _FullError: The bound is reached.
        """
        if self._dropped is not None:
            return
        text = _WIDE.sub(" ", data) if "pre" in self._open else self._without_spaces(data)
        self._written.append(escape(text[: max(self._room, 0)], quote=False))
        self._room -= len(text)
        if self._room < 0:
            raise _FullError

    def _without_spaces(self, data: str) -> str:
        text = _SPACES.sub(" ", data)
        if self._ends_in_space:
            text = text.removeprefix(" ")
        if text:
            self._ends_in_space = text.endswith(" ")
        return text

    def _start(self, name: str, href: str | None) -> None:
        ended = _ENDED_BY.get(name, frozenset())
        while self._open and self._open[-1] in ended:
            self._end()
        if name not in _COPIED or len(self._open) >= MAX_DEPTH or self._tags >= MAX_TAGS:
            return
        link = self._link(href) if name == "a" else ""
        if name != "a" or link:
            self._open.append(name)
            self._write_tag(f"<{name}{link}>")

    def _link(self, href: str | None) -> str:
        """The attribute of a link that leads to another page, or nothing."""
        if not href or href.startswith("#") or len(href) > MAX_HREF:
            return ""
        try:
            target = urljoin(self._base, href)
        except ValueError:
            return ""
        if not target.startswith(("http://", "https://")) or _SPACES.search(target):
            return ""
        self._room -= len(target)
        return f' href="{escape(target)}"'

    def _write_tag(self, tag: str) -> None:
        if self._tags < MAX_TAGS:
            self._tags += 1
            self._written.append(tag)

    def _end(self) -> str:
        name = self._open.pop()
        self._written.append(f"</{name}>")
        return name


def _copied_name(tag: str) -> str:
    return "div" if tag in _BLOCKS else tag


def html_to_text(html: str, base: str, most_characters: int) -> tuple[str, bool]:
    """HTML as Markdown, and whether it ends before the page does. Takes about a second at worst.

    The Markdown may be somewhat longer than `most_characters`: signs of headings and lists are not counted.
    """
    document, is_cut = Outline(base, most_characters).read(html)
    text = markdownify(
        f"<div>{document}</div>", heading_style="ATX", escape_asterisks=False, escape_underscores=False
    )
    return _GAP.sub("\n\n", text).strip(), is_cut
