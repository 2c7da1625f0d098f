"""One page of metrics for all workers.

A scrape comes to one of them by chance, and counters that change with the worker that answers are worth nothing. So
each worker shows its page to the others on a Unix socket in a directory of their user alone, and the one that is asked
puts the pages together, each sample with the label `worker`. Nothing of a worker is kept beyond its life: it either
answers or is not on the page.

The pages are put together as text, in the format that the scraper asked for: to parse and write 64 of them would keep
the event loop for seconds.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

SIBLING_S = 0.5
"""Seconds that a sibling has for its page: a scrape has ten or so for all."""

_END = "# EOF"  # of OpenMetrics


def place_of(directory: Path, index: int) -> Path:
    """Where a worker shows its page."""
    return directory / f"{index}.metrics"


@dataclass(slots=True)
class _Family:
    """A metric with all of its samples, which the format wants in one group."""

    head: list[str]
    samples: list[str] = field(default_factory=list[str])


def merged(pages: Mapping[int, str]) -> str:
    """Put the workers' pages together.

    Args:
        pages: By worker; Prometheus' text format or OpenMetrics, all the same.
    """
    families: dict[str, _Family] = {}
    for worker, page in sorted(pages.items()):
        _add(families, worker, page)
    lines = [line for family in families.values() for line in (*family.head, *family.samples)]
    is_open_metrics = any(page.endswith(f"{_END}\n") for page in pages.values())
    return "".join(f"{line}\n" for line in (*lines, *((_END,) if is_open_metrics else ())))


def _add(families: dict[str, _Family], worker: int, page: str) -> None:
    known = frozenset(families)
    family = _Family([])
    # Not `splitlines`: a label may hold what Unicode calls the end of a line.
    for line in page.split("\n"):
        if line.startswith("# ") and line != _END:
            name = line.split(" ", 3)[2]
            family = families.setdefault(name, _Family([]))
            if name not in known:
                family.head.append(line)
        elif line and line != _END:
            family.samples.append(_labelled(line, worker))


def _labelled(sample: str, worker: int) -> str:
    name, _, value = sample.partition(" ")
    metric, brace, _ = name.partition("{")
    if brace:
        return f'{metric}{{worker="{worker}",{sample[len(metric) + 1 :]}'
    return f'{metric}{{worker="{worker}"}} {value}'


class Pages:
    """The pages of all workers, as one of them shows them: an ASGI application.

    Args:
        alone: Answers `GET /metrics` for this worker alone.
        directory: Where the workers meet.
        index: Which worker this is.
        count: How many there are.
    """

    def __init__(self, alone: ASGIApp, directory: Path, index: int, count: int) -> None:
        self._alone = httpx.ASGITransport(alone)
        self._directory = directory
        self._index = index
        self._siblings = [other for other in range(count) if other != index]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Show every worker's metrics as they are now."""
        accept = Headers(scope=scope).get("accept", "")
        pages: dict[int, str] = {}
        async with asyncio.TaskGroup() as group:
            for index in self._siblings:
                group.create_task(self._fetch(index, accept, pages))
            own = await self._own(accept)
        pages[self._index] = own.text
        answer = Response(merged(pages), headers={"content-type": own.headers["content-type"]})
        await answer(scope, receive, send)

    async def show(self) -> asyncio.Server:
        """Begin to show this worker's page to the others."""
        place = place_of(self._directory, self._index)
        place.unlink(missing_ok=True)  # of a life before, which a signal ended
        return await asyncio.start_unix_server(self._tell, place)

    async def _own(self, accept: str) -> httpx.Response:
        request = httpx.Request("GET", "http://worker/metrics", headers={"accept": accept})
        answer = await self._alone.handle_async_request(request)
        await answer.aread()
        return answer

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a line, what formats the scraper accepts, with the page's length in a line and the page."""
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            accept = (await reader.readline()).decode("latin-1").strip()
            page = (await self._own(accept)).content
            writer.write(b"%d\n%b" % (len(page), page))
            await writer.drain()

    async def _fetch(self, index: int, accept: str, pages: dict[int, str]) -> None:
        """Add a sibling's page, if it has one."""
        with contextlib.suppress(OSError, EOFError, ValueError):
            async with asyncio.timeout(SIBLING_S):
                pages[index] = await self._read(index, accept)

    async def _read(self, index: int, accept: str) -> str:
        reader, writer = await asyncio.open_unix_connection(place_of(self._directory, index))
        with contextlib.closing(writer):
            writer.write(f"{accept}\n".encode("latin-1"))
            page = await reader.readexactly(int(await reader.readline()))
        return page.decode()
