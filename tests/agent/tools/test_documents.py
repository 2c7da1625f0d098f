"""The tools that search and read a folder of documents, on real folders and real index files."""

import asyncio
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import BaseTool
from pydantic import ValidationError

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.documents import DocumentsSettings, open_documents
from muster_agent.tools.documents.index import terms_of

GUIDE = """# Guide

Welcome to the brewery.

## Install

Run the installer and wait for the green lamp.

### Linux

The kettle needs a penguin licence.

## Running

Boil the wort for ninety minutes.
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of documents."""
    root = tmp_path / "documents"
    (root / "more").mkdir(parents=True)
    (root / "guide.md").write_text(GUIDE, "utf-8")
    (root / "more" / "notes.txt").write_text("Hops are added late.\n", "utf-8")
    return root


def opened(folder: Path, **settings: Any) -> AbstractAsyncContextManager[Sequence[BaseTool]]:
    """The tools on a folder, which look at it anew at each call."""
    return open_documents(DocumentsSettings.model_validate({"folder": folder, "refresh_s": 0, **settings}))


async def search(tools: Sequence[BaseTool], query: str) -> str:
    """What the search says."""
    return str(await tools[0].ainvoke({"query": query}))


async def read(tools: Sequence[BaseTool], path: str, **arguments: int) -> str:
    """What reading says."""
    return str(await tools[1].ainvoke({"path": path, **arguments}))


def firsts(answer: str) -> list[str]:
    """The first line of each passage of a search's answer."""
    return [passage.splitlines()[0] for passage in answer.split("\n---\n")]


async def test_a_search_shows_file_line_headings_and_the_passage(folder: Path) -> None:
    """A hit is told as `file:line (headings)` and its text."""
    async with opened(folder) as tools:
        answer = await search(tools, "penguin")

    assert answer == (
        "guide.md:9 (Guide > Install > Linux)\n### Linux\n\nThe kettle needs a penguin licence."
    )


async def test_words_are_found_by_their_stem_and_without_accents(folder: Path) -> None:
    """`Lámps` finds `lamp`."""
    async with opened(folder) as tools:
        assert firsts(await search(tools, "Lámps")) == ["guide.md:5 (Guide > Install)"]


async def test_a_passage_with_all_words_hides_those_with_some(folder: Path) -> None:
    """Where one passage has every word, those that have one of them are not shown."""
    (folder / "other.txt").write_text("A kettle, a kettle, a kettle.\n", "utf-8")

    async with opened(folder) as tools:
        assert firsts(await search(tools, "kettle penguin")) == ["guide.md:9 (Guide > Install > Linux)"]


async def test_any_word_will_do_where_no_passage_has_all(folder: Path) -> None:
    """A question in a sentence finds what has some of its words, the best first."""
    async with opened(folder) as tools:
        found = firsts(await search(tools, "When are hops added, before or after ninety sunsets?"))

    assert found == ["more/notes.txt:1", "guide.md:13 (Guide > Running)"]


async def test_a_search_without_a_match_says_what_to_do(folder: Path) -> None:
    """No match is an answer, not an error, and suggests other words."""
    async with opened(folder) as tools:
        assert "Try other words" in await search(tools, "xylophone")


@pytest.mark.parametrize("query", ["", "  ", "?!", "\0", "__", '"', "\ud800"])
async def test_a_query_without_words_is_a_complaint(folder: Path, query: str) -> None:
    """Nothing to look for is told as such."""
    async with opened(folder) as tools:
        with pytest.raises(ToolComplaint, match="empty"):
            await search(tools, query)


@pytest.mark.parametrize(
    "query",
    [
        'kettle"', "kettle*", "kettle -penguin", "text:kettle", "{path}:kettle", "^kettle", "kettle )",
        "kettle AND", "NOT kettle", "NEAR(kettle penguin, 2)", "kettle\0", "kettle; DROP TABLE texts",
    ],
)  # fmt: skip
async def test_nothing_in_a_query_is_syntax(folder: Path, query: str) -> None:
    """Operators of the search language are words like others: the passage is found."""
    async with opened(folder) as tools:
        assert "guide.md:9 (Guide > Install > Linux)" in firsts(await search(tools, query))


