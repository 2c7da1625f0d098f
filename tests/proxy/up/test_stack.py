"""Engine, proxy and agent together, on real weights, with the clients that people use."""

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.stacks import Stack, log_lines, until

pytestmark = pytest.mark.engine

CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
CALCULATION: Any = [{"role": "user", "content": "What is 23*7? Use the calculator."}]
CALCULATOR: Any = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression and return its value.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "For example 2*(3+4)."}},
            "required": ["expression"],
        },
    },
}


@pytest.fixture
def proxy(stack: Stack) -> openai.OpenAI:
    """The openai package, pointed at the proxy."""
    return openai.OpenAI(base_url=f"{stack.url('proxy')}/v1", api_key="-", max_retries=0)


@pytest.fixture
def agent(stack: Stack) -> openai.OpenAI:
    """The openai package, pointed at the agent."""
    return openai.OpenAI(base_url=f"{stack.url('agent')}/v1", api_key="-", max_retries=0)


@pytest.fixture
def model(proxy: openai.OpenAI) -> str:
    """The model that the proxy lists."""
    [only] = proxy.models.list().data
    return only.id


def calls(completion: ChatCompletion) -> list[tuple[str, dict[str, Any]]]:
    """The tool calls of an answer."""
    made = completion.choices[0].message.tool_calls or []
    return [
        (call.function.name, json.loads(call.function.arguments)) for call in made if call.type == "function"
    ]


def test_the_capital_of_france_is_paris(proxy: openai.OpenAI, model: str) -> None:
    """A unary chat at temperature 0."""
    completion = proxy.chat.completions.create(model=model, messages=CAPITAL, temperature=0)

    assert "Paris" in (completion.choices[0].message.content or "")
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0


def test_a_stream_says_the_same(proxy: openai.OpenAI, model: str) -> None:
    """In several chunks, the last of them with the reason why it ended."""
    stream = proxy.chat.completions.create(model=model, messages=CAPITAL, temperature=0, stream=True)
    chunks = [chunk for chunk in stream if chunk.choices]

    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(chunks) > 3
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(proxy: openai.OpenAI, model: str, choice: str, *, stream: bool) -> None:
    """By a model whose engine parses no tool calls, streamed or not."""
    given: dict[str, Any] = {
        "model": model,
        "messages": CALCULATION,
        "tools": [CALCULATOR],
        "tool_choice": choice,
    }
    if stream:
        with proxy.chat.completions.stream(**given, temperature=0) as events:
            completion: Any = events.get_final_completion()
    else:
        completion = proxy.chat.completions.create(**given, temperature=0)

    assert completion.choices[0].finish_reason == "tool_calls"
    [(name, arguments)] = calls(completion)
    assert (name, arguments["expression"].replace(" ", "")) == ("calculator", "23*7")


def test_a_tools_result_is_answered(proxy: openai.OpenAI, model: str) -> None:
    """With the result in the conversation, the model answers instead of calling again."""
    given: dict[str, Any] = {"model": model, "tools": [CALCULATOR], "temperature": 0}
    first = proxy.chat.completions.create(messages=CALCULATION, **given)
    call = (first.choices[0].message.tool_calls or [])[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "161"}
    history: Any = [*CALCULATION, first.choices[0].message, result]
    second = proxy.chat.completions.create(messages=history, **given)

    assert second.choices[0].finish_reason == "stop"
    assert "161" in (second.choices[0].message.content or "")


def test_tools_are_left_alone_where_none_is_needed(proxy: openai.OpenAI, model: str) -> None:
    """A question of general knowledge is answered."""
    completion = proxy.chat.completions.create(
        model=model, messages=CAPITAL, tools=[CALCULATOR], temperature=0
    )

    assert "Paris" in (completion.choices[0].message.content or "")
    assert completion.choices[0].message.tool_calls is None


