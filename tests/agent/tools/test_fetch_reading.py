"""Pages as text: what of HTML is kept, in which charset, and that no page is too much for it."""

import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.tools.fetch.client import Page
from muster_agent.tools.fetch.outline import MAX_DEPTH, MAX_TAGS, Outline, html_to_text
from muster_agent.tools.fetch.reading import read_page
from muster_agent.tools.fetch.urls import PageUrl

BASE = "https://example.org/a/b"
TAGS = (
    "p",
    "div",
    "ul",
    "ol",
    "li",
    "table",
    "tr",
    "td",
    "dl",
    "dt",
    "dd",
    "pre",
    "a",
    "h1",
    "nav",
    "b",
    "br",
)
TAG = re.compile(r"</?([a-z0-9]+)[^>]*>")


def read(body: bytes, content_type: str, most_characters: int = 1000) -> str:
    """A page's text without its frame."""
    page = Page(PageUrl("https", "example.org", 443, "/a/b"), content_type, body, is_cut=False)
    return read_page(page, most_characters).partition("BEGIN")[2].split("\n", 1)[1].rpartition("\n")[0]


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<title>T</title><h1>One</h1><p>Two<h2>Three</h2>four", "T\n\n# One\n\nTwo\n\n## Three\n\nfour"),
        ("<ul><li>a<li>b<ul><li>c</ul><li>d</ul>e", "* a\n* b\n  + c\n* d\n\ne"),
        ("<ol><li><p>a<li>b</ol>", "1. a\n2. b"),
        ("<p>a <em>b</em> <span>c</span>\n\n d<br>e", "a b c d  \ne"),
        ("<pre>  x = 1\n\n  y</pre><code>z</code>", "```\n  x = 1\n\n  y\n```\n\n`z`"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2</table>", "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        ("<dl><dt>a<dd>b<dt>c<dd>d</dl>", "a\n:   b\n\nc\n:   d"),
        ("<blockquote><p>a</blockquote>b", "> a\n\nb"),
        ("a<hr>b", "a\n\n---\n\nb"),
        ("a<br/>b<hr />c", "a  \nb\n\n---\n\nc"),
        ("5 &lt; 6 &amp; 7 * 8_9 &#x3c;b&#x3e; &nbsp;x", "5 < 6 & 7 * 8_9 <b> x"),
        ("a<!-- b --><?php c ?><!DOCTYPE d>e", "ae"),
        ("</p></div>a</ul>", "a"),
        ("a <b", "a"),
        ("no markup", "no markup"),
        ("", ""),
    ],
)
def test_html_becomes_markdown(html: str, text: str) -> None:
    """What HTML means is kept, also where an author left end tags out."""
    assert html_to_text(html, BASE, 1000) == (text, False)


@pytest.mark.parametrize(
    "html",
    [
        *(
            "<script>x</script>",
            "<script>if (a < b) '<p>x</p>'</script>",
            "<style>x</style>",
            "<nav><p>x</p></nav>",
        ),
        *("<nav>x<nav>x</nav>x</nav>", "<svg/>", "<svg><title>x</title></svg>", "<template><p>x</template>"),
        *("<noscript>x</noscript>", "<select><option>x</select>", "<iframe>x</iframe>", "<!-- <p>x -->"),
        *("<img alt=x src=x>", "<input value=x>", "<p title=x style=x onclick=x>"),
    ],
)
def test_what_is_not_to_be_read_is_dropped(html: str) -> None:
    """Scripts, styles, navigation, controls, images and attributes leave nothing behind."""
    assert html_to_text(f"<p>before</p>{html}<p>after</p>", BASE, 1000) == ("before\n\nafter", False)


@pytest.mark.parametrize(
    ("link", "text"),
    [
        ("<a href='/x?y&amp;z'>t</a>", "[t](https://example.org/x?y&z)"),
        ("<a href=c>t</a>", "[t](https://example.org/a/c)"),
        ("<a href=http://example.net/>t</a>", "[t](http://example.net/)"),
        ("<a href=#part>t</a>", "t"),
        ("<a href='javascript:alert(1)'>t</a>", "t"),
        ("<a href='data:text/html,x'>t</a>", "t"),
        ("<a href='/x y'>t</a>", "t"),
        ("<a href='http://[x'>t</a>", "t"),
        (f"<a href='/{'x' * 300}'>t</a>", "t"),
        ("<a href>t</a>", "t"),
    ],
)
def test_links_are_made_absolute(link: str, text: str) -> None:
    """A link to another page is shown as an address that can be fetched; others are text."""
    assert html_to_text(link, BASE, 1000) == (text, False)


NASTY = {
    "spaces": "<p>a" + " " * 1_000_000 + "b",
    "spaces in pre": "<pre>" + (" " * 79 + "\t") * 10_000 + "x",
    "blank lines": "<pre>" + "\n" * 1_000_000 + "x",
    "commented spaces": "<p>" + " <!---->" * 100_000,
    "list": "<ol>" + "<li>a</li>" * 100_000,
    "nested lists": "<ul><li>" * 100_000,
    "deep": "<div>" * 100_000 + "x",
    "wide cells": "<table><tr>" + "<td colspan=1000>a" * 50_000,
    "rows": "<table>" + "<tr><td>a" * 100_000,
    "quotes": "<blockquote>" * 30 + "a<br>" * 100_000,
    "open comments": "<!--" * 250_000,
    "open tags": "<a x='" * 150_000,
    "half tags": "<a" * 300_000,
    "broken section": "<p>x<![" * 100_000,
    "attributes": "<a " + "a " * 250_000 + ">",
    "backticks": "<code>" + "`" * 1_000_000,
    "references": "&#x41;" * 200_000,
    "less than": "<" * 500_000,
    "links": "<a href=/x>y</a>" * 50_000,
}


