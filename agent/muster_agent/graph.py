"""The agent itself: LangChain's `create_agent` on a model behind the proxy."""

from dataclasses import dataclass
from typing import Any, cast

import httpx2
import openai
from langchain.agents import (
    create_agent,  # pyright: ignore[reportUnknownVariableType] - the type of its `cache` is not given
)
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langgraph.graph.state import CompiledStateGraph  # pyright: ignore[reportMissingTypeStubs] - typed inline

from muster_agent.identity import add_identity
from muster_agent.measures import Measures
from muster_agent.policy import RunContext, RunPolicy
from muster_agent.settings import AgentSettings
from muster_agent.tools import TOOLS

AgentGraph = CompiledStateGraph[Any, RunContext, Any, Any]

_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ProxyClients:
    """The one pooled HTTP client to the proxy, and the two faces it is used through.

    Args:
        http: The pool; whoever made this closes it.
        model: The face that the agent thinks through.
        openai: The face for everything else.
    """

    http: httpx2.AsyncClient
    model: BaseChatModel
    openai: openai.AsyncOpenAI


def connect(settings: AgentSettings) -> ProxyClients:
    """Make the clients; nothing is sent yet."""
    timeout = httpx2.Timeout(settings.run_timeout_s, connect=_CONNECT_TIMEOUT_S)
    http = httpx2.AsyncClient(
        event_hooks={"request": [add_identity]},
        # How many calls run at once is the proxy's decision. A pool limit here would be a second queue in
        # front of its queue, one that knows nothing of classes, tenants and sessions.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
        timeout=timeout,
        # The operator names the server in full; HTTP_PROXY and netrc are about other traffic, and would
        # send a loopback address and its prompts elsewhere.
        trust_env=False,
    )
    model = ChatOpenAI(
        model=settings.model or "unnamed",  # each call carries the name that ModelName has found
        base_url=f"{settings.proxy}/v1",
        api_key=settings.api_key,
        http_async_client=http,
        timeout=timeout,
        max_retries=0,  # the proxy decides what is tried again; retries here would multiply with its own
        temperature=0,  # a small model calls tools best when it is not creative
        stream_usage=True,
        stream_chunk_timeout=None,  # a call may wait long in the proxy's queue; the run's own timeout holds
        use_responses_api=False,  # else names of some hosted models would switch it on
    )
    return ProxyClients(http, model, cast("openai.AsyncOpenAI", model.root_async_client))


def build(model: BaseChatModel, measures: Measures, max_steps: int) -> AgentGraph:
    """Build the graph. It keeps nothing between runs: see `threads.py`.

    Args:
        model: What it thinks with.
        measures: Where tool calls are counted.
        max_steps: Model calls in one run, after which the run stops.
    """
    # Middleware of different contexts do not fit one list for the type checker.
    middleware: list[Any] = [
        ModelCallLimitMiddleware(run_limit=max_steps, exit_behavior="error"),
        RunPolicy(measures),
    ]
    return create_agent(model, list(TOOLS), middleware=middleware, context_schema=RunContext)