@given(st.text(max_size=60))
def test_any_text_is_a_query(query: str) -> None:
    """Terms never hold a quotation mark, so that FTS5 takes all of them quoted, and finds what has them."""
    terms = terms_of(query)
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE texts USING fts5 (text)")

    for term in terms:
        connection.execute("SELECT * FROM texts WHERE texts MATCH ?", (f'"{term}"',)).fetchall()
    connection.close()

    assert not any('"' in term for term in terms)


async def test_answers_keep_to_their_bound(folder: Path) -> None:
    """Neither tool returns more than `most_characters`, and both say that there is more."""
    (folder / "long.txt").write_text("\n\n".join(f"barley {'x' * 50} {n}" for n in range(500)), "utf-8")

    async with opened(folder, most_characters=300) as tools:
        found = await search(tools, "barley")
        shown = await read(tools, "long.txt")

    assert len(found) == 300
    assert found.endswith(" [...]")
    assert len(shown) <= 300
    assert shown.endswith("(continue with first_line=6)")


async def test_a_search_shows_at_most_so_many_results(folder: Path) -> None:
    """`results` bounds the passages of one answer."""
    for number in range(9):
        (folder / f"{number}.txt").write_text("barley\n", "utf-8")

    async with opened(folder, results=3) as tools:
        assert len(firsts(await search(tools, "barley"))) == 3


@pytest.mark.parametrize("path", ["guide.md", "./guide.md", " guide.md "])
async def test_a_document_is_read_whole(folder: Path, path: str) -> None:
    """A document that fits is shown as it is."""
    async with opened(folder) as tools:
        assert await read(tools, path) == f"guide.md, lines 1-15 of 15:\n{GUIDE.rstrip()}"


@pytest.mark.parametrize(("path", "arguments"), [("guide.md", {"first_line": 13}), ("guide.md:13", {})])
async def test_reading_begins_where_it_is_told(folder: Path, path: str, arguments: dict[str, int]) -> None:
    """The line is an argument of its own, or written as a search shows it."""
    async with opened(folder) as tools:
        answer = await read(tools, path, **arguments)

    assert answer == "guide.md, lines 13-15 of 15:\n## Running\n\nBoil the wort for ninety minutes."


@given(
    lines=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=150), min_size=1
    )
)
async def test_reading_on_and_on_shows_every_line_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    """Whoever follows `continue with` to its end has seen the whole document."""
    folder = tmp_path_factory.mktemp("lines")
    (folder / "lines.txt").write_bytes("\n".join([*lines, "end"]).encode())
    seen: list[str] = []

    async with opened(folder, most_characters=400) as tools:
        while "end" not in seen:
            answer = await read(tools, "lines.txt", first_line=len(seen) + 1)
            seen += [
                line for line in answer.split("\n")[1:] if not line.startswith("(continue with first_line=")
            ]

    # A byte order mark says how the text is encoded, and is no part of it.
    assert "\n".join(seen) == "\n".join([*lines, "end"]).removeprefix("\ufeff")


async def test_a_line_that_fits_nowhere_is_cut_and_passed_over(folder: Path) -> None:
    """A line longer than an answer does not keep the model from the next."""
    (folder / "wide.txt").write_text(f"{'w' * 5000}\nnarrow\n", "utf-8")

    async with opened(folder, most_characters=300) as tools:
        wide = await read(tools, "wide.txt")
        narrow = await read(tools, "wide.txt", first_line=2)

    assert wide.endswith("w [...]\n(continue with first_line=2)")
    assert narrow == "wide.txt, lines 2-2 of 2:\nnarrow"


async def test_reading_past_the_end_is_a_complaint(folder: Path) -> None:
    """The model is told how long the document is."""
    async with opened(folder) as tools:
        with pytest.raises(ToolComplaint, match="has 15 lines, so none at 99"):
            await read(tools, "guide.md", first_line=99)


