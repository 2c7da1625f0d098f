"""A server as a process of ours that speaks over its standard streams.

The `mcp` package's own transport is not used: it hands on more of the environment, reads lines of any length,
and gives what the server prints to our standard error.
"""

import os
import signal
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
import anyio.abc
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage

from muster_agent.tools.mcp.settings import McpServer
from muster_observability import logs

_log = logs.get("agent.mcp")

Streams = tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]
"""What a session reads from and writes to, as the `mcp` package has it."""

HANDED_ON: Final = ("PATH", "HOME", "LANG")
"""All that a server gets of our environment; keys and addresses of ours are not its business."""
END_S: Final = 2.0
"""Seconds to end after its input was closed, before SIGTERM; half of it again before SIGKILL."""
_MOST_LOGGED: Final = 500


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a server: a few harmless variables of ours, and `own`."""
    return {name: os.environ[name] for name in HANDED_ON if name in os.environ} | dict(own)


@asynccontextmanager
async def open_process(
    name: str, settings: McpServer, env: Mapping[str, str], broken: Callable[[], None]
) -> AsyncGenerator[Streams]:
    """Start the server, and end it: its input is closed, then it is told to stop, then it is killed.

    Args:
        name: The server's name, for the log.
        settings: What to start.
        env: Its whole environment.
        broken: Called when the server has ended, or has sent a message that is too long.

    Raises:
        OSError: It cannot be started.
    """
    command = [settings.command or "", *settings.args]
    process = await anyio.open_process(command, env=env, cwd=settings.cwd, start_new_session=True)
    arrived, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, leaving = anyio.create_memory_object_stream[SessionMessage](0)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(_read, name, process, arrived, settings.most_message_bytes, broken)
            group.start_soon(_write, process, leaving, broken)
            group.start_soon(_log_errors, name, process)
            try:
                yield incoming, outgoing
            finally:
                await _end(process)
                group.cancel_scope.cancel()
    finally:
        for stream in (arrived, incoming, outgoing, leaving):
            stream.close()


async def _read(
    name: str,
    process: anyio.abc.Process,
    arrived: MemoryObjectSendStream[SessionMessage | Exception],
    most_bytes: int,
    broken: Callable[[], None],
) -> None:
    """Pass messages on; lines that are none are what servers print by mistake, and are skipped."""
    with suppress(_TooLongError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for line in _lines(_stream(process.stdout), most_bytes):
            try:
                message = JSONRPCMessage.model_validate_json(line)
            except ValueError:
                _log.debug("mcp server wrote a line that is no message", server=name, length=len(line))
                continue
            await arrived.send(SessionMessage(message))
    await arrived.aclose()  # whoever waits for an answer is told at once
    with anyio.move_on_after(END_S):
        await process.wait()
    broken()


async def _write(
    process: anyio.abc.Process,
    leaving: MemoryObjectReceiveStream[SessionMessage],
    broken: Callable[[], None],
) -> None:
    stdin = process.stdin
    assert stdin is not None  # noqa: S101 - a pipe was asked for
    try:
        async for item in leaving:
            line = item.message.model_dump_json(by_alias=True, exclude_none=True)
            await stdin.send(line.encode() + b"\n")
    except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        broken()


async def _log_errors(name: str, process: anyio.abc.Process) -> None:
    """What the server prints, for who looks for it."""
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for line in _lines(_stream(process.stderr), _MOST_LOGGED, cut=True):
            _log.debug("mcp server printed", server=name, line=line.decode(errors="replace").rstrip())


class _TooLongError(Exception):
    """A message is longer than allowed."""


async def _lines(
    chunks: AsyncIterable[bytes], most_bytes: int, *, cut: bool = False
) -> AsyncGenerator[bytes]:
    """The lines of a stream; a longer one is cut, or the end.

    Raises:
        _TooLongError: A line is longer, and may not be cut.
    """
    line = bytearray()
    async for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            yield bytes(line + end)[: most_bytes if cut else None]
            line.clear()
        line += rest
        if len(line) > most_bytes:
            if not cut:
                raise _TooLongError
            del line[most_bytes:]
    if line:
        yield bytes(line)


def _stream(pipe: anyio.abc.ByteReceiveStream | None) -> anyio.abc.ByteReceiveStream:
    assert pipe is not None  # noqa: S101 - a pipe was asked for
    return pipe


async def _end(process: anyio.abc.Process) -> None:
    """End the process and what it has started; bounded, and not to be cancelled."""
    with anyio.CancelScope(shield=True):
        if process.stdin is not None:
            with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await process.stdin.aclose()
        if not await _has_ended(process, END_S):
            _signal(process, signal.SIGTERM)
            await _has_ended(process, END_S / 2)
        _signal(process, signal.SIGKILL)  # also those that it left behind in its group
        await process.aclose()


async def _has_ended(process: anyio.abc.Process, within_s: float) -> bool:
    with anyio.move_on_after(within_s):
        await process.wait()
    return process.returncode is not None


def _signal(process: anyio.abc.Process, number: signal.Signals) -> None:
    """Signal the group that the process leads; macOS answers EPERM where only a zombie is left of it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
