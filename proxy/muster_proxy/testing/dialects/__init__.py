"""One answer in the forms of vLLM's generating routes, whole or as the events of a stream.

Field names, events and their order are those of vLLM 0.32.0; the contract tests hold them to it.
"""

from muster_proxy.testing.asked import Asked, Route
from muster_proxy.testing.dialects.chat import Chat
from muster_proxy.testing.dialects.completions import Completions
from muster_proxy.testing.dialects.dialect import Dialect
from muster_proxy.testing.dialects.messages import Messages
from muster_proxy.testing.dialects.responses import Responses
from muster_proxy.testing.spoken import Head

__all__ = ["Dialect", "of"]

_DIALECTS: dict[Route, type[Dialect]] = {
    "batch": Chat,
    "chat": Chat,
    "completions": Completions,
    "messages": Messages,
    "responses": Responses,
}


def of(asked: Asked, head: Head) -> Dialect:
    """The form in which a request is answered."""
    return _DIALECTS[asked.route](asked, head)