async def test_a_document_of_the_wrong_folder_is_suggested(folder: Path) -> None:
    """Who has the name right and the folder wrong is shown the way."""
    async with opened(folder) as tools:
        with pytest.raises(ToolComplaint, match=r"did you mean more/notes\.txt\?"):
            await read(tools, "other/Notes.txt")


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "more/../../secret.txt", "{folder}/guide.md", "{folder}/../secret.txt", "/etc/passwd",
        "guide.md\0.txt", "..\\secret.txt", "C:\\secret.txt", "\\\\host\\share\\x.txt", "file:///etc/passwd",
        "~/secret.txt", ".", "", "more", "guide.md/", "%2e%2e/secret.txt", "\ud800", "a" * 100_000,
        "link.txt", "linked/secret.txt", ".hidden.txt", ".git/config.txt",
    ],
)  # fmt: skip
async def test_nothing_but_the_documents_is_read(folder: Path, path: str) -> None:
    """No way of writing a path leads out of the folder, to what is hidden, or through a link out of it."""
    secret = folder.parent / "secret.txt"
    secret.write_text("the secret\n", "utf-8")
    (folder / "link.txt").symlink_to(secret)
    (folder / "linked").symlink_to(folder.parent, target_is_directory=True)
    (folder / ".hidden.txt").write_text("the secret\n", "utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.txt").write_text("the secret\n", "utf-8")

    async with opened(folder, patterns=["**/*.txt", "**/*.md", "linked/*.txt"]) as tools:
        with pytest.raises(ToolComplaint, match="there is no document") as complaint:
            await read(tools, path.replace("{folder}", str(folder)))
        assert "No document" in await search(tools, "secret")

    assert len(str(complaint.value)) < 700


async def test_documents_mounted_through_links_are_found_once(tmp_path: Path) -> None:
    """A ConfigMap's folder, where each file is a link into a hidden folder, shows each file by its name."""
    (tmp_path / "..2026_11_23").mkdir()
    (tmp_path / "..2026_11_23" / "faq.md").write_text("Ask for barley.\n", "utf-8")
    (tmp_path / "..data").symlink_to("..2026_11_23", target_is_directory=True)
    (tmp_path / "faq.md").symlink_to(Path("..data") / "faq.md")

    async with opened(tmp_path) as tools:
        assert firsts(await search(tools, "barley")) == ["faq.md:1"]


async def test_special_files_and_odd_names_are_left_out(folder: Path) -> None:
    """A pipe, a folder and names that cannot be told neither block nor break the search."""
    os.mkfifo(folder / "pipe.txt")
    (folder / "folder.txt").mkdir()
    (folder / "two\nlines.txt").write_text("barley\n", "utf-8")
    (folder / "loop.txt").symlink_to("loop.txt")
    if sys.platform == "linux":  # macOS refuses such a name
        (folder / os.fsdecode(b"\xff.txt")).write_text("barley\n", "utf-8")

    async with opened(folder) as tools:
        assert "No document" in await search(tools, "barley")


async def test_bytes_that_are_no_text_break_nothing(folder: Path) -> None:
    """Broken UTF-8 is found by its good parts, marked UTF-16 is read, binary files are left out."""
    (folder / "broken.txt").write_bytes(b"barley \xff\xfe\xc3 malt\n")
    (folder / "wide.txt").write_bytes("barley für alle\n".encode("utf-16"))
    (folder / "binary.txt").write_bytes(b"barley \0\x01\x02\n")

    async with opened(folder) as tools:
        assert sorted(firsts(await search(tools, "barley"))) == ["broken.txt:1", "wide.txt:1"]
        assert "barley \N{REPLACEMENT CHARACTER}" in await read(tools, "broken.txt")
        with pytest.raises(ToolComplaint):
            await read(tools, "binary.txt")


