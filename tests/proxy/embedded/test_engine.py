"""What the engine checks before llama.cpp is asked. Real weights are served in the tests marked `engine`."""

import socket
from pathlib import Path

import pytest

from muster_observability.server import PortTakenError
from muster_proxy.embedded.engine import check_model_file, check_port, usable_cores
from muster_proxy.embedded.errors import ModelFileError


@pytest.mark.parametrize("content", [b"", b"GGU", b"not a model"])
def test_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    """A file that does not begin as a GGUF file does is named, with what is expected."""
    path = tmp_path / "model"
    path.write_bytes(content)

    with pytest.raises(
        ModelFileError, match=r"--model \(MUSTER_ENGINE_MODEL\) takes a whole model"
    ) as caught:
        check_model_file(path)

    assert caught.value.path == path


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A path where there is nothing is told in the system's words, and so is a directory."""
    with pytest.raises(ModelFileError, match="No such file"):
        check_model_file(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match="Is a directory"):
        check_model_file(tmp_path)


def test_taken_port_is_found_before_llama_cpp_finds_it() -> None:
    """A port on which another program listens is an error that names the setting."""
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(PortTakenError, match="MUSTER_ENGINE_PORT"),
    ):
        check_port(taken.getsockname()[1])


def test_port_zero_is_a_free_port() -> None:
    """0 becomes the number of a port that can be bound."""
    port = check_port(0)

    assert port > 0
    assert check_port(port) == port


def test_some_core_is_usable() -> None:
    """There is always a thread to compute with."""
    assert usable_cores() >= 1
