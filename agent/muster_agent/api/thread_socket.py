"""A thread over a WebSocket: commands and subscriptions come in, answers and events go out.

Whatever goes wrong is told: a command gets an answer, and a conversation that cannot go on a close frame.
"""

from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

import anyio
import orjson
from langchain_core.utils.uuid import uuid7
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from muster_agent import failures
from muster_agent.api.commands import Command, Sender, refusal
from muster_agent.api.content import ContentError, read_json
from muster_agent.api.origins import may_use
from muster_agent.api.requests import MAX_BODY_BYTES, ApiError, checked_id
from muster_agent.api.subscribing import SubscriptionBody, subscribed
from muster_agent.failures import Failure
from muster_agent.runs.records import ThreadNotFoundError
from muster_agent.wire import to_json
from muster_observability import logs
from muster_observability.request_ids import new_request_id

if TYPE_CHECKING:
    from muster_agent.service import Service

_MOST_SUBSCRIPTIONS = 64
# A browser is not told the status of a refused handshake, so the socket is opened and closed with this plus the status.
_CLOSE = 4000
_NO_TEXT = 1003
_BROKE = 1011

_log = logs.get("agent")


async def serve_thread(websocket: WebSocket) -> None:
    """Serve one client for as long as it stays."""
    await websocket.accept()
    try:
        await _serve(websocket)
    except Exception:  # noqa: BLE001 - the server would let the connection drop without a word
        _log.exception("conversation broke")
        with suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
            await websocket.close(_BROKE, failures.internal().message)


async def _serve(websocket: WebSocket) -> None:
    try:
        sender = await _sender(websocket)
    except Failure as error:
        await websocket.close(_CLOSE + error.status, error.message[:100])
        return
    except ApiError as error:
        await websocket.close(_CLOSE + error.status, error.detail[:100])
        return
    except ThreadNotFoundError:
        await websocket.close(_CLOSE + 404, "Thread not found")
        return
    async with anyio.create_task_group() as group:
        await _Conversation(websocket, sender, group).hold()
        group.cancel_scope.cancel()


async def _sender(websocket: WebSocket) -> Sender:
    """Who speaks, and on which thread.

    Raises:
        ApiError: 403, a page of another site speaks for its visitor; 422, the path names no thread.
        Failure: Nobody known speaks, or the proxy cannot be asked.
        ThreadNotFoundError: The thread is another tenant's.
    """
    # A browser asks nobody before it opens a socket for a page, whichever page that is.
    service: Service = websocket.app.state.service
    headers = websocket.headers
    if not may_use(headers.get("origin"), headers.get("host"), service.settings.allowed_origins):
        raise ApiError(403, "Pages of other sites may not use this service.")
    caller = await service.callers.identify(websocket.headers)
    thread_id = checked_id(websocket.path_params["thread_id"], "thread")
    await service.thread_events.check(caller.tenant, thread_id)
    return Sender(service, caller, thread_id, new_request_id())


