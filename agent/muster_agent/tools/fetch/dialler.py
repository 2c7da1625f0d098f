"""The network under the HTTP client: it dials addresses that were checked, and resolves no name."""

from collections.abc import Iterable, Sequence
from typing import cast

import httpcore2

from muster_agent.tools.fetch.addresses import IPAddress


class PinnedDialler(httpcore2.AsyncNetworkBackend):
    """Dials one host's checked addresses, in their order, whatever its name resolves to by then.

    TLS starts on the connection afterwards and is none of its business: server name and certificate stay
    those of the host.

    Args:
        host: The only host that may be asked for.
        port: The only port.
        addresses: Where `host` is.
        timeout_s: For all attempts together; each has an equal share of it.
    """

    def __init__(self, host: str, port: int, addresses: Sequence[IPAddress], timeout_s: float) -> None:
        self._peer = (host, port)
        self._addresses = addresses
        self._share_s = timeout_s / len(addresses)
        # Typed as what it may also be where anyio is missing.
        self._sockets = cast("httpcore2.AsyncNetworkBackend", httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that answers."""
        del timeout, local_address, socket_options  # nobody sets them here
        if (host, port) != self._peer:
            raise httpcore2.ConnectError("not the host that was checked")
        for address in self._addresses[:-1]:
            try:
                return await self._dial(address)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._dial(self._addresses[-1])

    async def _dial(self, address: IPAddress) -> httpcore2.AsyncNetworkStream:
        return await self._sockets.connect_tcp(str(address), self._peer[1], timeout=self._share_s)
