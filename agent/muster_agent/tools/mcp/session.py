"""One connection to a server, from its opening to its end, in a task of its own.

The `mcp` package's connections hold task groups, so a task must leave them that entered them. `Session.run`
is that task; calls come from other tasks. When the connection breaks, the package leaves some of those that
wait for an answer waiting; here each is told.
"""

import math
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Final

import anyio
import anyio.lowlevel
import httpx
from mcp import McpError, types
from mcp.shared.session import RequestResponder
from pydantic import ValidationError

from muster_agent.tools.mcp.client import ENDED, FORGOTTEN, Client, listed
from muster_agent.tools.mcp.listing import digests
from muster_agent.tools.mcp.stdio import Streams
from muster_observability import logs

_log = logs.get("agent.mcp")

Connect = Callable[[Callable[[], None]], AbstractAsyncContextManager[Streams]]
"""Opens a connection; what it is given is called when the connection has broken."""

CLOSING_S: Final = 5.0
"""Seconds that the goodbye to a server may take."""
_RECHECK_S: Final = 5.0
"""Seconds that a server has to show that it is alive, after it did not answer."""
_ANSWERS: Final = {ENDED: "ended before it answered", FORGOTTEN: "answered with status 404"}
_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (FileNotFoundError, "cannot be started: its command or its folder is not there"),
    (NotADirectoryError, "cannot be started: its folder is not one"),
    (PermissionError, "cannot be started: its command or its folder may not be used"),
    (OSError, "cannot be started"),
    (httpx.ConnectError, "cannot be connected to"),
    (httpx.TimeoutException, "did not answer in time"),
)


class UnreachableError(Exception):
    """No session could be opened, and nothing was done; the text says why and names no address."""


class NotSentError(Exception):
    """The session is over and the call was not sent: it may be sent by another."""


class LostError(Exception):
    """The connection broke while the call was under way: it may have been carried out."""


class SilentError(Exception):
    """No answer within the time limit; the server was told that the call is cancelled."""


class ChangedError(Exception):
    """The tool is not the one that the model was offered."""


class RefusedError(Exception):
    """The server answered with an error; the text is the server's."""