async def test_html_is_read_as_its_text(folder: Path) -> None:
    """Headings count, and scripts, styles and navigation are no part of the text."""
    (folder / "page.html").write_text(
        "<?xml version='1.0'?><!DOCTYPE html><html><head><title>barley t</title><style>barley{}</style></head>"
        "<body><nav>barley home</nav><script>barley()</script><h1>Beer</h1><h2>Malt</h2>"
        "<p>Malted <b>barley</b> &amp; water.</p></body></html>",
        "utf-8",
    )

    async with opened(folder) as tools:
        answer = await search(tools, "barley")

    assert answer == "page.html:1 (Beer > Malt)\n# Beer\n\n## Malt\n\nMalted **barley** & water."


async def test_html_nested_beyond_measure_is_left_out(folder: Path) -> None:
    """HTML that cannot be read costs that document only."""
    (folder / "deep.html").write_text("<div>" * 20_000 + "barley", "utf-8")

    async with opened(folder) as tools:
        assert "No document" in await search(tools, "barley")
        assert firsts(await search(tools, "hops")) == ["more/notes.txt:1"]


async def test_a_large_file_is_left_out(folder: Path) -> None:
    """A file beyond `most_file_bytes` is not searched; one of just that size is."""
    (folder / "fits.txt").write_text("barley" + "x" * 94, "utf-8")
    (folder / "large.txt").write_text("barley" + " " * 95, "utf-8")

    async with opened(folder, most_file_bytes=100, patterns=["*.txt"]) as tools:
        (folder / "fits.txt").write_text("barley" + " " * 94, "utf-8")
        assert firsts(await search(tools, "barley")) == ["fits.txt:1"]


@pytest.mark.parametrize("index", [None, "index.db"])
async def test_changes_are_seen_at_the_next_call(folder: Path, tmp_path: Path, index: str | None) -> None:
    """A file that is new, changed or gone is so in the next search."""
    async with opened(folder, index=index and tmp_path / index) as tools:
        (folder / "new.txt").write_text("barley\n", "utf-8")
        assert firsts(await search(tools, "barley")) == ["new.txt:1"]
        (folder / "new.txt").write_text("rye and oats\n", "utf-8")
        assert "No document" in await search(tools, "barley")
        assert firsts(await search(tools, "oats")) == ["new.txt:1"]
        (folder / "new.txt").unlink()
        assert "No document" in await search(tools, "oats")
        with pytest.raises(ToolComplaint):
            await read(tools, "new.txt")


async def test_changes_wait_until_it_is_time_to_look(folder: Path) -> None:
    """Within `refresh_s` the folder is not looked at again."""
    async with opened(folder, refresh_s=3600) as tools:
        (folder / "new.txt").write_text("barley\n", "utf-8")
        assert "No document" in await search(tools, "barley")


async def test_a_folder_that_goes_away_stays_known(folder: Path) -> None:
    """A mount that is lost for a while does not empty the library."""
    async with opened(folder) as tools:
        shutil.move(folder, folder.with_name("elsewhere"))
        assert firsts(await search(tools, "hops")) == ["more/notes.txt:1"]


async def test_an_index_file_is_used_again(folder: Path, tmp_path: Path) -> None:
    """What has not changed is not read again at the next start: here it could not be."""
    index = tmp_path / "cache" / "index.db"
    async with opened(folder, index=index):
        pass
    before = index.read_bytes()

    async with opened(folder, index=index) as tools:
        assert firsts(await search(tools, "penguin")) == ["guide.md:9 (Guide > Install > Linux)"]

    assert index.read_bytes() == before


async def test_a_touched_file_is_not_cut_again(folder: Path, tmp_path: Path) -> None:
    """New times and the same bytes leave a document's passages as they are, by their row numbers."""
    index = tmp_path / "index.db"
    async with opened(folder, index=index) as tools:
        before = passages(index)
        os.utime(folder / "guide.md", (1, 1))
        await search(tools, "penguin")

        assert passages(index) == before
        (folder / "guide.md").write_text(GUIDE + "\nMore.\n", "utf-8")
        await search(tools, "penguin")
        assert passages(index) != before


