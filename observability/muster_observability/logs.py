"""Structured logs: one event a line, JSON for machines or columns for a terminal.

A log line says what happened and to which request. It never holds a prompt, an answer or a key: callers
log sizes, counts, names and identifiers. Of an exception it has the kind and the frames, not the text: whoever raised
it may have quoted in it what it was given.
"""

import functools
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, TextIO

import orjson
import structlog

from muster_observability.traces import trace_of

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


def _trace(exc_info: structlog.typing.ExcInfo) -> str:
    return trace_of(exc_info[1])


_with_trace = structlog.processors.ExceptionRenderer(_trace)

# uvicorn repeats at info what our own events say; its warnings and errors are news.
_QUIET_LOGGERS = (
    *("uvicorn", "uvicorn.error", "httpx", "httpx2", "httpcore", "httpcore2"),
    *("openai", "asyncio", "alembic", "mcp"),
)


def configure(level: LogLevel = "info", log_format: LogFormat = "auto", stream: TextIO = sys.stderr) -> None:
    """Send this process's logs, those of the standard library included, to `stream`.

    Args:
        level: The least severe level that is written.
        log_format: `console`, `json`, or `auto`: console on a terminal, JSON otherwise.
        stream: Where lines go.
    """
    as_console = log_format == "console" or (log_format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_timestamp,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # what comes here has been written already
        )
        if as_console
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    # Every request writes a line. Bytes that go out by one call cost half of what a text printed and flushed does.
    is_bytes = not as_console and hasattr(stream, "buffer")
    last: structlog.typing.Processor = _as_bytes if is_bytes else renderer
    structlog.configure(
        processors=[*shared, _with_trace, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(stream.buffer)
        if is_bytes
        else structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    _lines.stream = stream.buffer if is_bytes and level in ("debug", "info") else None
    _adopt_standard_logging(level, shared, renderer, stream)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a part; its lines carry `part=name`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


@dataclass(slots=True)
class _Lines:
    """Where lines of JSON go straight, nowhere until `configure` has said so; and what is in all of them."""

    stream: BinaryIO | None = None
    bound: dict[str, object] = field(default_factory=dict[str, object])


_lines = _Lines()


def bind(**fields: object) -> None:
    """Put these fields into every line of this process from now on. To be called before other tasks are made."""
    structlog.contextvars.bind_contextvars(**fields)
    _lines.bound.update(fields)


def info(part: str, event: str, fields: Mapping[str, object]) -> None:
    """Log an event as `get(part).info(event, **fields)` does, by a shorter way: for what every request logs."""
    if _lines.stream is None:
        get(part).info(event, **fields)
        return
    line = {"event": event, **fields, **_lines.bound, "part": part, "level": "info", "timestamp": _now()}
    _lines.stream.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE))
    _lines.stream.flush()


def _now() -> str:
    """The time as RFC 3339 has it, in UTC; of each second the most is written once."""
    second, rest_ns = divmod(time.time_ns(), 1_000_000_000)
    return f"{_written(second)}.{rest_ns // 1000:06d}Z"


@functools.lru_cache(maxsize=1)
def _written(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _add_timestamp(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event["timestamp"] = _now()
    return event


def _without_details(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Leave out what asyncio writes below its first line: the tasks it is about, with their exceptions' texts."""
    if event.get("logger") == "asyncio":
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _as_bytes(_logger: object, _method: str, event: structlog.typing.EventDict) -> bytes:
    return orjson.dumps(event, default=str)


def _to_json(event: object, **_options: object) -> str:
    return orjson.dumps(event, default=str).decode()


def _adopt_standard_logging(
    level: LogLevel,
    shared: list[structlog.typing.Processor],
    renderer: structlog.typing.Processor,
    stream: TextIO,
) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, _without_details],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _with_trace,
                renderer,
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
