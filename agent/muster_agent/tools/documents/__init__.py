"""Search over a folder of documents: `search_documents` finds passages, `read_document` reads on from one.

A document is read from the index, never from the disk: no path that a model writes reaches the file system,
so there is none to guard against.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from contextvars import copy_context
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeVar

import anyio
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from muster_agent.tools.complaints import ToolkitError
from muster_agent.tools.documents.folder import Folder
from muster_agent.tools.documents.index import Index
from muster_agent.tools.documents.library import Library

_T = TypeVar("_T")


def _below(pattern: str) -> str:
    path = PurePosixPath(pattern)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in pattern:
        raise ValueError("expected a pattern below the folder, such as **/*.md")
    return pattern


class DocumentsSettings(BaseModel):
    """A folder of documents that the agent may search and read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path = Field(description="The folder. Hidden files and what links out of it are left out.")
    patterns: list[Annotated[str, AfterValidator(_below)]] = Field(
        default=["**/*.md", "**/*.markdown", "**/*.rst", "**/*.txt", "**/*.html", "**/*.htm"],
        min_length=1,
        description="Which files are documents. HTML becomes plain text; other files are text as they are.",
    )
    index: Path | None = Field(
        default=None,
        description="File that keeps the index between starts; unset, it is made in memory at each start.",
    )
    results: int = Field(default=5, ge=1, le=50, description="Most passages that a search returns.")
    most_characters: int = Field(
        default=4000, ge=200, description="Most characters that a tool returns; four are about a token."
    )
    most_file_bytes: int = Field(default=5_000_000, ge=1, description="A larger file is left out.")
    refresh_s: float = Field(
        default=60.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds after which a call looks for changed files again.",
    )
    name: str = Field(
        default="documents",
        pattern=r"^[a-z][a-z0-9_]{0,39}$",
        description="Names the tools: search_<name> and read_<name>; read_document for the default.",
    )
    about: str = Field(
        default="", max_length=300, description="What the documents are about, for the model to know."
    )


@asynccontextmanager
async def open_documents(settings: DocumentsSettings) -> AsyncGenerator[Sequence[BaseTool]]:
    """Index the folder and yield the two tools. The first time takes about a second for each 5 MB of text.

    Raises:
        ToolkitError: The folder cannot be listed, or the index cannot be used.
    """
    # The index is one thread's, which does one thing after the other. A call that is cancelled leaves at once; what
    # it has begun goes on in the thread, and what comes after waits its turn.
    thread = ThreadPoolExecutor(1, f"muster-{settings.name}")
    shelf = ExitStack()

    async def done(work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.wrap_future(thread.submit(copy_context().run, work, *arguments))

    try:
        library = await done(_library, settings, shelf)

        async def search(query: Annotated[str, "A few words to look for"]) -> str:
            return await done(library.search, query)

        async def read(
            path: Annotated[str, "The file, as a search shows it, for example: guide/install.md"],
            first_line: Annotated[int, "Line to begin at"] = 1,
        ) -> str:
            return await done(library.read, path, first_line)

        yield _tools(settings, search, read)
    finally:
        closed = asyncio.wrap_future(thread.submit(shelf.close))
        thread.shutdown(wait=False)
        with anyio.CancelScope(shield=True):
            await asyncio.shield(closed)  # cancelled or not, it is closed in its turn


def _library(settings: DocumentsSettings, shelf: ExitStack) -> Library:
    folder = Folder(settings.folder, settings.patterns, settings.most_file_bytes)
    index = Index(folder, settings.index)
    shelf.callback(index.close)
    try:
        index.refresh()
    except OSError as error:
        raise ToolkitError(
            f"the folder of documents cannot be listed ({error.strerror}): check its path and its rights"
        ) from None
    return Library(
        index,
        results=settings.results,
        most_characters=settings.most_characters,
        refresh_s=settings.refresh_s,
    )


def _tools(
    settings: DocumentsSettings,
    search: Callable[..., Awaitable[str]],
    read: Callable[..., Awaitable[str]],
) -> list[BaseTool]:
    about = f" The documents are about: {settings.about}" if settings.about else ""
    return [
        StructuredTool.from_function(
            coroutine=search,
            name=f"search_{settings.name}",
            description=f"Search the documents. Returns the best passages, with file and line.{about}",
            metadata={"changes_world": False},
        ),
        StructuredTool.from_function(
            coroutine=read,
            name="read_document" if settings.name == "documents" else f"read_{settings.name}",
            description=f"Read a document that search_{settings.name} has found, from a line on.",
            metadata={"changes_world": False},
        ),
    ]