def passages(index: Path) -> list[Any]:
    """The rows of an index's passages."""
    connection = sqlite3.connect(index)
    rows = connection.execute("SELECT * FROM passages").fetchall()
    connection.close()
    return rows


def write_version(index: Path) -> None:
    """As a later version would have left it."""
    connection = sqlite3.connect(index)
    connection.execute("DROP TABLE passages")
    connection.execute("PRAGMA user_version = 999")
    connection.commit()
    connection.close()


def write_over(index: Path, first: int, last: int) -> None:
    """Destroy some of its bytes."""
    content = bytearray(index.read_bytes())
    content[first:last] = b"\xa5" * len(content[first:last])
    index.write_bytes(content)


HARMS: dict[str, Callable[[Path], object]] = {
    "version": write_version,
    "all": lambda index: write_over(index, 100, 10**9),
    "pages": lambda index: write_over(index, 4096, 10**9),
    "header": lambda index: write_over(index, 16, 60),
    "short": lambda index: index.write_bytes(index.read_bytes()[:5000]),
    "empty": lambda index: index.write_bytes(b""),
    "zeros": lambda index: index.write_bytes(b"\0" * 8192),
}


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
async def test_an_index_that_is_of_no_use_is_made_anew(
    folder: Path, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    """Another version and any damage cost a new start of the index, nothing more."""
    index = tmp_path / "index.db"
    async with opened(folder, index=index):
        pass
    harm(index)

    async with opened(folder, index=index) as tools:
        assert firsts(await search(tools, "penguin")) == ["guide.md:9 (Guide > Install > Linux)"]


async def test_an_index_damaged_while_in_use_is_made_anew(folder: Path, tmp_path: Path) -> None:
    """A search that meets the damage answers nevertheless."""
    index = tmp_path / "index.db"
    for number in range(200):
        (folder / f"{number}.txt").write_text(f"barley number {number} " * 40, "utf-8")
    async with opened(folder, index=index):
        pass

    async with opened(folder, index=index) as tools:
        write_over(index, 4096, 10**9)
        assert len(firsts(await search(tools, "barley"))) == 5


async def test_an_index_of_another_folder_is_made_anew(folder: Path, tmp_path: Path) -> None:
    """One file for two folders never shows one's documents as the other's."""
    other = tmp_path / "other"
    other.mkdir()
    async with opened(folder, index=tmp_path / "index.db"):
        pass

    async with opened(other, index=tmp_path / "index.db", refresh_s=3600) as tools:
        assert "No document" in await search(tools, "penguin")


@pytest.mark.parametrize("kind", ["database", "text"])
async def test_a_file_of_something_else_is_never_touched(folder: Path, tmp_path: Path, kind: str) -> None:
    """An index that names a person's file is refused, and the file stays."""
    precious = tmp_path / "precious"
    if kind == "database":
        connection = sqlite3.connect(precious)
        connection.execute("CREATE TABLE love (letters)")
        connection.close()
    else:
        precious.write_text("My dear,", "utf-8")
    before = precious.read_bytes()

    with pytest.raises(ToolkitError, match="file of something else"):
        async with opened(folder, index=precious):
            pass

    assert precious.read_bytes() == before


async def test_a_kill_in_the_middle_leaves_an_index_that_works(folder: Path, tmp_path: Path) -> None:
    """A process killed while it writes leaves a file from which the next one goes on."""
    for number in range(300):
        (folder / f"{number}.txt").write_text(f"barley number{number} " * 200, "utf-8")
    index = tmp_path / "index.db"
    program = (
        "import asyncio, sys, pathlib; from muster_agent.tools.documents import *\n"
        "settings = DocumentsSettings(folder=pathlib.Path(sys.argv[1]), index=pathlib.Path(sys.argv[2]))\n"
        "async def run():\n    async with open_documents(settings): pass\n"
        "asyncio.run(run())"
    )
    process = await anyio.open_process([sys.executable, "-c", program, str(folder), str(index)])
    while not index.exists() and process.returncode is None:
        await anyio.sleep(0.001)
    process.kill()
    await process.aclose()

    async with opened(folder, index=index) as tools:
        assert firsts(await search(tools, "number299"))[0] == "299.txt:1"


async def test_many_ask_at_once(folder: Path) -> None:
    """Calls side by side, with changes of the folder between them, all get their answers."""
    answers: list[str] = []

    async def ask(tools: Sequence[BaseTool], number: int) -> None:
        await anyio.Path(folder / f"new{number}.txt").write_text(f"barley {number}\n", "utf-8")
        answers.append(await search(tools, f"barley {number}"))

    async with opened(folder) as tools, anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(ask, tools, number)

    assert sorted(line for answer in answers for line in firsts(answer)) == sorted(
        f"new{number}.txt:1" for number in range(30)
    )


async def cancelled_in_the_middle(tools: Sequence[BaseTool], folder: Path, index: Path) -> None:
    """Cancel a call that is taking many new documents into the index."""
    for number in range(300):
        (folder / f"{number}.txt").write_text(f"barley number{number} " * 200, "utf-8")
    with closing(sqlite3.connect(index, timeout=0, isolation_level=None)) as other:
        task = asyncio.create_task(search(tools, "barley"))
        while not is_being_written(other):
            await anyio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def is_being_written(connection: sqlite3.Connection) -> bool:
    """Whether somebody is in a transaction that writes."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    connection.execute("ROLLBACK")
    return False


async def test_a_cancelled_call_is_not_in_the_way_of_the_next(folder: Path, tmp_path: Path) -> None:
    """What it has begun in the index is finished first; those that come after are answered, all of them."""
    async with opened(folder, index=tmp_path / "index.db") as tools:
        await cancelled_in_the_middle(tools, folder, tmp_path / "index.db")

        for _ in range(5):
            assert "299.txt:1" in firsts(await search(tools, "number299"))


async def test_a_call_that_is_cancelled_when_all_ends_leaves_the_index_whole(
    folder: Path, tmp_path: Path
) -> None:
    """The index is closed when the call's work on it is done, not beneath it."""
    index = tmp_path / "index.db"
    async with opened(folder, index=index) as tools:
        await cancelled_in_the_middle(tools, folder, index)

    before = passages(index)
    async with opened(folder, index=index) as tools:
        assert "299.txt:1" in firsts(await search(tools, "number299"))
    assert passages(index) == before


async def test_a_folder_that_is_not_there_cannot_be_opened(tmp_path: Path) -> None:
    """The operator is told what is wrong."""
    with pytest.raises(ToolkitError, match="cannot be listed"):
        async with opened(tmp_path / "nowhere"):
            pass


async def test_a_file_in_place_of_the_folder_cannot_be_opened(folder: Path) -> None:
    """A file has no documents in it."""
    with pytest.raises(ToolkitError, match="cannot be listed"):
        async with opened(folder / "guide.md"):
            pass


async def test_an_index_in_a_place_that_cannot_be_written_cannot_be_opened(folder: Path) -> None:
    """A file where a folder should be is said, and not by the model's first search."""
    with pytest.raises(ToolkitError, match="index"):
        async with opened(folder, index=folder / "guide.md" / "index.db"):
            pass


@pytest.mark.parametrize("pattern", ["../*.md", "/etc/*", "", "a/../../*.md"])
def test_patterns_stay_below_the_folder(pattern: str) -> None:
    """A pattern that leads out is refused in the settings."""
    with pytest.raises(ValidationError, match="below the folder"):
        DocumentsSettings(folder=Path(), patterns=[pattern])


async def test_the_tools_are_named_and_described(folder: Path) -> None:
    """Two folders have tools of different names, and the model learns what is in each."""
    async with opened(folder) as plain, opened(folder, name="recipes", about="beer") as named:
        assert [tool.name for tool in plain] == ["search_documents", "read_document"]
        assert [tool.name for tool in named] == ["search_recipes", "read_recipes"]
        assert "beer" in named[0].description
        assert all(tool.metadata == {"changes_world": False} for tool in [*plain, *named])
        assert plain[0].args["query"]["description"]