def test_real_world_schemas_are_taken(proxy: openai.OpenAI, model: str) -> None:
    """References, patterns, unions and enumerations: what pydantic and MCP servers write."""
    parameters = {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^(?!x)[a-z]+$", "maxLength": 5000},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "tags": {
                "type": ["array", "null"],
                "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Tag"}]},
            },
            "when": {"type": "string", "format": "date-time"},
            "tree": {"$ref": "#/$defs/Tag"},
        },
        "required": ["unit", "tree"],
        "$defs": {
            "Tag": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "inner": {"$ref": "#/$defs/Tag"}},
                "required": ["name"],
            }
        },
    }
    tool: Any = {"type": "function", "function": {"name": "record", "parameters": parameters}}
    completion = proxy.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Record the tree oak in celsius."}],
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=120,
    )

    [(name, arguments)] = calls(completion)
    assert name == "record"
    assert arguments["unit"] in ("celsius", "fahrenheit")
    assert isinstance(arguments["tree"]["name"], str)


@pytest.mark.parametrize("stream", [False, True])
def test_the_agent_uses_its_calculator(stack: Stack, agent: openai.OpenAI, *, stream: bool) -> None:
    """It answers 161 after a real call of its tool, which takes two calls of the model through the proxy."""
    before = len(log_lines(stack, "proxy"))
    lines: list[dict[str, object]] = []
    given: dict[str, Any] = {"model": "muster-agent", "messages": CALCULATION}
    if stream:
        chunks = [chunk for chunk in agent.chat.completions.create(**given, stream=True) if chunk.choices]
        deltas = [chunk.choices[0].delta for chunk in chunks]
        content = "".join(delta.content or "" for delta in deltas)
        activity = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    else:
        message = agent.chat.completions.create(**given).choices[0].message
        content, activity = message.content or "", getattr(message, "reasoning_content", "")

    assert "161" in content
    assert "calculator" in activity
    assert "161" in activity
    for _ in until(30, "both calls in the proxy's log"):
        lines = [line for line in log_lines(stack, "proxy")[before:] if line["event"] == "request"]
        if len(lines) == 2:
            break
    assert len({line["session_id"] for line in lines}) == 1


def test_the_agent_remembers_a_session(agent: openai.OpenAI) -> None:
    """A second message under the same x-session-id knows the first."""
    headers = {"x-session-id": "remember-me"}
    for text in ("My name is Ada.", "What is my name?"):
        completion = agent.chat.completions.create(
            model="muster-agent", messages=[{"role": "user", "content": text}], extra_headers=headers
        )

    assert "Ada" in (completion.choices[0].message.content or "")


BAD = {
    "malformed": b"{",
    "empty messages": b'{"model": "MODEL", "messages": []}',
    "wrong type": b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "max_tokens": "x"}',
    "an image": b'{"model": "MODEL", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
    "unknown form": b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}],'
    b' "response_format": {"type": "x"}}',
    "broken schema": b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "response_format":'
    b' {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}}}',
    "too long": b'{"model": "MODEL", "messages": [{"role": "user", "content": "'
    + b"word " * 20_000
    + b'"}]}',
    "broken tool schema": b'{"model": "MODEL", "messages": [{"role": "user", "content": "x"}], "tools":'
    b' [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": 7}}}}}]}',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_bad_input_is_a_400_whatever_the_engine_makes_of_it(stack: Stack, model: str, body: bytes) -> None:
    """In OpenAI's shape, and the engine lives on."""
    answer = httpx.post(
        f"{stack.url('proxy')}/v1/chat/completions", content=body.replace(b"MODEL", model.encode())
    )

    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_unknown_model_is_a_404(proxy: openai.OpenAI) -> None:
    """As openai's SDK knows it."""
    with pytest.raises(openai.NotFoundError) as refused:
        proxy.chat.completions.create(model="gpt-9", messages=CAPITAL)

    assert refused.value.code == "model_not_found"
