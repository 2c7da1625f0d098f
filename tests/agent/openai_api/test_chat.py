"""Whole and streamed answers, over HTTP, from the real application."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import openai

from muster_agent.testing import (
    MODEL,
    CallTools,
    Hold,
    Refuse,
    Say,
    ScriptedAgent,
    Tokens,
    scripted_agent,
)

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]
Sdk = Callable[[ScriptedAgent], openai.AsyncOpenAI]

MULTIPLY = CallTools([("calculator", {"expression": "23*7"})], tokens=Tokens(30, 12))
ANSWER = Say("It is 161.", tokens=Tokens(50, 6))
TOLD = "calculator(expression='23*7') → 161\n"


def _events(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def _deltas(body: str) -> list[dict[str, Any]]:
    return [event["choices"][0]["delta"] for event in _events(body) if event != "[DONE]" and event["choices"]]


def _content(body: str) -> str:
    return "".join(delta.get("content", "") for delta in _deltas(body))


async def test_the_sdk_gets_an_answer_that_took_a_tool(sdk: Sdk) -> None:
    """A whole answer has the last text, the tool call as reasoning, and the sum of both calls' usage."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent, sdk(agent) as client:
        answer = await client.chat.completions.create(
            model="muster-agent", messages=[{"role": "user", "content": "What is 23 times 7?"}]
        )

    message = answer.choices[0].message
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == (
        "chat.completion",
        "muster-agent",
        "stop",
    )
    assert (message.content, message.tool_calls) == ("It is 161.", None)
    assert message.model_dump()["reasoning_content"] == "calculator(expression='23*7') → 161\n"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        80,
        18,
        98,
    )


