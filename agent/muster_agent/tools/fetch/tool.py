"""The tool that fetches a page."""

import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import httpx2
from anyio import to_thread
from langchain_core.tools import BaseTool, StructuredTool

from muster_agent.tools.complaints import ToolkitError
from muster_agent.tools.fetch.client import PageClient, Resolve, system_addresses
from muster_agent.tools.fetch.complaints import RefusedError
from muster_agent.tools.fetch.reading import read_page
from muster_agent.tools.fetch.settings import FetchSettings
from muster_agent.tools.fetch.urls import parse_url
from muster_observability import logs

_log = logs.get("agent")


@asynccontextmanager
async def open_fetch(
    settings: FetchSettings, *, resolve: Resolve = system_addresses
) -> AsyncGenerator[Sequence[BaseTool]]:
    """Yield the tool `fetch_page`.

    Args:
        settings: What may be fetched.
        resolve: Finds the addresses of a name.

    Raises:
        ToolkitError: The file of certificate authorities cannot be read.
    """
    client = PageClient(settings, await to_thread.run_sync(_certificate_checks, settings), resolve)

    async def fetch_page(
        url: Annotated[str, "The full address of the page, for example: https://example.org/page"],
    ) -> str:
        """Fetch a web page and read its text."""
        try:
            page = await client.fetch(parse_url(url))
        except RefusedError as refusal:
            _log.warning("fetch refused", reason=refusal.reason)
            raise
        return await to_thread.run_sync(read_page, page, settings.most_characters)

    yield [
        StructuredTool.from_function(
            coroutine=fetch_page, metadata={"changes_world": False, "untrusted": True}
        )
    ]


def _certificate_checks(settings: FetchSettings) -> ssl.SSLContext:
    """How servers' certificates are checked: by the system's authorities, whatever the environment names."""
    context = httpx2.create_ssl_context(trust_env=False)
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(settings.ca_file)
        except OSError as error:  # a file without certificates is one, too
            raise ToolkitError(
                "fetch: ca_file cannot be read; name a PEM file that holds certificates"
            ) from error
    return context