class _Conversation:
    """One client's commands and subscriptions."""

    def __init__(self, websocket: WebSocket, sender: Sender, group: Any) -> None:  # noqa: ANN401 - anyio's task group
        self._websocket = websocket
        self._sender = sender
        self._group = group
        self._subscriptions: dict[str, anyio.CancelScope] = {}
        self._lock = anyio.Lock()

    async def hold(self) -> None:
        """Do what the client says until it leaves."""
        try:
            while (message := await self._websocket.receive())["type"] != "websocket.disconnect":
                if (text := message.get("text")) is None:  # bytes
                    await self._websocket.close(_NO_TEXT)
                    return
                await self._send(await self._answer(text))
        except WebSocketDisconnect:  # while it was being answered
            return

    async def _answer(self, text: str) -> dict[str, Any] | None:
        """The answer to a command; None where it has been sent already."""
        try:
            command = _read(text)
        except _RefusedError as error:
            return refusal(error.command_id, "invalid_argument", str(error))
        try:
            return await self._done(command)
        except WebSocketDisconnect:
            raise
        except Exception:  # noqa: BLE001 - one command that fails is no reason to end the others
            _log.exception("command broke", request_id=self._sender.request_id)
            return refusal(command.id, "unknown_error", failures.internal().message)

    async def _done(self, command: Command) -> dict[str, Any] | None:
        match command.method:
            case "subscription.subscribe":
                return await self._subscribe(command)
            case "subscription.unsubscribe":
                return self._unsubscribe(command)
            case _:
                return await self._obey(command)

    async def _obey(self, command: Command) -> dict[str, Any]:
        try:
            return await self._sender.obey(command)
        except ThreadNotFoundError:
            return refusal(command.id, "permission_denied", "Thread not found")

    async def _subscribe(self, command: Command) -> dict[str, Any] | None:
        try:
            body = SubscriptionBody.model_validate(command.params or {})
        except ValidationError:
            return refusal(command.id, "invalid_argument", "subscription.subscribe requires channels.")
        if len(self._subscriptions) >= _MOST_SUBSCRIPTIONS:
            return refusal(
                command.id, "invalid_argument", f"A connection has {_MOST_SUBSCRIPTIONS} subscriptions."
            )
        name = str(uuid7())
        self._subscriptions[name] = scope = anyio.CancelScope()
        # Before the first event: the client knows what it is for by then.
        await self._send({"type": "success", "id": command.id, "result": {"subscription_id": name}})
        self._group.start_soon(self._relay, body, scope)
        return None

    def _unsubscribe(self, command: Command) -> dict[str, Any]:
        name = str((command.params or {}).get("subscription_id"))
        scope = self._subscriptions.pop(name, None)
        if scope is None:
            return refusal(command.id, "no_such_subscription", "There is no such subscription.")
        scope.cancel()
        return {"type": "success", "id": command.id, "result": {}}

    async def _relay(self, body: SubscriptionBody, scope: anyio.CancelScope) -> None:
        """Tell what a subscription is for, until it is given up or the client has left."""
        with suppress(WebSocketDisconnect):
            await self._tell(body, scope)

    async def _tell(self, body: SubscriptionBody, scope: anyio.CancelScope) -> None:
        sender = self._sender
        events = subscribed(sender.service, sender.caller.tenant, sender.thread_id, body)
        with scope:
            async with aclosing(events) as wanted:
                async for event in wanted:
                    await self._write(event.as_json())

    async def _send(self, answer: dict[str, Any] | None) -> None:
        if answer is not None:
            await self._write(to_json(answer))

    async def _write(self, message: bytes) -> None:
        async with self._lock:
            await self._websocket.send_text(message.decode())


class _RefusedError(Exception):
    """A message is no command; its text says why.

    Attributes:
        command_id: What it names itself, if it says so.
    """

    def __init__(self, message: str, command_id: int | None = None) -> None:
        self.command_id = command_id
        super().__init__(message)


def _read(text: str) -> Command:
    message = text.encode()
    if len(message) > MAX_BODY_BYTES:
        raise _RefusedError(f"A message is larger than {MAX_BODY_BYTES} bytes.")
    try:
        content = read_json(message)
    except ContentError as error:
        words = f"A message must be a command in JSON; this one is {error}."
        raise _RefusedError(words, _id_in(message)) from None
    try:
        return Command.model_validate(content)
    except ValidationError:
        raise _RefusedError("Protocol commands must include an integer id and string method.") from None


def _id_in(message: bytes) -> int | None:
    """The number of a command that cannot be taken, so that its client does not wait for ever."""
    try:
        content = cast("object", orjson.loads(message))
    except orjson.JSONDecodeError:
        return None
    named: object = cast("dict[str, object]", content).get("id") if isinstance(content, dict) else None
    return named if type(named) is int else None
