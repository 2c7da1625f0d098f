"""Which thread a chat request belongs to.

OpenAI's chat completions know no threads, so each kind of client names its conversations in its own way. The first of
these that a request has counts:

1. the header `x-thread-id`,
2. the body's `metadata.thread_id`,
3. the header `x-openwebui-chat-id`,
4. the header `x-conversation-id`,
5. the header `x-session-id`,
6. the body's `prompt_cache_key`.

A UUID in the first two is a thread of LangGraph's API itself. Any other name is one that only its tenant can reach: the
thread's identifier is made of the tenant and the name. Without a name a run has a thread of its own.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from muster_agent import failures

_NAMESPACE = uuid.UUID("3b8e1a52-6c1f-4f0e-9d53-8f6f0c9d2a71")
_LONGEST = 512

# What front ends send for a conversation that has no name yet; it is not the name of one that all of them share.
_NO_NAME = frozenset({"", "null", "none", "undefined", "new"})
_TEMPLATE = re.compile(r"\{\{.*\}\}")

_HEADERS = ("x-openwebui-chat-id", "x-conversation-id", "x-session-id")

# Clients that name a conversation in these ways send all of it each time.
_SENT_WHOLE = frozenset({"x-openwebui-chat-id", "x-conversation-id", "prompt_cache_key"})


@dataclass(frozen=True, slots=True)
class ThreadName:
    """A thread that a client means.

    Attributes:
        thread_id: Its identifier.
        is_sent_whole: Whether the client is of a kind that sends the whole conversation each time.
    """

    thread_id: str
    is_sent_whole: bool


def thread_named(
    headers: Mapping[str, str], metadata: Mapping[str, object] | None, cache_key: str | None, tenant: str
) -> ThreadName | None:
    """The thread that a request names.

    Raises:
        Failure: 400, the name is too long.
    """
    given = [
        ("x-thread-id", headers.get("x-thread-id")),
        ("metadata.thread_id", (metadata or {}).get("thread_id")),
    ]
    given += [(name, headers.get(name)) for name in _HEADERS]
    given.append(("prompt_cache_key", cache_key))
    for source, name in given:
        if isinstance(name, str) and _is_name(name.strip()):
            return ThreadName(_identifier(source, name.strip(), tenant), source in _SENT_WHOLE)
    return None


def _is_name(name: str) -> bool:
    return name.lower() not in _NO_NAME and _TEMPLATE.fullmatch(name) is None


def _identifier(source: str, name: str, tenant: str) -> str:
    if len(name) > _LONGEST:
        raise failures.bad_request(f"{source} is longer than {_LONGEST} characters.", param=source)
    if source in {"x-thread-id", "metadata.thread_id"} and (own := _uuid(name)) is not None:
        return own
    # A tenant has no line break in it, so no other tenant and name make the same text.
    return str(uuid.uuid5(_NAMESPACE, f"{tenant}\n{name}"))


def _uuid(text: str) -> str | None:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None
