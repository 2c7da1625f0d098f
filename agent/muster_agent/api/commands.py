"""Commands of LangGraph's second protocol: what a client tells a thread to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from pydantic import Field, ValidationError

from muster_agent.api.requests import ApiError, Body
from muster_agent.api.run_body import RunBody
from muster_agent.api.runs import assistant_of, check_answer, check_checkpoint
from muster_agent.callers import Caller
from muster_agent.runs.front import Order, Row
from muster_agent.runs.records import Multitask, ThreadBusyError, ThreadNotFoundError
from muster_agent.service import Service
from muster_agent.streams import v2

_BUSY = "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."
_INVALID = "invalid_argument"


class Command(Body):
    """What a client asks for."""

    id: int = Field(ge=0, le=2**53, strict=True)
    method: str = Field(max_length=128)
    params: dict[str, Any] | None = None


class _RefusedError(Exception):
    """A command cannot be obeyed.

    Attributes:
        code: The protocol's word for why.
        message: What was expected and what was got; no prompt.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Sender:
    """Who commands, and where.

    Attributes:
        service: The service.
        caller: Who commands.
        thread_id: The thread.
        request_id: Of the request, for logs.
    """

    service: Service
    caller: Caller
    thread_id: str
    request_id: str

    async def obey(self, command: Command) -> dict[str, Any]:
        """Do what a command says. Returns the answer.

        Raises:
            ThreadNotFoundError: The thread is another tenant's.
        """
        try:
            result = await self._result(command.method, command.params or {})
        except _RefusedError as error:
            return refusal(command.id, error.code, error.message)
        except ApiError as error:
            code = "no_such_checkpoint" if error.status == HTTPStatus.NOT_FOUND else _INVALID
            return refusal(command.id, code, error.detail)
        except ThreadBusyError:
            return refusal(command.id, _INVALID, _BUSY)
        # Clients take 0 for "the run's own first event tells": true also while an earlier run goes on.
        meta = {"applied_through_seq": 0}
        return {"type": "success", "id": command.id, "result": result, "meta": meta}

    async def _result(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        match method:
            case "run.start":
                return await self._start(params)
            case "input.respond":
                return await self._respond(params)
            case "state.get":
                return await self._state(params)
            case "subscription.subscribe" | "subscription.unsubscribe" | "subscription.reconnect":
                raise _RefusedError(
                    "not_supported", "Subscriptions are made with a stream or over a WebSocket."
                )
            case _:
                raise _RefusedError("unknown_command", f"Unknown protocol command: {method[:64]}")

    async def _thread(self) -> Row | None:
        try:
            return await self.service.threads.get(self.caller.tenant, self.thread_id)
        except ThreadNotFoundError:
            return None

    async def _start(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run; on a thread that waits for a person, the input is the answer."""
        body = _run_body({**params, "multitask_strategy": _multitask(params)})
        thread = await self._thread()
        kwargs = body.kwargs()
        if thread is not None and thread["interrupts"] and body.input is not None and body.started_at is None:
            kwargs |= {"input": None, "command": {"resume": body.input}}
        return {"run_id": await self._submit(body, kwargs)}

    async def _respond(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Answer what a run has asked."""
        answers = _answers(params)
        thread = await self._thread()
        if thread is None or (assistant_id := thread["metadata"].get("assistant_id")) is None:
            raise _RefusedError("no_such_run", "Nothing has run on this thread; call run.start first.")
        interrupts = cast("dict[str, list[dict[str, Any]]]", thread["interrupts"] or {})
        waiting = {each["id"] for task in interrupts.values() for each in task}
        if not waiting:
            raise _RefusedError(_INVALID, "input.respond can only be used while the run is interrupted.")
        if unknown := set(answers) - waiting:
            raise _RefusedError("no_such_interrupt", f"Nothing waits for an answer to {min(unknown)[:64]!r}.")
        body = _run_body({"assistant_id": assistant_id, **_only(params, "config", "metadata")})
        more = {name: value for name, value in _only(params, "update", "goto").items() if value is not None}
        return {"run_id": await self._submit(body, body.kwargs() | {"command": {"resume": answers, **more}})}

    async def _submit(self, body: RunBody, kwargs: Mapping[str, Any]) -> str:
        order = Order(
            caller=self.caller,
            assistant=assistant_of(self.service, body.assistant_id),
            kwargs={**kwargs, "stream_subgraphs": True, "stream_resumable": True, "protocol": v2.PROTOCOL},
            request_id=self.request_id,
            thread_id=self.thread_id,
            metadata=body.metadata or {},
            multitask=body.multitask_strategy,
            may_make_thread=True,
        )
        await check_checkpoint(self.service, order, body.started_at)
        await check_answer(self.service, order)
        run = await self.service.runs.submit(order)
        return str(run["run_id"])

    async def _state(self, params: Mapping[str, Any]) -> dict[str, Any]:
        namespace: list[str] = params.get("namespace") or []
        keys: list[str] | None = params.get("keys")
        if not _are_texts(namespace) or not (keys is None or _are_texts(keys)):
            raise _RefusedError(_INVALID, "namespace and keys must be lists of strings")
        where = {"checkpoint_ns": "|".join(namespace)} if namespace else None
        if await self._thread() is None:
            return {"values": {}}
        state = await self.service.threads.state(self.caller.tenant, self.thread_id, where)
        values, checkpoint = state["values"], state["checkpoint"]
        told: dict[str, Any] = {"values": v2.brief(values if keys is None else _only_known(values, keys))}
        if checkpoint is not None:
            told["checkpoint"] = {
                "id": checkpoint["checkpoint_id"],
                "ns": checkpoint.get("checkpoint_ns", ""),
            }
        return told


def refusal(command_id: int | None, code: str, message: str) -> dict[str, Any]:
    """The answer to a command that is not obeyed."""
    return {"type": "error", "id": command_id, "error": code, "message": message}


def _run_body(fields: Mapping[str, Any]) -> RunBody:
    names = ("assistant_id", "input", "config", "metadata", "multitask_strategy")
    try:
        return RunBody.model_validate(_only(fields, *names))
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise _RefusedError(_INVALID, f"{where}: {detail['msg']}"[:500]) from None


def _only(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _only_known(values: object, keys: list[str]) -> dict[str, Any]:
    """A state's values by name; the state of a graph of LangGraph's functional API has none."""
    known = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    return _only(known, *keys)


def _multitask(params: Mapping[str, Any]) -> Multitask:
    """What the client says of other runs on the thread; a word of a later release is as if nothing were said."""
    given: Any = params.get("multitaskStrategy", params.get("multitask_strategy"))
    if not isinstance(given, str | None):
        raise _RefusedError(_INVALID, "multitask_strategy must be a string")
    return Multitask(given) if given in set(Multitask) else Multitask.ENQUEUE


def _answers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Answers by what they answer: one, or several that are given together."""
    given: Any = params.get("responses", [params])
    if not isinstance(given, list) or not given:
        raise _RefusedError(_INVALID, "input.respond requires at least one response.")
    answers: dict[str, Any] = {}
    for each in cast("list[Any]", given):
        if not isinstance(each, dict) or not isinstance(name := cast("Any", each).get("interrupt_id"), str):
            raise _RefusedError(_INVALID, "input.respond requires an interrupt_id.")
        answers[name] = cast("Any", each).get("response")
    return answers


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value))
