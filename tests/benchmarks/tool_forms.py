"""Which form of reply makes a small model call tools when it should, and answer when it should.

    .venv/bin/python tests/benchmarks/tool_forms.py [URL of an engine]

Asks 14 questions in each form at temperature 0 and prints how many replies were of the right kind
(docs/decisions/0003-tool-emulation.md). Without a URL the embedded engine is started for the run.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from muster_proxy.bench import servers
from muster_proxy.tools import grammar, prompt
from muster_proxy.wire import Function

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
HELPFUL = "You are a helpful assistant."


def schema_of(**properties: Schema) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


CALCULATOR = Function(
    "calculator",
    "Evaluate an arithmetic expression and return its value.",
    {"type": "object", "properties": {"expression": STRING}, "required": ["expression"]},
)
CLOCK = Function(
    "current_time",
    "Tell the current date and time in a time zone.",
    {"type": "object", "properties": {"timezone": STRING}},
)
WEATHER = Function(
    "get_weather",
    "Get the current weather for a city.",
    {
        "type": "object",
        "properties": {"city": STRING, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        "required": ["city"],
    },
)
BOTH = [CALCULATOR, CLOCK]


@dataclass(frozen=True)
class Question:
    """What is asked, with which tools, and whether a tool should be called; `done` is a call already made."""

    text: str
    tools: list[Function]
    calls: bool
    done: tuple[str, dict[str, Any], str] | None = None


SUM = "What is 23*7? Use the calculator."
PARIS = "What is the weather in Paris?"
QUESTIONS = [
    Question(SUM, BOTH, calls=True),
    Question("What time is it in Tokyo?", BOTH, calls=True),
    Question("What is 1234 * 5678?", BOTH, calls=True),
    Question("Use the calculator to compute 15% of 80.", BOTH, calls=True),
    Question(PARIS, [WEATHER], calls=True),
    Question("What is the weather in Paris and in London?", [WEATHER], calls=True),
    Question("Is it warm in Oslo today?", [CALCULATOR, WEATHER], calls=True),
    Question("What is the capital of France?", BOTH, calls=False),
    Question("Hello!", BOTH, calls=False),
    Question("Write a haiku about rivers.", BOTH, calls=False),
    Question("Thanks, bye.", BOTH, calls=False),
    Question("Who wrote Hamlet?", [WEATHER], calls=False),
    Question(SUM, BOTH, calls=False, done=("calculator", {"expression": "23*7"}, "161")),
    Question(PARIS, [WEATHER], calls=False, done=("get_weather", {"city": "Paris"}, "18 C, sunny")),
]


@dataclass(frozen=True)
class Form:
    """A form of reply: what the model is told, what it is held to, and how a call is written."""

    name: str
    told: Callable[[list[Function]], str]
    schema: Callable[[list[Function]], Schema]
    call: Callable[[str, dict[str, Any]], object]


def lines(tools: list[Function]) -> str:
    """The tools, one as JSON on each line."""
    return "\n".join(
        json.dumps({"name": each.name, "description": each.description, "parameters": each.parameters})
        for each in tools
    )


def calls(tools: list[Function], key: str = "name") -> list[Schema]:
    """A schema of a call for each tool."""
    return [schema_of(**{key: {"const": each.name}, "arguments": each.parameters or {}}) for each in tools]


def written(name: str, arguments: dict[str, Any]) -> object:
    """A call in the commonest form."""
    return {"name": name, "arguments": arguments}


ANSWER = schema_of(answer=STRING)
BOOLEAN = (
    "If one of the tools does what the user asks for and you do not have its result yet: "
    '{"needs_tool": true, "name": <tool name>, "arguments": <arguments object>}. Otherwise (greetings, general '
    'knowledge, writing, or the result is already there): {"needs_tool": false, "answer": <text for the user>}.'
)
FORMS = [
    Form(
        "an answer or a call",
        lambda tools: (
            f"You may call one of these functions:\n{lines(tools)}\n\nReply with one JSON object. To call: "
            '{"name": <function name>, "arguments": <arguments object>}. If no function fits, or you already have its '
            'result: {"answer": <text for the user>}.'
        ),
        lambda tools: {"anyOf": [*calls(tools), ANSWER]},
        written,
    ),
    Form(
        "needs_tool first",
        lambda tools: (
            f"Tools, one as JSON on each line:\n{lines(tools)}\n\nReply with one JSON object. {BOOLEAN}"
        ),
        lambda tools: {
            "anyOf": [
                *(
                    schema_of(
                        needs_tool={"const": True}, name={"const": each.name}, arguments=each.parameters or {}
                    )
                    for each in tools
                ),
                schema_of(needs_tool={"const": False}, answer=STRING),
            ]
        },
        lambda name, arguments: {"needs_tool": True, "name": name, "arguments": arguments},
    ),
    Form(
        "a tool or none",
        lambda tools: (
            f"You have tools. Each line is one as JSON:\n{lines(tools)}\n\nReply with one JSON object: "
            '{"tool": <tool name>, "arguments": <arguments object>} when a tool does what the user asks for and its '
            'result is not known yet; {"tool": "none", "answer": <text for the user>} for everything else: greetings, '
            "general knowledge, writing, or when the result is known."
        ),
        lambda tools: {"anyOf": [*calls(tools, "tool"), schema_of(tool={"const": "none"}, answer=STRING)]},
        lambda name, arguments: {"tool": name, "arguments": arguments},
    ),
    Form(
        "answer as a function, listed last, no rule",
        lambda tools: (
            "You act only by calling one of these functions:\n"
            f"{lines([*tools, Function('answer', 'Give the final answer.', schema_of(text=STRING))])}\n\n"
            'Reply with one JSON object: {"name": <function name>, "arguments": <arguments object>}.'
        ),
        lambda tools: {
            "anyOf": [*calls(tools), schema_of(name={"const": "answer"}, arguments=schema_of(text=STRING))]
        },
        written,
    ),
    Form(
        "Muster: answer as a function, one call",
        lambda tools: prompt.instructions(tools, answer_name="answer", parallel=False),
        lambda tools: grammar.reply_schema(tools, answer_name="answer"),
        written,
    ),
    Form(
        "Muster: the same, or an array of calls",
        lambda tools: prompt.instructions(tools, answer_name="answer", parallel=True),
        lambda tools: grammar.reply_schema(tools, answer_name="answer", parallel=True),
        written,
    ),
]


def is_right(http: httpx.Client, model: str, form: Form, question: Question) -> bool:
    """Ask one question in one form."""
    turns = [
        {"role": "system", "content": f"{HELPFUL}\n\n{form.told(question.tools)}"},
        {"role": "user", "content": question.text},
    ]
    if question.done is not None:
        name, arguments, result = question.done
        turns.append({"role": "assistant", "content": json.dumps(form.call(name, arguments))})
        turns.append({"role": "user", "content": f"Result of {name}: {result}"})
    schema = {"name": "reply", "schema": form.schema(question.tools)}
    answer = http.post(
        "/v1/chat/completions",
        json={
            "model": model,
            "messages": turns,
            "temperature": 0,
            "max_tokens": 120,
            "response_format": {"type": "json_schema", "json_schema": schema},
        },
    )
    text: str = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    return any(f'"{each.name}"' in text for each in question.tools) == question.calls


def compare(url: str) -> None:
    """Ask all questions in all forms and print the table."""
    table = Table(title=f"Replies of the right kind, of {len(QUESTIONS)}", title_justify="left")
    table.add_column("form")
    table.add_column("right", justify="right")
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
        model: str = http.get("/v1/models").json()["data"][0]["id"]
        for form in track(FORMS, "asking", console=Console(stderr=True)):
            right = sum(is_right(http, model, form, question) for question in QUESTIONS)
            table.add_row(form.name, str(right))
    Console().print(table)


def main() -> None:
    """Compare on the given engine, or on the embedded one."""
    if len(sys.argv) > 1:
        compare(sys.argv[1])
        return
    with servers.muster("engine", ready_path="/health") as url:
        compare(url)


if __name__ == "__main__":
    main()
