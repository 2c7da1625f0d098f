"""`/v1/responses`: runs that can be asked for again, gone on from, and left to themselves.

A response goes on with a conversation, or with the state that an earlier response left its thread in: where the thread
has moved on since, it forks. A run that waits for a person ends its response with a call of `approve_tool_call`; the
answer to it is the input of the next response.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from fastapi import FastAPI
from langchain_core.runnables import RunnableConfig
from starlette.requests import Request
from starlette.responses import Response

from muster_agent import failures
from muster_agent.api.requests import Json, add, caller_of, is_set, service_of
from muster_agent.disconnects import until_disconnect
from muster_agent.failures import Failure
from muster_agent.openai_api import stored_responses
from muster_agent.openai_api.approvals import answer_to
from muster_agent.openai_api.chat import (
    CLIENT_LEFT,
    IDEMPOTENCY_KEY,
    context_for,
    idempotency_key,
    names_of,
    when_left,
)
from muster_agent.openai_api.conversations import thread_of
from muster_agent.openai_api.happenings import reader_for
from muster_agent.openai_api.listing import page_of
from muster_agent.openai_api.reading import assistant_of, read_body
from muster_agent.openai_api.response_items import call_id_of
from muster_agent.openai_api.response_request import TOOL_CALLS, Answer, Input, ResponseRequest, parse
from muster_agent.openai_api.response_writer import ResponseWriter
from muster_agent.openai_api.stored_responses import MADE_BY, NewResponse
from muster_agent.openai_api.streaming import Left, Manner, StreamedAnswer, written
from muster_agent.runs.front import Order, Row, of_ids
from muster_agent.runs.records import Cancel
from muster_observability.request_ids import request_id_of

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Assistant
    from muster_agent.callers import Caller
    from muster_agent.runs.events import StoredEvent

_NO_STORE = {"cache-control": "no-store"}
_NOT_ASKED = "No call with this id waits for an answer: it may have been answered already, or been withdrawn."


def add_responses(app: FastAPI) -> None:
    """Add the routes."""
    one = "/v1/responses/{response_id}"
    add(app, "POST", "/v1/responses", _create, ResponseRequest)
    add(app, "GET", one, _get)
    add(app, "DELETE", one, _delete)
    add(app, "POST", f"{one}/cancel", _cancel)
    add(app, "GET", f"{one}/input_items", _input_items)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request, read.

    Attributes:
        caller: Who sends it.
        assistant: Whom it is for.
        body: What it says.
        given: What it brings.
    """

    caller: "Caller"
    assistant: "Assistant"
    body: ResponseRequest
    given: Input


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a response goes on.

    Attributes:
        thread_id: The thread; None for one of its own, which stays if the response is stored.
        checkpoint_id: The state to go on from; None for the newest.
    """

    thread_id: str | None
    checkpoint_id: str | None = None


async def _create(request: Request) -> Response:
    caller = await caller_of(request)
    body, given = parse(await read_body(request))
    asked = _Asked(caller, assistant_of(request, body.model), body, given)
    run, events = await _run_of(request, asked)
    shows_tools = TOOL_CALLS in (body.include or ())
    response = _begun(asked, run)
    if body.is_stored:
        new = NewResponse(run, response, given.items, shows_tools)
        response = (await service_of(request).responses.add(new))["body"]
    writer = ResponseWriter(_as_begun(response), reader_for(asked.assistant), shows_tools=shows_tools)
    if body.stream:
        left = None if body.background else when_left(request, run)
        return _stream(request, run, written(events, writer), writer, left)
    if body.background:
        await events.aclose()
        return Json(response, headers={**_NO_STORE, **names_of(run)}).response()
    return await _whole(request, run, written(events, writer), writer)


async def _run_of(request: Request, asked: _Asked) -> "tuple[Row, AsyncGenerator[StoredEvent]]":
    """The run that a request makes, or has made: sent again with its key it is no new one.

    Raises:
        Failure: It can make none.
    """
    runs, key = service_of(request).runs, idempotency_key(request, "responses")
    try:
        order = await _order(request, asked, await _place(request, asked))
    except Failure:
        # What it was to go on with may be as it is because of its own first time: its answer was given then.
        run = None if key is None else await runs.with_key(asked.caller.tenant, key)
        if run is None:
            raise
        return run, runs.events(run["run_id"])
    return await runs.submit_and_follow(order)


async def _place(request: Request, asked: _Asked) -> _Place:
    """Where a response goes on."""
    service, body, tenant = service_of(request), asked.body, asked.caller.tenant
    if body.conversation is not None:
        return _Place((await thread_of(service, tenant, body.conversation.id))["thread_id"])
    if body.previous_response_id is not None:
        return await _behind(request, asked, body.previous_response_id)
    return _Place(None)


async def _behind(request: Request, asked: _Asked, previous: str) -> _Place:
    """The state that an earlier response has led to."""
    service = service_of(request)
    row = await service.responses.newest_of(await service.responses.get(asked.caller.tenant, previous))
    where = "previous_response_id"
    if not row["is_finished"]:
        raise failures.bad_request("The previous response has not ended yet.", param=where)
    if asked.given.answers:  # an answer is to what waits now
        return _Place(row["thread_id"])
    if row["checkpoint_id"] is None:
        raise failures.bad_request("The previous response ended before it had begun.", param=where)
    place = {"thread_id": row["thread_id"], "checkpoint_ns": "", "checkpoint_id": row["checkpoint_id"]}
    if await service.memory.saver.aget_tuple(RunnableConfig(configurable=place)) is None:
        raise failures.bad_request("The state of the previous response is no longer kept.", param=where)
    return _Place(row["thread_id"], row["checkpoint_id"])


async def _order(request: Request, asked: _Asked, place: _Place) -> Order:
    body, given = asked.body, asked.given
    instructions = "\n\n".join(text for text in (body.instructions, *given.instructions) if text)
    kwargs: dict[str, Any] = {
        "input": {"messages": given.messages},
        "checkpoint": None if place.checkpoint_id is None else {"checkpoint_id": place.checkpoint_id},
        "stream_mode": ["messages-tuple", "updates"] if body.stream else ["updates"],
        "is_patient": bool(body.background),  # nobody is there who could try again
        # What is stored is read from the run's events, now or later.
        "stream_resumable": body.is_stored or IDEMPOTENCY_KEY in request.headers,
        **context_for(asked.assistant, instructions, body.sampling),
    }
    if given.answers and place.thread_id is not None:
        kwargs |= await _resumption(request, asked, place.thread_id)
    return Order(
        caller=asked.caller,
        assistant=asked.assistant,
        kwargs=kwargs,
        request_id=request_id_of(request.scope),
        thread_id=place.thread_id,
        keeps_thread=body.is_stored,  # later ones can go on with it
        thread_metadata=MADE_BY,
        idempotency_key=idempotency_key(request, "responses"),
    )


async def _resumption(request: Request, asked: _Asked, thread_id: str) -> dict[str, Any]:
    """What goes on with a run that waits: with the answers, and with the instructions that it had."""
    service, tenant = service_of(request), asked.caller.tenant
    thread = await service.threads.get(tenant, thread_id)
    tasks = cast("dict[str, list[dict[str, Any]]]", thread["interrupts"] or {})
    waiting = {call_id_of(each): each for task in tasks.values() for each in task}
    tools = [tool.name for tool in asked.assistant.tools]
    answered = [_answered(waiting, answer, tools) for answer in asked.given.answers]
    resume = {each["id"]: value for each, value in answered}
    kwargs: dict[str, Any] = {"input": None, "command": {"resume": resume}}
    earlier = await service.runs.list(tenant, thread_id, None, (1, 0))
    if earlier and not asked.body.instructions and not asked.given.instructions:
        known = earlier[0]["kwargs"]
        kwargs |= {name: known[name] for name in ("context", "config") if known.get(name) is not None}
    return kwargs


def _answered(waiting: dict[str, Any], answer: Answer, tools: Sequence[str]) -> tuple[Any, Any]:
    asked = waiting.get(answer.call_id)
    if asked is None:
        raise failures.bad_request(_NOT_ASKED, param=answer.where.replace(".output", ".call_id"))
    return asked, answer_to(asked["value"], answer.output, tools, answer.where)


def _begun(asked: _Asked, run: Row) -> dict[str, Any]:
    """A response that has no output yet."""
    body = asked.body
    form = None if body.text is None else body.text.format
    is_named = body.conversation is not None
    return {
        "id": stored_responses.response_id_of(run["run_id"]),
        "object": "response",
        "created_at": int(run["created_at"]),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": body.previous_response_id,
        "conversation": {"id": f"conv_{run['thread_id'].replace('-', '')}"} if is_named else None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.is_stored,
        "temperature": body.temperature,
        "text": {
            "format": {"type": "text"} if form is None else form.model_dump(by_alias=True, exclude_unset=True)
        },
        "tool_choice": "auto",
        "tools": [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def _stream(
    request: Request, run: Row, pieces: AsyncGenerator[bytes], writer: ResponseWriter, left: Left | None
) -> Response:
    manner = Manner(
        opening=writer.opening(),
        broken_off=writer.broken_off,
        keep_alive_s=service_of(request).settings.keep_alive_s,
        left=left,
        begins_at_once=left is None,  # its client may go and come back, and must know the response's name
    )
    return StreamedAnswer(pieces, manner, names_of(run))


async def _whole(
    request: Request, run: Row, pieces: AsyncGenerator[bytes], writer: ResponseWriter
) -> Response:
    """The response when its run has ended; the run ends with its client."""
    failed: list[Failure] = []

    async def listen() -> None:
        async with aclosing(pieces):
            try:
                async for _ in pieces:
                    pass
            except Failure as failure:
                failed.append(failure)

    if not await until_disconnect(request.receive, listen):
        await when_left(request, run)()
        return Response(status_code=CLIENT_LEFT)
    if failed:
        raise failed[0]
    return Json(writer.response, headers={**_NO_STORE, **names_of(run)}).response()


async def _known(request: Request) -> Row:
    """The response that a path names."""
    caller = await caller_of(request)
    return await service_of(request).responses.get(caller.tenant, request.path_params["response_id"])


async def _get(request: Request) -> Response:
    row = await _known(request)
    service = service_of(request)
    if not is_set(request, "stream"):
        return Json((await service.responses.newest_of(row))["body"], headers=_NO_STORE).response()
    after = _after(request)
    if row["is_finished"] and not await service.responses.has_events(row):
        raise failures.bad_request(
            "This response can no longer be streamed: its events are gone.", param="stream"
        )
    writer = service.responses.writer_for({**row, "body": _as_begun(row["body"])}, after)
    run = {"run_id": row["run_id"], "thread_id": row["thread_id"], "tenant": row["tenant"]}
    return _stream(request, run, written(service.runs.events(row["run_id"]), writer), writer, None)


def _as_begun(body: dict[str, Any]) -> dict[str, Any]:
    """A response as it was before its run."""
    status = "queued" if body["background"] else "in_progress"
    return {**body, "status": status, "output": [], "usage": None, "error": None, "incomplete_details": None}


def _after(request: Request) -> int:
    text = request.query_params.get("starting_after", "")
    if not text:
        return -1
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:  # noqa: PLR2004 - digits
        raise failures.bad_request("expected a number from 0", param="starting_after")
    return int(text)


async def _delete(request: Request) -> Response:
    row = await _known(request)
    service = service_of(request)
    await service.runs.cancel(of_ids(row["tenant"], None, [row["run_id"]]), Cancel.INTERRUPT)
    gone = await service.responses.delete(row["tenant"], row["response_id"])
    if gone["is_last"]:
        thread = await service.threads.get(row["tenant"], row["thread_id"])
        if MADE_BY.items() <= thread["metadata"].items():
            await service.threads.delete(row["tenant"], row["thread_id"])
    return Json({"id": row["response_id"], "object": "response", "deleted": True}).response()


async def _cancel(request: Request) -> Response:
    row = await _known(request)
    service = service_of(request)
    if not row["body"]["background"]:
        raise failures.bad_request("Only a response in the background can be cancelled.", param="response_id")
    if not row["is_finished"]:
        await service.runs.cancel(of_ids(row["tenant"], None, [row["run_id"]]), Cancel.INTERRUPT)
        await service.runs.ended(row["run_id"])
    return Json((await service.responses.newest_of(row))["body"], headers=_NO_STORE).response()


async def _input_items(request: Request) -> Response:
    row = await _known(request)
    name = row["response_id"].removeprefix("resp_")
    items = [{"id": f"item_{name}_{place}", **item} for place, item in enumerate(row["asked"]["items"])]
    return Json(page_of(request, items)).response()
