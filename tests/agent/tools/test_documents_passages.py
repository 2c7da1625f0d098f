"""How documents are cut into passages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_agent.tools.documents.passages import (
    PASSAGE_CHARACTERS,
    Headings,
    cut,
    markdown_headings,
    no_headings,
    rst_headings,
)


def outline(text: str, headings: Headings) -> list[tuple[int, str]]:
    """First line and heading of each passage."""
    return [(passage.first_line, passage.heading) for passage in cut(text, headings)]


@given(
    text=st.lists(
        st.sampled_from(["# A", "## B", "Title", "===", "---", "```", "", " ", "word " * 70, "x" * 2500])
    )
    .map("\n".join)
    .flatmap(lambda text: st.sampled_from([text, text + "\n"])),
    headings=st.sampled_from([markdown_headings, rst_headings, no_headings]),
)
def test_passages_are_the_whole_document_in_order(text: str, headings: Headings) -> None:
    """Put together, passages are the text; none is too long; each says its lines rightly."""
    passages = cut(text, headings)

    assert "".join(passage.text for passage in passages) == text
    assert all(0 < len(passage.text) <= PASSAGE_CHARACTERS for passage in passages)
    before = ""
    for passage in passages:
        assert passage.first_line == before.count("\n") + 1
        before += passage.text
        assert passage.last_line == before.removesuffix("\n").count("\n") + 1


def test_markdown_is_cut_at_its_headings() -> None:
    """The trail goes back up with the level, and a heading without text joins the next."""
    text = "Intro.\n# A\n## B\nb\n#### C ##\nc\n## D\nd\n# E\n"

    assert outline(text, markdown_headings) == [
        (1, ""),
        (2, "A > B"),
        (5, "A > B > C"),
        (7, "A > D"),
        (9, "E"),
    ]


def test_underlined_titles_are_headings() -> None:
    """Lines of `=` and `-` under a title make it one, of level 1 and 2."""
    assert outline("One\n===\na\n\nTwo\n---\nb\n", markdown_headings) == [(1, "One"), (5, "One > Two")]


@pytest.mark.parametrize(
    "text",
    [
        "```\n# not\n```\ntext\n", "~~~sh\n# not\n```\n# not\n~~~\n", "#not\n", "####### not\n",
        "---\ntitle: not\n---\ntext\n", "- item\n---\n", "| a |\n---\n", "a\n\n---\nb\n", "    code\n---\n",
    ],
)  # fmt: skip
def test_what_looks_like_a_heading_and_is_none(text: str) -> None:
    """Code, tables, lists, rules and front matter have no headings."""
    assert {heading for _, heading in outline(text, markdown_headings)} == {""}


def test_restructured_text_is_cut_at_its_headings() -> None:
    """Levels go by the order in which the underlines come, and overlined titles are others."""
    text = "=====\nBook\n=====\n\nOne\n===\na\n\nSub\n~~~\nb\n\nTwo\n===\nc\n\nnot a title\n---\n"

    assert outline(text, rst_headings) == [
        (1, "Book > One"),
        (9, "Book > One > Sub"),
        (13, "Book > Two"),
    ]


def test_long_text_is_cut_between_paragraphs() -> None:
    """A passage ends where a paragraph does, as long as one fits."""
    paragraph = "word " * 100 + "\n\n"
    passages = cut(paragraph * 4, no_headings)

    assert [(passage.first_line, passage.last_line) for passage in passages] == [
        (1, 2),
        (3, 4),
        (5, 6),
        (7, 8),
    ]


def test_a_long_line_is_cut_at_a_space() -> None:
    """Several passages then hold parts of the same line, and no word is broken."""
    passages = cut("barley " * 400, no_headings)

    assert {passage.first_line for passage in passages} == {1}
    assert all(passage.text.endswith("barley ") for passage in passages)
