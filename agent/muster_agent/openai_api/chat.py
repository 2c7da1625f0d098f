"""`POST /v1/chat/completions`: request, run, answer, streamed or not."""

import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import orjson
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muster_agent import failures, identity
from muster_agent.answers import KEEP_ALIVE, ChunkWriter, broken_off, completion
from muster_agent.chat_request import ChatRequest, parse
from muster_agent.disconnects import until_disconnect
from muster_agent.failures import Failure
from muster_agent.measures import Measures
from muster_agent.runs import Emit, RunEvent, Runner, RunResult
from muster_observability import logs
from muster_observability.request_ids import is_identifier, request_id_of

MAX_BODY_BYTES = 10_000_000
_CLIENT_LEFT = 499  # nobody reads it; it is what the log shows

_log = logs.get("agent")

Work = Callable[[Emit], Awaitable[RunResult]]
"""A run that waits to be told where its events go."""


@dataclass(frozen=True, slots=True)
class ChatEndpoint:
    """Answers chat completions requests.

    Args:
        runner: The agent.
        measures: Where runs are counted.
        keep_alive_s: Seconds of silence on a stream after which a comment is sent.
    """

    runner: Runner
    measures: Measures
    keep_alive_s: float

    async def __call__(self, request: Request) -> Response:
        """Read and check the request, then answer it.

        Raises:
            Failure: There is no answer.
        """
        try:
            chat = parse(await read_body(request))
        except ClientDisconnect:
            return Response(status_code=_CLIENT_LEFT)
        thread_id = _thread_id(request)
        request_id = request_id_of(request.scope)
        identity.assume(identity.RunIdentity(thread_id or identity.new_run_id(), request_id))
        work = partial(self._run, chat, thread_id, request_id)
        if chat.stream:
            return StreamedAnswer(work, ChunkWriter(chat.wants_usage), self.keep_alive_s)
        return await whole_answer(request, work)

    async def _run(self, chat: ChatRequest, thread_id: str | None, request_id: str, emit: Emit) -> RunResult:
        """One run with its record; nothing but a `Failure` leaves it."""
        log = _log.bind(request_id=request_id, thread=thread_id, streamed=bool(chat.stream))
        with self.measures.run() as record:
            try:
                return await self.runner.run(chat, thread_id, emit, record)
            except Failure as failure:
                log.warning("run failed", status=failure.status, code=failure.code)
                raise
            except Exception as error:
                record.outcome = "failed"
                where = "".join(traceback.format_tb(error.__traceback__)[-3:])
                log.error(  # noqa: TRY400 - an exception's text may quote a prompt
                    "run broke", error=type(error).__name__, where=where
                )
                raise failures.internal() from error
            finally:
                log.info("run ended", outcome=record.outcome)


async def read_body(request: Request) -> bytes:
    """The body, under its size limit; a longer one is refused before it is read.

    Raises:
        Failure: 413, or 415 for a compressed body.
        ClientDisconnect: The client left.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise failures.of_status(415, "Compressed request bodies are not accepted.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> Failure:
    return failures.of_status(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _thread_id(request: Request) -> str | None:
    name = request.headers.get(identity.SESSION_ID)
    if name is not None and not is_identifier(name):
        raise failures.bad_request(
            "The header x-session-id must be 1 to 128 letters, digits, dots, hyphens or underscores.",
            param=identity.SESSION_ID,
        )
    return name


async def whole_answer(request: Request, work: Work) -> Response:
    """Run to the end, then answer; the run ends with its client.

    Raises:
        Failure: There is no answer.
    """
    events: list[RunEvent] = []
    answer: list[bytes] = []

    async def keep(event: RunEvent) -> None:
        events.append(event)

    async def run() -> None:
        answer.append(completion(await work(keep), events))

    if not await until_disconnect(request.receive, run):
        return Response(status_code=_CLIENT_LEFT)
    return Response(answer[0], media_type="application/json", headers={"cache-control": "no-store"})


_Told = RunEvent | RunResult | Failure


class StreamedAnswer(Response):
    """Answers with server-sent events while the run goes on; the run ends with its client.

    The response begins with the run's first event, or after `keep_alive_s` of silence. A run that fails
    before that is answered with its own status, as it would be unstreamed.

    Args:
        work: The run.
        writer: Writes its events.
        keep_alive_s: Seconds of silence after which a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, work: Work, writer: ChunkWriter, keep_alive_s: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        # A stream has no length, and `init_headers` leaves it out as long as there is no body.
        self._work = work
        self._writer = writer
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        await until_disconnect(receive, partial(self._answer, scope, receive, send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # No buffer between the run and the client: a slow reader slows the run, and memory stays bounded.
        told, heard = anyio.create_memory_object_stream[_Told](0)
        async with anyio.create_task_group() as group, told, heard:
            group.start_soon(self._perform, told)
            first = await self._next(heard)
            if isinstance(first, Failure):
                await failure_response(first)(scope, receive, send)
            else:
                await self._relay(first, heard, send)

    async def _perform(self, told: MemoryObjectSendStream[_Told]) -> None:
        try:
            await told.send(await self._work(told.send))
        except Failure as failure:
            await told.send(failure)

    async def _next(self, heard: MemoryObjectReceiveStream[_Told]) -> _Told | None:
        """What the run tells next; None after `keep_alive_s` of silence."""
        with anyio.move_on_after(self._keep_alive_s):
            return await heard.receive()
        return None

    async def _relay(self, first: _Told | None, heard: MemoryObjectReceiveStream[_Told], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _write(send, self._writer.opening())
        told = first
        while not isinstance(told, RunResult | Failure):
            await _write(send, KEEP_ALIVE if told is None else self._writer.event(told))
            told = await self._next(heard)
        end = self._writer.closing(told) if isinstance(told, RunResult) else broken_off(told)
        await _write(send, end, more=False)


async def _write(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def failure_response(failure: Failure) -> Response:
    """A failure as a whole response."""
    return Response(
        orjson.dumps(failure.body), failure.status, headers=failure.headers, media_type="application/json"
    )
