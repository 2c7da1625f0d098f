"""Structured logs: one event a line, JSON for machines or columns for a terminal.

A log line says what happened and to which request. It never holds a prompt, an answer or a key: callers
log sizes, counts, names and identifiers.
"""

import logging
import sys
from typing import Literal, TextIO

import orjson
import structlog

LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

# uvicorn repeats at info what our own events say; its warnings and errors are news.
_QUIET_LOGGERS = ("uvicorn", "uvicorn.error", "httpx", "httpx2", "openai", "asyncio")


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
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            # The other formatters show local variables, and those hold prompts.
            exception_formatter=structlog.dev.plain_traceback,
        )
        if as_console
        else structlog.processors.JSONRenderer(serializer=_to_json)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_logging(level, shared, renderer, stream)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    """The logger of a part; its lines carry `part=name`."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return logger


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
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
