"""`/v1/conversations`: threads, by OpenAI's name for them."""

import uuid
from typing import TYPE_CHECKING, Annotated, Any, cast

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from muster_agent import failures
from muster_agent.api.requests import Json, add, caller_of, service_of
from muster_agent.openai_api.happenings import ANSWERING_NODE, fields_of
from muster_agent.openai_api.listing import page_of
from muster_agent.openai_api.reading import Strict, parsed, read_body
from muster_agent.openai_api.response_items import of_conversation
from muster_agent.openai_api.response_request import input_of
from muster_agent.runs.records import NewThread, ThreadNotFoundError
from muster_agent.runs.threads import StateUpdate
from muster_agent.wire import plain

if TYPE_CHECKING:
    from muster_agent.runs.threads import Row
    from muster_agent.service import Service

_PREFIX = "conv_"
_MOST_ITEMS = 20

# Where the client's metadata stands in the thread's: a change replaces all of it, and no name is taken.
_CLIENTS = "conversation"

_Metadata = Annotated[dict[str, str], Field(max_length=16)]


class NewConversation(Strict):
    """A conversation that is to be made."""

    items: Annotated[list[dict[str, Any]], Field(max_length=_MOST_ITEMS)] | None = None
    metadata: _Metadata | None = None


class ConversationChange(Strict):
    """What is to be known of a conversation."""

    metadata: _Metadata


def add_conversations(app: FastAPI) -> None:
    """Add the routes."""
    one = "/v1/conversations/{conversation_id}"
    add(app, "POST", "/v1/conversations", _create, NewConversation)
    add(app, "GET", one, _get)
    add(app, "POST", one, _update, ConversationChange)
    add(app, "DELETE", one, _delete)
    add(app, "GET", f"{one}/items", _items)


async def thread_of(service: "Service", tenant: str, conversation_id: str) -> "Row":
    """The thread that a conversation is.

    Raises:
        Failure: 404, the tenant has no such conversation.
    """
    try:
        thread_id = str(uuid.UUID(conversation_id.removeprefix(_PREFIX)))
        return await service.threads.get(tenant, thread_id)
    except (ValueError, ThreadNotFoundError):
        message = f"Conversation with id '{conversation_id[:128]}' not found."
        raise failures.not_found(message, "conversation") from None


def _as_json(thread: "Row") -> dict[str, Any]:
    return {
        "id": f"{_PREFIX}{thread['thread_id'].replace('-', '')}",
        "object": "conversation",
        "created_at": int(thread["created_at"]),
        "metadata": fields_of(thread["metadata"].get(_CLIENTS)),
    }


async def _create(request: Request) -> Response:
    caller = await caller_of(request)
    body = await read_body(request)
    new = parsed(body, NewConversation) if body else NewConversation()
    given = input_of(list(new.items or []))
    if given.answers or given.instructions:
        raise failures.bad_request("expected messages of user and assistant", param="items")
    service = service_of(request)
    assistant = _first_assistant(service)
    if given.messages and assistant is None:
        raise failures.bad_request(
            "No agent here takes items: send them with the first response.", param="items"
        )
    metadata = {_CLIENTS: new.metadata or {}, **(assistant or {})}
    thread = await service.threads.create(NewThread(str(uuid.uuid4()), caller.tenant, metadata))
    if given.messages:
        change = StateUpdate({"messages": given.messages}, as_node=ANSWERING_NODE)
        await service.threads.update(caller.tenant, thread["thread_id"], change)
    return Json(_as_json(thread)).response()


def _first_assistant(service: "Service") -> dict[str, str] | None:
    """Whose state a new conversation is, until somebody speaks to another: the first that has messages for sure."""
    found = next((each for each in service.assistants if each.declaration.graph is None), None)
    return None if found is None else {"graph_id": found.graph_id, "assistant_id": found.assistant_id}


async def _known(request: Request) -> "Row":
    """The thread that a path names."""
    caller = await caller_of(request)
    return await thread_of(service_of(request), caller.tenant, request.path_params["conversation_id"])


async def _get(request: Request) -> Response:
    return Json(_as_json(await _known(request))).response()


async def _update(request: Request) -> Response:
    thread = await _known(request)
    change = parsed(await read_body(request), ConversationChange)
    metadata = {_CLIENTS: change.metadata}
    changed = await service_of(request).threads.patch(thread["tenant"], thread["thread_id"], metadata)
    return Json(_as_json(changed)).response()


async def _delete(request: Request) -> Response:
    thread = await _known(request)
    await service_of(request).threads.delete(thread["tenant"], thread["thread_id"])
    told = {"id": _as_json(thread)["id"], "object": "conversation.deleted", "deleted": True}
    return Json(told).response()


async def _items(request: Request) -> Response:
    thread = await _known(request)
    state = await service_of(request).threads.state(thread["tenant"], thread["thread_id"])
    values: Any = plain(state["values"])
    messages = cast("dict[str, Any]", values).get("messages") if isinstance(values, dict) else None
    items = list(of_conversation(cast("list[Any]", messages) if isinstance(messages, list) else []))
    return Json(page_of(request, items)).response()
