"""Runs: from a checked request to the agent's answer.

A run ends in one of these ways, and only the first two change its thread:

1. The model answers without asking for a tool.
2. It has been called `max_steps` times and still asks for tools. The run ends with a sentence that says so,
   finish reason `length`.
3. A model call fails, `run_timeout_s` passes, or the client leaves. The model call in flight is closed.

Tools do not end runs: what goes wrong in one is told to the model.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
from langchain.agents.middleware.model_call_limit import ModelCallLimitExceededError
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage

from muster_agent import failures
from muster_agent.chat_request import ChatRequest
from muster_agent.disconnects import cancelled_once
from muster_agent.graph import AgentGraph
from muster_agent.measures import Measures, RunRecord
from muster_agent.models import ModelName
from muster_agent.policy import RunContext, encodable
from muster_agent.settings import AgentSettings
from muster_agent.threads import Threads
from muster_agent.transcript import SEPARATOR, reconcile

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

_TOOLS_AT_ONCE = 8
_LONGEST_SHOWN = 200
_MODEL_NODE = "model"


@dataclass(frozen=True, slots=True)
class TextWritten:
    """The model wrote a piece of its answer; told on streamed runs only."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolUsed:
    """A tool was called and has returned; `line` tells it to a person."""

    line: str


RunEvent = TextWritten | ToolUsed
Emit = Callable[[RunEvent], Awaitable[None]]


