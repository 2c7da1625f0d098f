"""What is measured: each server with our client, and uvicorn with each client. Each runs as its documentation says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.peers.launch import ROOT
from tests.benchmarks.peers.proxies import Place, Proxy

OURS = "ours"
SERVERS = (OURS, "uvicorn", "granian", "hypercorn")
CLIENTS = (OURS, "aiohttp", "pyreqwest", "httpx2")

APP = "tests.benchmarks.relays.app:app"


@dataclass(frozen=True)
class Combination:
    """A server and a client of a relay.

    Attributes:
        server: One of `SERVERS`.
        client: One of `CLIENTS`.
    """

    server: str
    client: str

    @property
    def name(self) -> str:
        """Its row, and what `--only` takes."""
        return f"{self.server}+{self.client}"

    def relay(self, engine: str, python: str) -> Proxy:
        """How the relay is run.

        Args:
            engine: Root URL of the engine behind it.
            python: Of an environment that has what it imports.
        """
        arguments = _ARGUMENTS[self.server]

        def command(place: Place) -> Sequence[str]:
            return [python, "-m", *arguments(place.port)]

        parts = (ROOT, ROOT / "batching", ROOT / "observability", ROOT / "proxy")
        path = ":".join(str(part) for part in parts)
        return Proxy(
            self.name,
            command,
            variables={"PYTHONPATH": path, "RELAY_ENGINE": engine, "RELAY_CLIENT": self.client},
        )


def _ours(port: int) -> Sequence[str]:
    return ["tests.benchmarks.relays.own_server", str(port)]


def _uvicorn(port: int) -> Sequence[str]:
    """Its fastest parser and loop; without what Muster has no use for, as it would run it."""
    kinds = ["--http", "httptools", "--loop", "uvloop", "--ws", "none"]
    return ["uvicorn", APP, "--port", str(port), *kinds, "--no-access-log", "--no-proxy-headers"]


def _granian(port: int) -> Sequence[str]:
    """One worker, HTTP/1.1; it takes 1,024 requests at a time by default."""
    kinds = ["--interface", "asgi", "--http", "1", "--loop", "uvloop", "--no-ws"]
    return ["granian", APP, "--port", str(port), *kinds]


def _hypercorn(port: int) -> Sequence[str]:
    return ["hypercorn", APP, "--bind", f"127.0.0.1:{port}", "--worker-class", "uvloop"]


_ARGUMENTS: Mapping[str, Callable[[int], Sequence[str]]] = {
    OURS: _ours,
    "uvicorn": _uvicorn,
    "granian": _granian,
    "hypercorn": _hypercorn,
}

ALL = (
    *(Combination(server, OURS) for server in SERVERS),
    *(Combination("uvicorn", client) for client in CLIENTS if client != OURS),
)
BASIS = Combination(OURS, OURS).name
"""The row that the others' CPU is shown beside."""
