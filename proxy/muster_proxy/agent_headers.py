"""What the model calls of agents say of themselves, for the request's log line and for nothing else.

They are no labels of metrics, which would grow without bound, and engines are not sent them. What is malformed is left
out: a log line is no reason to refuse a request.
"""

from collections.abc import Callable, Mapping

from muster_observability.request_ids import is_identifier

MOST = 999_999
"""No step and no retry has a larger number."""

KINDS = frozenset({"model", "summary", "title"})
"""What an agent calls a model for: a step of its run, a summary of the thread, the thread's title."""

_MOST_DIGITS = len(str(MOST))
_NOTHING: Mapping[str, str | int] = {}


def read(headers: Mapping[bytes, bytes]) -> Mapping[str, str | int]:
    """The fields of the log line that these headers tell; read when it is written, and not before.

    Args:
        headers: Of the request, by lower-case names. Without any of these it takes 0.1 us.
    """
    if headers.keys().isdisjoint(_NAMES):
        return _NOTHING
    told: dict[str, str | int] = {}
    for key, (name, understand) in _FIELDS.items():
        if key in headers and (value := understand(headers[key])) is not None:
            told[name] = value
    return told


def _identifier(value: bytes) -> str | None:
    text = value.decode("latin-1")
    return text if is_identifier(text) else None


def _kind(value: bytes) -> str | None:
    text = value.decode("latin-1")
    return text if text in KINDS else None


def _count(value: bytes) -> int | None:
    # A long one would be no number of anything, and takes long to read.
    return int(value) if value.isdigit() and len(value) <= _MOST_DIGITS else None


def _step(value: bytes) -> int | None:
    return _count(value) or None  # the first is 1


_FIELDS: Mapping[bytes, tuple[str, Callable[[bytes], str | int | None]]] = {
    b"x-muster-run-id": ("run_id", _identifier),
    b"x-muster-thread-id": ("thread_id", _identifier),
    b"x-muster-step": ("step", _step),
    b"x-muster-call-kind": ("call_kind", _kind),
    b"x-stainless-retry-count": ("retry_count", _count),
}
_NAMES = frozenset(_FIELDS)  # a dict's keys are compared with a set's by whichever are fewer
