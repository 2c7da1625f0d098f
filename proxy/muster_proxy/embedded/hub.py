"""The model hub as a source of weights: one file over HTTP, from where the last attempt stopped."""

import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from muster_proxy.embedded.errors import SourceError
from muster_proxy.embedded.model import ModelSpec
from muster_proxy.embedded.partial import PartialFile

DEFAULT_ENDPOINT = "https://huggingface.co"

_OK = 200
_PARTIAL_CONTENT = 206
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True)
class Patience:
    """How long the hub may be silent: its absence costs seconds, because the package index comes after it.

    Attributes:
        resolve_s: For the name; the system's own resolver can take a minute without a network.
        connect_s: For the connection.
        first_byte_s: From the request to the head of the answer.
        stall_s: Between two pieces of the body.
    """

    resolve_s: float = 3.0
    connect_s: float = 3.0
    first_byte_s: float = 10.0
    stall_s: float = 20.0


Advance = Callable[[int], None]
"""Told how many bytes of the whole are here."""


class Hub:
    """Fetches the file of a model from its repository on the hub.

    Args:
        spec: The model.
        endpoint: The hub or a mirror; by default HF_ENDPOINT, else the hub itself.
        patience: How long it may be silent.
    """

    def __init__(
        self, spec: ModelSpec, endpoint: str | None = None, patience: Patience | None = None
    ) -> None:
        self._patience = patience or Patience()
        root = endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        self.name = f"the model hub ({root})"
        self._url = f"{root.rstrip('/')}/{spec.hub_repository}/resolve/main/{spec.file_name}"

    def fetch(self, partial: PartialFile, advance: Advance) -> None:
        """Append what `partial` lacks.

        Raises:
            SourceError: The hub did not give it all; what came stays in `partial`.
            DiskFullError: It does not fit.
        """
        partial.require_room()
        with _as_source_errors(), self._client() as client:
            if not self._append_from(partial.length_bytes, client, partial, advance):
                self._append_from(0, client, partial, advance)
        if partial.missing_bytes:
            raise SourceError(f"the answer ended {partial.missing_bytes:,} bytes early")

    def _client(self) -> httpx.Client:
        patience = self._patience
        timeout = httpx.Timeout(patience.first_byte_s, connect=patience.connect_s)
        # A hook, so that the host which a redirect leads to is resolved in time too.
        return httpx.Client(timeout=timeout, follow_redirects=True, event_hooks={"request": [self._resolve]})

    def _resolve(self, request: httpx.Request) -> None:
        url = request.url
        if _has_proxy(url):
            return  # the proxy resolves the name
        port = url.port or (443 if url.scheme == "https" else 80)
        resolve_within(self._patience.resolve_s, url.host, lambda: socket.getaddrinfo(url.host, port))

    def _append_from(
        self, start_bytes: int, client: httpx.Client, partial: PartialFile, advance: Advance
    ) -> bool:
        """False when the hub has nothing at `start_bytes`, and asking from 0 is worth a try."""
        headers = {"accept-encoding": "identity"}
        if start_bytes:
            headers["range"] = f"bytes={start_bytes}-"
        with client.stream("GET", self._url, headers=headers) as response:
            if response.status_code == _RANGE_NOT_SATISFIABLE and start_bytes:
                return False
            partial.truncate(_start_of(response, start_bytes, partial.whole_bytes))
            # httpcore reads this value when the body begins: from here on silence is a stall.
            response.request.extensions["timeout"]["read"] = self._patience.stall_s
            for piece in response.iter_raw():
                if len(piece) > partial.missing_bytes:
                    raise SourceError(
                        f"it sent more than the {partial.whole_bytes:,} bytes that the model has"
                    )
                partial.append(piece)
                advance(partial.length_bytes)
        return True


def _start_of(response: httpx.Response, asked_bytes: int, whole_bytes: int) -> int:
    """Where in the file the body begins.

    Raises:
        SourceError: The body is not the file, or a file of another length.
    """
    if response.status_code not in {_OK, _PARTIAL_CONTENT}:
        raise SourceError(f"it answered {response.status_code} {response.reason_phrase}".rstrip())
    if response.headers.get("content-type", "").startswith("text/html"):
        raise SourceError("it answered with a web page in the place of the file")
    start_bytes = asked_bytes if response.status_code == _PARTIAL_CONTENT else 0
    length = response.headers.get("content-length")
    if length is not None and start_bytes + int(length) != whole_bytes:
        raise SourceError(f"its file has {start_bytes + int(length):,} bytes, the model has {whole_bytes:,}")
    given = response.headers.get("content-range")
    if start_bytes and given is not None and not given.startswith(f"bytes {start_bytes}-"):
        raise SourceError(f"asked for bytes from {start_bytes} on, it gave {given}")
    return start_bytes


def _has_proxy(url: httpx.URL) -> bool:
    proxies = urllib.request.getproxies()
    return bool((url.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(url.host))


def resolve_within(limit_s: float, host: str, look_up: Callable[[], object]) -> None:
    """Run `look_up` in a thread and wait at most `limit_s` for it; a late one is left behind.

    Raises:
        SourceError: The name did not resolve, or not in time.
    """
    failures: list[OSError | UnicodeError] = []

    def run() -> None:
        try:
            look_up()
        except (OSError, UnicodeError) as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="resolve", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise SourceError(f"the name {host} did not resolve in {limit_s:g} s")
    if failures:
        raise SourceError(f"the name {host} does not resolve: {failures[0]}")


@contextmanager
def _as_source_errors() -> Generator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise SourceError(f"no answer in time ({type(error).__name__})") from error
    # The last three are how httpx refuses a proxy or certificate setting that it cannot use.
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError, ImportError) as error:
        raise SourceError(" ".join(str(error).split()) or type(error).__name__) from error
