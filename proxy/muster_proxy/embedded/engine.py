"""llama.cpp's HTTP server in this process.

What the library does not do, found by trying it:

- While it loads it holds the interpreter's lock for seconds, so no Python signal handler can run. SIGINT and
  SIGTERM therefore keep the system's own action until it has loaded: they end the process at once.
- Its `Server` stops only in its destructor, which waits for every answer in flight, minutes at worst, with the
  interpreter's lock held. So the process ends by `os._exit` once its logs are out; the system closes the
  sockets, which is how clients learn of it. There is no state to save.
- It says why a load failed to its own log alone; so what can be known of the file is checked before.
"""

import contextlib
import http.client
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

from muster_observability import logs, server
from muster_proxy.embedded.errors import EngineFailedError, ModelFileError
from muster_proxy.embedded.settings import EngineSettings

PORT_SETTING = "--port or MUSTER_ENGINE_PORT"

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GGUF_MAGIC = b"GGUF"

# llama.cpp's scale: 0 says nothing, 3 is its own default. Its 4 writes requests out, and no log holds a prompt.
_QUIET, _TALKING = 0, 3

# Every waiting request occupies one of llama.cpp's HTTP threads; with its own default of four more than slots,
# /health and /metrics fall silent as soon as four requests wait.
_SPARE_HTTP_THREADS = 64

# Kept prompts of finished requests; llama.cpp's default of 8 GiB is a laptop's whole memory.
_PROMPT_CACHE_MIB = 256

_HEALTHY_WITHIN_S = 30.0
_HEALTH_POLL_S = 0.05


def usable_cores() -> int:
    """The cores that this process may run on; all of the machine's where the system does not tell."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_port(port: int) -> int:
    """The port, or the free one that the system chooses for 0.

    Raises:
        PortTakenError: Another program listens there.
    """
    with contextlib.closing(server.bind(port, PORT_SETTING)) as listener:
        chosen: int = listener.getsockname()[1]
    return chosen


def check_model_file(path: Path) -> None:
    """Refuse what is certainly no model.

    Raises:
        ModelFileError: It is missing, unreadable, or not in GGUF format.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise ModelFileError(path, error.strerror or str(error)) from error
    if magic != _GGUF_MAGIC:
        raise ModelFileError(path, "it does not begin as a GGUF file does")


def serve_engine(settings: EngineSettings, weights: Path) -> NoReturn:
    """Serve `weights` until SIGINT or SIGTERM, then end this process with ExitCode.OK, whatever is in flight.

    Before `listening` is logged the signals end the process at once, as they do by default. Call it from the
    main thread; nothing after it runs.

    Args:
        settings: How to serve.
        weights: The model's file.

    Raises:
        PortTakenError: Another program listens on the port.
        ModelFileError: llama.cpp cannot load the file.
        EngineFailedError: llama.cpp is not installed here, or does not answer.
    """
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get(server.SUPERVISED_VARIABLE) == "1":
        server.stop_with_parent()
    check_model_file(weights)
    port = check_port(settings.port)
    running = _start(settings, weights, port)
    with _stop_signals() as stopped:
        _await_health(port)
        url = f"http://{server.LOOPBACK}:{port}"
        logs.get("engine").info("listening", url=url, slots=settings.slots, model=settings.alias)
        stopped.recv(1)
    logs.get("engine").info("stopped")
    _leave(running)


def _start(settings: EngineSettings, weights: Path, port: int) -> object:
    try:
        llama = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise EngineFailedError(
            f"llama.cpp is not to be had here ({error}). Install Muster with its extra `embedded`."
        ) from error
    try:
        return llama.Server(_parameters(llama.CommonParams(), settings, weights, port))
    except RuntimeError as error:
        check_port(port)  # it says the same whatever went wrong: was the port taken meanwhile?
        raise ModelFileError(weights, f"llama.cpp did not load it ({_where_to_look()})") from error


def _where_to_look() -> str:
    if _talks():
        return "its own words are above"
    return "is it whole, and is there memory for it? MUSTER_LOG_LEVEL=debug shows llama.cpp's own words"


def _talks() -> bool:
    return logging.getLogger().isEnabledFor(logging.DEBUG)


def _parameters(parameters: Any, settings: EngineSettings, weights: Path, port: int) -> Any:  # noqa: ANN401 - the library has no types
    parameters.model.path = str(weights)
    parameters.model_alias = {settings.alias}
    parameters.hostnames = [server.LOOPBACK]
    parameters.port = port
    parameters.n_parallel = settings.slots
    parameters.n_ctx = settings.slots * settings.context_tokens
    parameters.n_threads_http = settings.slots + _SPARE_HTTP_THREADS
    for threads in (parameters.cpuparams, parameters.cpuparams_batch):
        threads.n_threads = settings.threads or usable_cores()
        # No spinning between steps: on busy cores it takes from the other processes what it waits for. Measured
        # on two cores, 16 requests at once: 51.7 tokens/s so, 42.1 with llama.cpp's default of 50.
        threads.poll = 0
    parameters.n_gpu_layers = settings.gpu_layers
    parameters.cache_ram_mib = _PROMPT_CACHE_MIB
    parameters.ctx_shift = False  # a request that outgrows its context ends, and says so, and forgets nothing
    parameters.endpoint_metrics = True
    parameters.ui = False
    parameters.cors_origins = ""  # no web page may read what a local engine answers
    parameters.verbosity = _TALKING if _talks() else _QUIET
    return parameters


@contextlib.contextmanager
def _stop_signals() -> Generator[socket.socket]:
    """A socket that has a byte to read once a stop signal came, whichever thread the system gave it to."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in _STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: None)
    with reader, writer:
        yield reader
        signal.set_wakeup_fd(-1)


def _await_health(port: int) -> None:
    deadline_s = time.monotonic() + _HEALTHY_WITHIN_S
    while not _is_healthy(port):
        if time.monotonic() > deadline_s:
            raise EngineFailedError(
                f"llama.cpp was loaded but is not healthy after {_HEALTHY_WITHIN_S:.0f} s"
            )
        time.sleep(_HEALTH_POLL_S)


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection(server.LOOPBACK, port, timeout=_HEALTHY_WITHIN_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def _leave(_running: object) -> NoReturn:
    """End the process without the engine's destructor; that `_running` is held until here keeps it from running."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it is gone
            stream.flush()
    os._exit(server.ExitCode.OK)