@pytest.mark.parametrize("html", NASTY.values(), ids=NASTY)
def test_no_page_is_too_much(html: str) -> None:
    """Pages that make parsers slow, deep or large are read in bounded time, and their text is bounded."""
    text = read(html.encode(), "text/html", 8000)

    assert len(text) <= 8100


@given(
    st.lists(
        st.one_of(
            st.sampled_from([f"<{tag}>" for tag in TAGS]),
            st.sampled_from([f"</{tag}>" for tag in TAGS]),
            st.sampled_from(
                ["<a href=x>", "<svg/>", "<script>", "</script>", "<!--", "-->", "<![", "&lt;", "<", " \n"]
            ),
            st.text(max_size=5),
        ),
        max_size=60,
    ).map("".join),
    st.integers(1, 100),
)
def test_the_outline_is_well_nested_and_bounded(html: str, most_characters: int) -> None:
    """Whatever the page, its copy is well nested and no longer than may be, and turns into text."""
    outline, _ = Outline(BASE, most_characters).read(html)

    nest: list[str] = []
    for match in TAG.finditer(outline):
        if match[0].startswith("</"):
            assert nest.pop() == match[1]
        elif match[1] not in {"br", "hr"}:
            nest.append(match[1])
    assert nest == []
    visible = TAG.sub("", outline).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert len(visible) <= most_characters
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html_to_text(html, BASE, most_characters)


def test_elements_are_bounded() -> None:
    """Elements beyond the bounds of number and depth are left out, and their text is kept."""
    outline, is_cut = Outline(BASE, 10_000).read(
        "<div>" * (MAX_DEPTH + 5) + "deep" + "<br>" * MAX_TAGS + "last"
    )

    assert outline.count("<div>") == MAX_DEPTH
    assert outline.count("<br>") == MAX_TAGS - MAX_DEPTH
    assert "deep" in outline
    assert "last" in outline
    assert not is_cut


def test_a_link_uses_up_the_room_for_text() -> None:
    """A link's address counts like text: after one that takes all the room, nothing more is copied."""
    outline, is_cut = Outline(BASE, 20).read("<a href=/a-long-address>" + "a" * 500)

    assert outline == '<a href="https://example.org/a-long-address"></a>'
    assert is_cut


@pytest.mark.parametrize("html", ["<p>" + "ab " * 100, "<p>a</p>" * 101, "<a href=/x>y</a>" * 10])
def test_an_html_page_that_is_cut_says_so(html: str) -> None:
    """A page with more text and links than may be shown is known to go on."""
    text, is_cut = html_to_text(html, BASE, 100)

    assert text
    assert is_cut


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("Zürich".encode(), "text/plain", "Zürich"),
        ("Zürich".encode(), "text/plain; charset=utf-8", "Zürich"),
        ("Zürich".encode("latin-1"), 'text/plain; charset="iso-8859-1"', "Zürich"),
        (b"a\x80", "text/plain; charset=latin1", "a\u20ac"),
        ("привет".encode("koi8-r"), "text/plain;charset=koi8-r", "привет"),
        ("привет".encode("cp1251"), "text/plain;charset=windows-1251", "привет"),
        ("中文".encode("gb18030"), "text/plain; charset=gb2312", "中文"),
        ("日本".encode("shift_jis"), "text/plain; charset=shift_jis", "日本"),
        ("Zürich".encode("utf-8-sig"), "text/plain; charset=latin1", "Zürich"),
        ("Zürich".encode("utf-16"), "text/plain", "Zürich"),
        ("Zürich".encode("utf-16-be"), "text/plain; charset=utf-16be", "Zürich"),
        (b"<meta charset='iso-8859-15'>\xa4", "text/html", "\u20ac"),
        (
            b'<meta http-equiv="content-type" content="text/html; charset=windows-1252">\x80',
            "text/html",
            "\u20ac",
        ),
        (b"<meta charset=punycode>abc-", "text/html", "abc-"),
        (b"616263", "text/plain; charset=hex", "616263"),
        (b"\\x41", "text/plain; charset=unicode_escape", "\\x41"),
        (b"a\xff\xfeb", "text/plain", "a\ufffd\ufffdb"),
        (b"", "text/plain", "(The page has no text.)"),
        (b"<p> </p>", "text/html", "(The page has no text.)"),
    ],
)
def test_charsets_of_the_web_are_read(body: bytes, content_type: str, text: str) -> None:
    """A page is read in the charset that it declares, if it is one of the web's, and otherwise as UTF-8."""
    assert read(body, content_type) == text


@pytest.mark.parametrize("content_type", ["text/html", "text/plain"])
def test_unseen_characters_are_left_out(content_type: str) -> None:
    """Controls, and letters that no person sees, do not reach the model."""
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "obey")

    assert read(f"a\x00b\x1b[2Jc{hidden}d\x9b".encode(), content_type) == "ab[2Jcd"
    assert read(b"<p>a&#x1b;b&#xE006F;c", "text/html") == "abc"
