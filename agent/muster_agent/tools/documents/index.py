"""The index: an SQLite file, or memory, in which the documents' passages are searched.

It is a cache of the folder. Each round of changes is one transaction, so that a process killed in the middle
leaves the index as it was before. A file that another version made, that belongs to another folder or that is
damaged is made anew. A file that is plainly something else is never touched.

Searching is SQLite's FTS5: words are reduced to their English stems, accents do not count, and the best match
by BM25 comes first. It splits text at what is no letter or digit, so languages that put no spaces between
words (Chinese, Japanese, Thai) are found by whole phrases only.

An index is used by the thread that opened it.
"""

import contextlib
import hashlib
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from muster_agent.tools.complaints import ToolkitError
from muster_agent.tools.documents.folder import Document, Folder, NotADocumentError, passages_of
from muster_agent.tools.documents.passages import Passage
from muster_observability import logs

_VERSION: Final = 1
"""Of what is in the file: to be raised when the tables change, or how documents are cut."""
_APPLICATION: Final = 0x4D444F43
"""`MDOC`: in the file's header, it says that the file is such an index."""
_MAGIC: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_APPLICATION_AT: Final = slice(68, 72)
_LOCK_TIMEOUT_S: Final = 30.0
_MOST_TERMS: Final = 30
_SCHEMA: Final = """
CREATE TABLE origin (folder TEXT NOT NULL);
CREATE TABLE files (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, stamp TEXT NOT NULL, digest BLOB);
CREATE TABLE passages (
  id INTEGER PRIMARY KEY, file INTEGER NOT NULL, first_line INTEGER NOT NULL, last_line INTEGER NOT NULL
);
CREATE INDEX passages_of_file ON passages (file, last_line);
CREATE VIRTUAL TABLE texts USING fts5 (path, heading, text, tokenize='porter unicode61 remove_diacritics 2');
"""
_SEARCH: Final = """
SELECT texts.path, first_line, last_line, heading, text
FROM texts JOIN passages ON passages.id = texts.rowid
WHERE texts MATCH ? ORDER BY bm25(texts, 1.0, 2.0, 1.0), texts.rowid LIMIT ?
"""
"""A word in a heading counts twice."""
_READ: Final = """
SELECT texts.path, first_line, last_line, heading, text
FROM passages JOIN texts ON texts.rowid = passages.id JOIN files ON files.id = passages.file
WHERE files.path = ? AND last_line >= ? ORDER BY passages.id
"""

