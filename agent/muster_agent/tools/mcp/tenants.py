"""One session for each tenant: what a server remembers of one is never another's."""

import contextvars
from typing import Final

from anyio.abc import TaskGroup
from mcp import types

from muster_agent.tools.mcp.listing import Offer
from muster_agent.tools.mcp.session import Connect, NotSentError, Session, UnreachableError
from muster_agent.tools.mcp.settings import McpServer

_TRIES: Final = 2


class Sessions:
    """The sessions with one server.

    Args:
        server: Its name.
        connect: Opens a connection to it.
        settings: Its limits.
        group: Where sessions live; it must outlast them.
    """

    def __init__(self, server: str, connect: Connect, settings: McpServer, group: TaskGroup) -> None:
        self.server = server
        self._connect = connect
        self._settings = settings
        self._group = group
        # A session outlives the run that needed it first, and is to carry none of that run's variables.
        self._context = contextvars.copy_context()
        self._of_tenant: dict[str, Session] = {}
        self._is_closed = False

    async def listing(self) -> list[types.Tool]:
        """What the server offers, asked in a session that no tenant gets.

        Raises:
            UnreachableError: The server cannot be asked.
        """
        session = self._new()
        self._context.copy().run(self._group.start_soon, session.run)
        try:
            await session.opened()
            return session.tools
        finally:
            session.close()

    async def call(self, tenant: str, offer: Offer, arguments: dict[str, object]) -> types.CallToolResult:
        """Call a tool in the tenant's session, in a new one where there is none or it turns out to be over.

        Only a call that never left is sent again.

        Raises:
            UnreachableError: There is no session to be had; nothing was done.
            LostError, SilentError, ChangedError, RefusedError: As of `Session.call`.
        """
        for _ in range(_TRIES):
            session = self._session_of(tenant)
            await session.opened()
            try:
                return await session.call(offer.tool, offer.digest, arguments)
            except NotSentError:
                continue
        raise UnreachableError("ends its sessions")

    def close(self) -> None:
        """End all sessions; the task group they live in waits for them."""
        self._is_closed = True
        for session in list(self._of_tenant.values()):
            session.close()

    def _session_of(self, tenant: str) -> Session:
        session = self._of_tenant.pop(tenant, None)
        if session is None or session.is_over:
            self._make_room()
            session = self._new()
            self._context.copy().run(self._group.start_soon, self._keep, tenant, session)
        self._of_tenant[tenant] = session  # at the end: the order is that of use
        return session

    def _new(self) -> Session:
        if self._is_closed:
            raise UnreachableError("is closed")
        return Session(self.server, self._connect, self._settings.timeout_s, self._settings.idle_s)

    def _make_room(self) -> None:
        if len(self._of_tenant) < self._settings.most_sessions:
            return
        for tenant, session in self._of_tenant.items():
            if session.is_idle:
                session.close()
                del self._of_tenant[tenant]
                return
        raise UnreachableError("has as many sessions as it may have, and all are in use")

    async def _keep(self, tenant: str, session: Session) -> None:
        try:
            await session.run()
        finally:
            if self._of_tenant.get(tenant) is session:
                del self._of_tenant[tenant]