class Session:
    """A session with a server.

    Args:
        server: Its name, for the log.
        connect: Opens the connection.
        timeout_s: Seconds to open, and seconds for each call.
        idle_s: Seconds without a call after which it ends.
    """

    def __init__(self, server: str, connect: Connect, timeout_s: float, idle_s: float) -> None:
        self.tools: list[types.Tool] = []
        self._server = server
        self._connect = connect
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._client: Client | None = None
        self._digests: dict[str, str] = {}
        self._is_stale = False
        self._is_over = False
        self._failure = ""
        self._settled = anyio.Event()
        self._life = anyio.CancelScope()
        self._idle = anyio.CancelScope()
        self._calls: set[anyio.CancelScope] = set()

    @property
    def is_over(self) -> bool:
        """It takes no more calls."""
        return self._is_over or self._idle.cancel_called

    @property
    def is_idle(self) -> bool:
        """It is open and no call is under way."""
        return self._client is not None and not self._calls

    async def run(self) -> None:
        """Open the session, keep it until it is closed, unused for long or broken, and end it.

        What goes wrong is kept for those who wait for it, never raised.
        """
        try:
            self._life.deadline = anyio.current_time() + self._timeout_s
            with self._life:
                await self._live()
            if self._life.cancelled_caught and self._client is None:
                self._failure = self._failure or f"did not answer within {self._timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - only this session is over; whoever waits is told
            self._failure = _why(error)
            _log.info("mcp session broke off", server=self._server, because=self._failure)
        finally:
            self._end()
            self._settled.set()

    def close(self) -> None:
        """End it; calls under way are lost."""
        self._idle.cancel()
        if self._client is None:
            self._failure = self._failure or "ended before it answered"
            self._life.cancel()

    async def opened(self) -> None:
        """Wait until it is open.

        Raises:
            UnreachableError: It could not be opened.
        """
        await self._settled.wait()
        if self._client is None:
            raise UnreachableError(self._failure)

    async def call(self, tool: str, digest: str, arguments: dict[str, object]) -> types.CallToolResult:
        """Call a tool, if it is still the one with this digest.

        Raises:
            NotSentError: The session was over before.
            LostError: The connection broke.
            SilentError: No answer in time.
            ChangedError: The tool is another one now.
            RefusedError: The server answered with an error.
        """
        client = self._client
        if client is None or self.is_over:
            raise NotSentError
        if self._is_stale:
            await self._recheck(client)
        if self._digests.get(tool) != digest:
            raise ChangedError
        with self._limit(self._timeout_s):
            return await self._ask(client, tool, arguments)
        if self._is_over:
            raise LostError
        self._is_stale = True
        raise SilentError

    async def _live(self) -> None:
        async with (
            self._connect(self.close) as (incoming, outgoing),
            Client(incoming, outgoing, message_handler=self._heed) as client,
        ):
            await client.initialize()
            self.tools = await listed(client)
            self._digests = digests(self.tools)
            self._client = client
            self._life.deadline = math.inf
            self._settled.set()
            try:
                self._rest()
                with self._idle:
                    await anyio.sleep_forever()
            finally:
                self._end()
                self._life.deadline = anyio.current_time() + CLOSING_S

    async def _heed(
        self,
        message: RequestResponder[types.ServerRequest, types.ClientResult]
        | types.ServerNotification
        | Exception,
    ) -> None:
        """Take note of what the server says unasked.

        An unreadable answer cannot be given to whoever waits for it, so the session ends. (A RuntimeError is
        an answer to what was cancelled.)
        """
        match message:
            case types.ServerNotification(root=types.ToolListChangedNotification()):
                self._is_stale = True
            case Exception() if not isinstance(message, RuntimeError):
                self.close()
            case _:
                pass
        await anyio.lowlevel.checkpoint()

    async def _recheck(self, client: Client) -> None:
        """List the tools again, which shows too that the server is alive.

        Raises:
            NotSentError: It is not; the session is over.
        """
        self._is_stale = False
        with self._limit(min(_RECHECK_S, self._timeout_s)):
            try:
                self._digests = digests(await listed(client))
            except Exception:  # noqa: BLE001 - whatever it is, a new session is the answer
                self.close()
                raise NotSentError from None
            return
        self.close()
        raise NotSentError

    async def _ask(self, client: Client, tool: str, arguments: dict[str, object]) -> types.CallToolResult:
        try:
            return await client.call(tool, arguments)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            self.close()
            raise NotSentError from None
        except anyio.EndOfStream:
            self.close()
            raise LostError from None
        except ValidationError:
            raise RefusedError("the answer cannot be read") from None
        except McpError as error:
            raise self._meant(error.error) from None

    def _meant(self, error: types.ErrorData) -> Exception:
        match error.code, error.message:
            case pair if pair == FORGOTTEN:
                self.close()
                return NotSentError()
            case pair if pair == ENDED:
                self.close()
                return LostError()
            case _:
                return RefusedError(error.message)

    @contextmanager
    def _limit(self, seconds: float) -> Generator[None]:
        """Give up after this time, or when the session ends; while inside, it is in use."""
        with anyio.CancelScope(deadline=anyio.current_time() + seconds) as scope:
            self._calls.add(scope)
            self._idle.deadline = math.inf
            try:
                yield
            finally:
                self._calls.discard(scope)
                if not self._calls:
                    self._rest()

    def _rest(self) -> None:
        self._idle.deadline = anyio.current_time() + self._idle_s

    def _end(self) -> None:
        self._is_over = True
        for scope in self._calls:
            scope.cancel()


def _why(error: BaseException) -> str:
    """Why a session failed, in words that name no address."""
    match error:
        case BaseExceptionGroup(exceptions=[first, *_]):
            return _why(first)
        case httpx.HTTPStatusError():
            return f"answered with status {error.response.status_code}"
        case McpError():
            return _ANSWERS.get((error.error.code, error.error.message), "refused to open a session")
        case _:
            return next((words for kind, words in _REASONS if isinstance(error, kind)), "broke off")