_log = logs.get("agent")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage, and the path of the document it is from."""

    path: str
    passage: Passage


class Index:
    """The index of a folder, empty or as it was left; `refresh` brings it up to date.

    Args:
        folder: The documents.
        file: Where it is kept; None keeps it in memory.

    Raises:
        ToolkitError: The file is something else, or cannot be used.
    """

    def __init__(self, folder: Folder, file: Path | None) -> None:
        self._folder = folder
        self._file = file
        self._origin = str(folder.root.absolute())
        if file is not None:
            _refuse_foreign(file)
        try:
            self._connection = self._opened()
        except (OSError, sqlite3.Error) as error:
            raise ToolkitError(
                f"the index cannot be opened ({error}): name a file in a folder that can be written to"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def refresh(self) -> None:
        """Take in what has changed in the folder, all of it or, where that fails, nothing.

        Raises:
            OSError: The folder cannot be listed.
        """
        documents = {document.path: document for document in self._folder.documents()}
        self._mended(lambda: self._take_in(documents))

    def search(self, query: str, most: int) -> list[Hit]:
        """The best passages that hold every word of `query`; where there are none, any of its words."""
        quoted = [f'"{term}"' for term in terms_of(query)]
        return self._hits(_SEARCH, " AND ".join(quoted), most) or self._hits(
            _SEARCH, " OR ".join(quoted), most
        )

    def read(self, path: str, first_line: int, characters: int) -> list[Passage]:
        """A document's passages from the one that holds `first_line`, until they have so many characters.

        Empty if there is no such document, or no such line.
        """
        return self._mended(lambda: self._some(path, first_line, characters))

    def _some(self, path: str, first_line: int, characters: int) -> list[Passage]:
        found: list[Passage] = []
        for row in self._connection.execute(_READ, (path, first_line)):
            found.append(_hit(row).passage)
            characters -= len(found[-1].text) if found[-1].first_line >= first_line else 0
            if characters < 0:
                break
        return found

    def lines(self, path: str) -> int:
        """How many lines a document has; 0 if it has none, or there is no such document."""
        found = self._hits(_READ + " DESC LIMIT 1", path, 0)
        return found[0].passage.last_line if found else 0

    def paths(self) -> list[str]:
        """The paths of all documents."""
        return [str(path) for (path,) in self._connection.execute("SELECT path FROM files ORDER BY path")]

    def _hits(self, query: str, *parameters: object) -> list[Hit]:
        return self._mended(lambda: [_hit(row) for row in self._connection.execute(query, parameters)])

    def _take_in(self, documents: dict[str, Document]) -> None:
        rows = self._connection.execute("SELECT path, stamp FROM files")
        known = {str(path): str(stamp) for path, stamp in rows}
        gone = [path for path in known if path not in documents]
        changed = [each for each in documents.values() if known.get(each.path) != each.stamp]
        if gone or changed:
            with self._transaction():
                for path in gone:
                    self._forget(path)
                for document in changed:
                    self._update(document)

    def _update(self, document: Document) -> None:
        """Index a document that is new, or may have changed: the same bytes are not cut again."""
        try:
            content = self._folder.read(document)
            digest = hashlib.sha256(content).digest()
            if self._digest(document.path) == digest:
                self._connection.execute(
                    "UPDATE files SET stamp = ? WHERE path = ?", (document.stamp, document.path)
                )
                return
            passages = passages_of(document.path, content)
        except NotADocumentError as reason:
            _log.warning("document left out", document=document.path, reason=str(reason))
            digest, passages = None, []
        self._forget(document.path)
        self._insert(document, digest, passages)

    def _digest(self, path: str) -> object:
        row = self._connection.execute("SELECT digest FROM files WHERE path = ?", (path,)).fetchone()
        return row and row[0]

    def _insert(self, document: Document, digest: bytes | None, passages: Sequence[Passage]) -> None:
        file = self._connection.execute(
            "INSERT INTO files (path, stamp, digest) VALUES (?, ?, ?)",
            (document.path, document.stamp, digest),
        ).lastrowid
        for passage in passages:
            row = self._connection.execute(
                "INSERT INTO passages (file, first_line, last_line) VALUES (?, ?, ?)",
                (file, passage.first_line, passage.last_line),
            ).lastrowid
            self._connection.execute(
                "INSERT INTO texts (rowid, path, heading, text) VALUES (?, ?, ?, ?)",
                (row, document.path, passage.heading, passage.text),
            )

    def _forget(self, path: str) -> None:
        of_file = "file = (SELECT id FROM files WHERE path = ?)"
        self._connection.execute(
            f"DELETE FROM texts WHERE rowid IN (SELECT id FROM passages WHERE {of_file})",  # noqa: S608 - our own text
            (path,),
        )
        self._connection.execute(f"DELETE FROM passages WHERE {of_file}", (path,))  # noqa: S608 - likewise
        self._connection.execute("DELETE FROM files WHERE path = ?", (path,))

    @contextlib.contextmanager
    def _transaction(self) -> Generator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _mended(self, work: Callable[[], _T]) -> _T:
        """Do it; where the index turns out to be damaged, make it anew from the folder and do it again."""
        try:
            return work()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
        _log.warning("search index damaged, made anew")
        self._connection.close()
        self._connection = self._made_anew()
        self._take_in({document.path: document for document in self._folder.documents()})
        return work()

    def _opened(self) -> sqlite3.Connection:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        connection = self._connected()
        try:
            if self._is_ours(connection):
                return connection
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                connection.close()
                raise
        connection.close()
        return self._made_anew()

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file or ":memory:", timeout=_LOCK_TIMEOUT_S, isolation_level=None)

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """Whether it is whole, of this version and of this folder."""
        if connection.execute("PRAGMA user_version").fetchone() != (_VERSION,):
            return False
        if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            return False
        return connection.execute("SELECT folder FROM origin").fetchall() == [(self._origin,)]

    def _made_anew(self) -> sqlite3.Connection:
        """An empty index, in place of whatever was there."""
        if self._file is not None:
            for suffix in ("", "-journal", "-wal", "-shm"):
                self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
        connection = self._connected()
        try:
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};"
            )
            connection.execute("INSERT INTO origin VALUES (?)", (self._origin,))
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection


def terms_of(query: str) -> list[str]:
    """The words of a query, each once. None has a quotation mark in it: in quotes none is FTS5's syntax."""
    words = re.findall(r"\w+", unicodedata.normalize("NFC", query))
    return list(dict.fromkeys(word for word in words if word.strip("_")))[:_MOST_TERMS]


def _hit(row: tuple[str, int, int, str, str]) -> Hit:
    path, first_line, last_line, heading, text = row
    return Hit(path, Passage(first_line, last_line, heading, text))


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells what exactly is damaged
    return code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _refuse_foreign(file: Path) -> None:
    """Take only a file that is such an index, or nothing: another is somebody's work, and would be deleted.

    Nothing but zeros, which is what a lost disk cache leaves, is nothing.
    """
    try:
        with file.open("rb") as opened:
            header = opened.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ToolkitError(f"the index cannot be read ({type(error).__name__}): name another file") from None
    is_ours = header.startswith(_MAGIC) and header[_APPLICATION_AT] == _APPLICATION.to_bytes(4, "big")
    if header.strip(b"\0") and not is_ours:
        raise ToolkitError("the index is a file of something else: name another file, or delete it first")