async def test_the_model_sees_the_tools_result(ask: Ask) -> None:
    """The second model call carries the first one's tool call and what the tool returned."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent:
        await ask(agent, "What is 23 times 7?")

    first, second = agent.model.calls
    assert [tool["function"]["name"] for tool in first.body["tools"]] == ["calculator", "current_time"]
    assert second.body["messages"][2]["tool_calls"][0]["function"]["name"] == "calculator"
    assert second.messages[1:] == [("user", "What is 23 times 7?"), ("assistant", ""), ("tool", "161")]


async def test_the_sdk_reads_a_streamed_answer(sdk: Sdk) -> None:
    """A stream is a role, the tool's line, the words, a finish reason, and the usage that was asked for."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent, sdk(agent) as client:
        stream = await client.chat.completions.create(
            model="muster-agent",
            messages=[{"role": "user", "content": "What is 23 times 7?"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

    deltas = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in chunks[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": TOLD, "reasoning": TOLD},
        {"content": "It"},
        {"content": " is"},
        {"content": " 161."},
        {},
    ]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [*[None] * 5, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 98
    assert len({chunk.id for chunk in chunks}) == 1


async def test_words_are_streamed_before_the_model_has_finished(http: httpx.AsyncClient) -> None:
    """What the model has said is at the client while the model is still busy."""
    held = Hold(Say("."), said="It is 161")
    async with scripted_agent(held) as agent:
        body = {"model": "muster-agent", "messages": [{"role": "user", "content": "?"}], "stream": True}
        async with http.stream("POST", f"{agent.url}/v1/chat/completions", json=body) as response:
            seen = ""
            pieces = response.aiter_text()
            while _content(seen) != "It is 161":
                seen += await anext(pieces)
            held.release.set()
            seen += "".join([piece async for piece in pieces])

    assert _content(seen) == "It is 161."
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-store", "no")
    assert _events(seen)[-1] == "[DONE]"


async def test_a_stream_without_usage_has_none(ask: Ask) -> None:
    """Without `include_usage` no chunk has a usage field, and none is without a choice."""
    async with scripted_agent(ANSWER) as agent:
        response = await ask(agent, "?", stream=True)

    *chunks, done = _events(response.text)
    assert done == "[DONE]"
    assert [("usage" in chunk, len(chunk["choices"])) for chunk in chunks] == [(False, 1)] * 5


async def test_a_silent_stream_says_that_it_lives(http: httpx.AsyncClient) -> None:
    """While the model is silent the stream carries comments, and the answer after them."""
    held = Hold(Say("done"))
    async with scripted_agent(held, keep_alive_s=0.01) as agent:
        body = {"model": "muster-agent", "messages": [{"role": "user", "content": "?"}], "stream": True}
        async with http.stream("POST", f"{agent.url}/v1/chat/completions", json=body) as response:
            seen = ""
            pieces = response.aiter_text()
            while seen.count(": keep-alive\n\n") < 2:
                seen += await anext(pieces)
            held.release.set()
            seen += "".join([piece async for piece in pieces])

    assert _content(seen) == "done"


async def test_text_beside_a_tool_call(ask: Ask) -> None:
    """Unstreamed it is a remark in the reasoning; streamed it has been shown and is set off from the answer."""
    thinking = CallTools(MULTIPLY.calls, text="Let me see.")
    async with scripted_agent(thinking, ANSWER, thinking, ANSWER) as agent:
        whole = (await ask(agent, "?")).json()["choices"][0]["message"]
        streamed = await ask(agent, "?", stream=True)

    assert whole["content"] == "It is 161."
    assert whole["reasoning_content"] == "Let me see.\ncalculator(expression='23*7') → 161\n"
    assert _content(streamed.text) == "Let me see.\n\nIt is 161."


async def test_an_answer_cut_by_its_token_limit(ask: Ask) -> None:
    """The model's `length` is the answer's, in both modes."""
    cut = Say("It is", finish_reason="length")
    async with scripted_agent(cut, cut) as agent:
        whole = (await ask(agent, "?")).json()["choices"][0]
        streamed = _events((await ask(agent, "?", stream=True)).text)

    assert (whole["finish_reason"], whole["message"]["content"]) == ("length", "It is")
    assert streamed[-2]["choices"][0]["finish_reason"] == "length"


async def test_sampling_goes_with_every_model_call(ask: Ask) -> None:
    """What the client chose is what each model call asks for; the temperature is 0 where it chose none."""
    chosen = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["END"]}
    async with scripted_agent(MULTIPLY, ANSWER, ANSWER) as agent:
        await ask(agent, "?", **chosen, max_completion_tokens=40)
        await ask(agent, "?", max_tokens=50)

    *first_run, other = [call.body for call in agent.model.calls]
    for body in first_run:
        assert {name: body[name] for name in (*chosen, "max_tokens")} == {**chosen, "max_tokens": 40}
    assert (other["temperature"], other["max_tokens"]) == (0, 50)
    assert "top_p" not in other


async def test_instructions_follow_the_agents_own(ask: Ask) -> None:
    """System and developer messages join the agent's prompt, in one system message at the head."""
    async with scripted_agent(ANSWER, system_prompt="Be right.") as agent:
        await ask(agent, ("system", "Be brief."), "?", ("developer", "Speak Latin."))

    assert agent.model.calls[0].messages == [
        ("system", "Be right.\n\nBe brief.\n\nSpeak Latin."),
        ("user", "?"),
    ]


async def test_text_parts_are_one_text(http: httpx.AsyncClient) -> None:
    """A list of text parts reaches the model as lines."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    async with scripted_agent(ANSWER) as agent:
        body = {"model": "muster-agent", "messages": [{"role": "user", "content": parts}]}
        response = await http.post(f"{agent.url}/v1/chat/completions", json=body)

    assert response.status_code == 200
    assert agent.model.calls[0].messages[-1] == ("user", "one\ntwo")


async def test_the_model_is_asked_for_once(ask: Ask) -> None:
    """The first listed model is used; after the first run the proxy is not asked again."""
    async with scripted_agent(ANSWER, ANSWER) as agent:
        await ask(agent, "?")
        listings = agent.model.listings
        await ask(agent, "?")

    assert agent.model.listings == listings
    assert [call.body["model"] for call in agent.model.calls] == [MODEL, MODEL]


async def test_a_configured_model_is_used(ask: Ask) -> None:
    """The operator's model is used as it is, also one that the proxy does not list."""
    async with scripted_agent(ANSWER, model="chosen") as agent:
        await ask(agent, "?")

    assert agent.model.calls[0].body["model"] == "chosen"


async def test_the_step_limit_ends_the_run(ask: Ask) -> None:
    """A model that only calls tools is stopped, says so, and its finish reason is `length`."""
    agents = {"agent": {"openai_model": "muster-agent", "limits": {"model_calls": 2}}}
    async with scripted_agent(*[MULTIPLY] * 4, agents=agents) as agent:
        whole = (await ask(agent, "?")).json()["choices"][0]
        streamed = await ask(agent, "?", stream=True)

    said = "I stopped after 2 steps without finding an answer."
    assert (whole["finish_reason"], whole["message"]["content"]) == ("length", said)
    assert _content(streamed.text) == said
    assert _events(streamed.text)[-2]["choices"][0]["finish_reason"] == "length"
    assert (len(agent.model.calls), agent.model.overran) == (4, False)


async def test_what_tools_cannot_do_is_told_to_the_model(ask: Ask) -> None:
    """Bad expressions, unknown tools, wrong and broken arguments are results that the run goes on with."""
    wrong = CallTools(
        [
            ("calculator", {"expression": "1/0"}),
            ("rocket", {}),
            ("calculator", {"formula": "1"}),
            ("calculator", "{not json"),
            ("current_time", {"timezone": "Atlantis/\ud800"}),
        ]
    )
    async with scripted_agent(wrong, ANSWER) as agent:
        response = await ask(agent, "?")

    assert response.json()["choices"][0]["message"]["content"] == "It is 161."
    told = [text for role, text in agent.model.calls[1].messages if role == "tool"]
    expected = [
        "division by zero",
        "rocket is not a valid tool",
        "expression",
        "expression",
        "unknown time zone",
    ]
    results = {
        message["tool_call_id"]: message["content"]
        for message in agent.model.calls[1].body["messages"]
        if message["role"] == "tool"
    }
    assert len(told) == 5
    # Calls whose arguments were no JSON come last.
    in_order = [results[f"call_{index}"] for index in range(5)]
    assert [part in text for part, text in zip(expected, in_order, strict=True)] == [True] * 5


async def test_many_tool_calls_keep_their_order(ask: Ask) -> None:
    """Each of many calls in one turn is answered once, in the order in which they were asked."""
    many = CallTools([("calculator", {"expression": f"{number}+1"}) for number in range(30)])
    async with scripted_agent(many, ANSWER) as agent:
        await ask(agent, "?")

    results = [text for role, text in agent.model.calls[1].messages if role == "tool"]
    assert results == [str(number + 1) for number in range(30)]


async def test_runs_without_a_thread_go_on_side_by_side(ask: Ask) -> None:
    """A held run keeps no other waiting."""
    held = Hold(Say("slow"))
    async with scripted_agent(held, Say("quick")) as agent, asyncio.TaskGroup() as group:
        slow = group.create_task(ask(agent, "first"))
        await agent.model.received()
        quick = await ask(agent, "second")
        held.release.set()

    answers = [response.json()["choices"][0]["message"]["content"] for response in (await slow, quick)]
    assert answers == ["slow", "quick"]


async def test_tools_are_told_to_programs_that_ask(ask: Ask) -> None:
    """With `include_agent_events` each call is told with its arguments and result, in both modes, and never else."""
    asked = {"stream_options": {"include_agent_events": True}}
    async with scripted_agent(*[MULTIPLY, ANSWER] * 3) as agent:
        streamed = await ask(agent, "?", stream=True, **asked)
        whole = (await ask(agent, "?", **asked)).json()["choices"][0]["message"]
        plain = (await ask(agent, "?")).text

    told = [event for delta in _deltas(streamed.text) for event in delta.get("agent_events", [])]
    assert told == whole["agent_events"]
    assert told == [
        {
            "type": "tool",
            "id": "call_0",
            "name": "calculator",
            "arguments": {"expression": "23*7"},
            "output": "161",
            "status": "completed",
        }
    ]
    assert "agent_events" not in plain


async def test_the_sdks_stream_helper(sdk: Sdk) -> None:
    """The helper's final completion has the text, and no tool calls that its user would have to make."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent, sdk(agent) as client:
        async with client.chat.completions.stream(
            model="muster-agent", messages=[{"role": "user", "content": "?"}]
        ) as stream:
            pieces = [event.delta async for event in stream if event.type == "content.delta"]
        final = (await stream.get_final_completion()).choices[0]

    assert ("".join(pieces), final.message.content) == ("It is 161.", "It is 161.")
    assert (final.finish_reason, final.message.tool_calls) == ("stop", None)


async def test_the_form_of_an_answer_reaches_the_model(ask: Ask) -> None:
    """A JSON schema goes with each model call as the client gave it; plain text asks for nothing."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    async with scripted_agent(ANSWER, ANSWER) as agent:
        await ask(agent, "?", response_format=form)
        await ask(agent, "?", response_format={"type": "text"})

    first, second = [call.body for call in agent.model.calls]
    assert first["response_format"] == form
    assert "response_format" not in second


async def test_a_run_tells_its_names(ask: Ask, http: httpx.AsyncClient) -> None:
    """The answer's headers name a run and a thread of LangGraph's API, where the run's messages are."""
    async with scripted_agent(ANSWER) as agent:
        response = await ask(agent, "?", thread="t")
        thread, run = response.headers["x-agent-thread-id"], response.headers["x-agent-run-id"]
        shown = (await http.get(f"{agent.url}/threads/{thread}/runs/{run}")).json()
        state = (await http.get(f"{agent.url}/threads/{thread}/state")).json()

    assert shown["status"] == "success"
    assert [message["content"] for message in state["values"]["messages"]] == ["?", "It is 161."]


async def test_a_repeated_request_is_one_run(ask: Ask) -> None:
    """With one idempotency key two requests at once, streamed and not, get the answer of one run."""
    held = Hold(Say("."), said="It is 161")
    key = {"idempotency-key": "k"}
    async with scripted_agent(held) as agent, asyncio.TaskGroup() as group:
        first = group.create_task(ask(agent, "?", headers=key, stream=True))
        await agent.model.received()
        second = group.create_task(ask(agent, "?", headers=key, stream=True))
        other = group.create_task(ask(agent, "?", headers=key))
        held.release.set()

    bodies = [(await answer).text for answer in (first, second)]
    assert bodies[0] == bodies[1]
    assert _content(bodies[1]) == "It is 161."
    assert (await other).json()["choices"][0]["message"]["content"] == "It is 161."
    assert len(agent.model.calls) == 1


async def test_a_failed_request_is_made_again(ask: Ask) -> None:
    """A key whose run failed is free: the client's second try is a run of its own."""
    key = {"idempotency-key": "k"}
    refused = Refuse(503, {"message": "full", "type": "server_error"})
    async with scripted_agent(refused, ANSWER) as agent:
        first, second = [await ask(agent, "?", headers=key) for _ in range(2)]

    assert (first.status_code, second.status_code) == (503, 200)