@dataclass(slots=True)
class Usage:
    """Tokens of a run's model calls, summed."""

    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, message: AIMessage) -> None:
        """Count one model call."""
        if message.usage_metadata is not None:
            self.input_tokens += message.usage_metadata["input_tokens"]
            self.output_tokens += message.usage_metadata["output_tokens"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that ended with an answer.

    Args:
        answer: The text of the last model call.
        remarks: What the model wrote beside its tool calls before that.
        finish_reason: `length` where the answer is cut short or the run was.
        usage: The tokens of all its model calls.
        outcome: How the run ended, for the metrics.
    """

    answer: str
    remarks: list[str]
    finish_reason: Literal["stop", "length"]
    usage: Usage
    outcome: Literal["completed", "length", "step_limit"]


class Runner:
    """Runs the agent.

    Args:
        graph: The agent.
        threads: The conversations it remembers.
        model_name: The model it thinks with.
        measures: Where runs are counted.
        settings: The service's settings.
    """

    def __init__(
        self,
        graph: AgentGraph,
        threads: Threads,
        model_name: ModelName,
        measures: Measures,
        settings: AgentSettings,
    ) -> None:
        self._graph = graph
        self._threads = threads
        self._model_name = model_name
        self._measures = measures
        self._settings = settings

    async def run(
        self, request: ChatRequest, thread_id: str | None, emit: Emit, record: RunRecord
    ) -> RunResult:
        """Answer `request`; cancelling this closes the model call and leaves the thread as it was.

        Args:
            request: What to answer.
            thread_id: The thread it belongs to, or None for a run on the request's messages alone.
            emit: Told of the run's progress as it happens; the run waits for it.
            record: Gets the outcome.

        Raises:
            Failure: There is no answer; the thread is as it was.
        """
        limit_s = self._settings.run_timeout_s
        try:
            with anyio.move_on_after(limit_s):
                result = await self._answer(request, thread_id, emit)
                record.outcome = result.outcome
                return result
        except failures.Failure:
            record.outcome = "failed"
            raise
        record.outcome = "timeout"
        raise failures.run_timeout(limit_s)

    async def _answer(self, request: ChatRequest, thread_id: str | None, emit: Emit) -> RunResult:
        if thread_id is None:
            return (await self._execute(request, request.conversation, emit)).result
        async with self._threads.hold(thread_id) as thread:
            start = reconcile(await thread.messages(), request.conversation)
            progress = await self._execute(request, start, emit)
            await thread.replace(progress.messages)
            return progress.result

    async def _execute(self, request: ChatRequest, start: list[AnyMessage], emit: Emit) -> "_Progress":
        """Run the graph on `start` to its end."""
        context = RunContext(
            _joined_instructions(self._settings.system_prompt, request.instructions),
            {"model": await self._model_name.get(), **request.sampling},
        )
        progress = _Progress(emit, start)
        try:
            await cancelled_once(partial(self._stream, progress, context, is_streamed=bool(request.stream)))
        except ModelCallLimitExceededError:
            await progress.stop_at_limit(self._settings.max_steps)
        return progress

    async def _stream(self, progress: "_Progress", context: RunContext, *, is_streamed: bool) -> None:
        # Any mode but "messages" has the model called without streaming.
        modes = ["messages", "values"] if is_streamed else ["values"]
        config: RunnableConfig = {"max_concurrency": _TOOLS_AT_ONCE}
        graph = cast("Any", self._graph)  # its stream has one type for every mode
        parts = graph.astream({"messages": progress.messages}, config, context=context, stream_mode=modes)
        async with aclosing(parts) as stream:
            async for mode, part in stream:
                await progress.take(mode, part)


@dataclass(slots=True)
class _Progress:
    """A run as it goes: reads what the graph says and tells it on."""

    emit: Emit
    messages: list[AnyMessage]
    started_with: int = field(init=False)
    usage: Usage = field(default_factory=Usage)
    was_limited: bool = False
    _step_id: str | None = None
    _wrote: bool = False

    def __post_init__(self) -> None:
        self.started_with = len(self.messages)

    @property
    def result(self) -> RunResult:
        written = [
            message for message in self.messages[self.started_with :] if isinstance(message, AIMessage)
        ]
        *earlier, last = written
        is_cut = last.response_metadata.get("finish_reason") == "length"
        outcome = "step_limit" if self.was_limited else "length" if is_cut else "completed"
        return RunResult(
            answer=str(last.text),
            remarks=[str(message.text) for message in earlier if message.text],
            finish_reason="stop" if outcome == "completed" else "length",
            usage=self.usage,
            outcome=outcome,
        )

    async def take(self, mode: str, part: Any) -> None:  # noqa: ANN401 - LangGraph's parts have no type
        if mode == "messages":
            chunk, metadata = part
            if metadata["langgraph_node"] == _MODEL_NODE and isinstance(chunk, AIMessage):
                await self._take_text(chunk)
            return
        known, self.messages = len(self.messages), list(part["messages"])
        for message in self.messages[known:]:
            await self._take_message(message)

    async def stop_at_limit(self, max_steps: int) -> None:
        self.was_limited = True
        last = AIMessage(f"I stopped after {max_steps} steps without finding an answer.")
        self.messages = [*self.messages, last]
        await self._take_text(last)

    async def _take_text(self, chunk: AIMessage) -> None:
        text = str(encodable(str(chunk.text)))
        if not text:
            return
        if self._wrote and chunk.id != self._step_id:
            text = SEPARATOR + text
        self._step_id, self._wrote = chunk.id, True
        await self.emit(TextWritten(text))

    async def _take_message(self, message: AnyMessage) -> None:
        if isinstance(message, AIMessage):
            self.usage.add(message)
        elif isinstance(message, ToolMessage):
            await self.emit(ToolUsed(_tool_line(message, self.messages)))


def _joined_instructions(standing: str, own: str) -> str:
    return "\n\n".join(text for text in (standing, own) if text)


def _tool_line(result: ToolMessage, messages: Sequence[AnyMessage]) -> str:
    """Tell a tool call to a person: `calculator(expression='23*7') → 161`."""
    asked = [message for message in messages if isinstance(message, AIMessage)]
    arguments: dict[str, object] = next(
        call["args"]
        for message in reversed(asked)
        for call in message.tool_calls
        if call["id"] == result.tool_call_id
    )
    shown = ", ".join(f"{name}={_shortened(repr(value))}" for name, value in arguments.items())
    return f"{result.name}({shown}) → {_shortened(' '.join(str(result.text).split()))}\n"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
