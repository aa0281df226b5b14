"""A web server on 127.0.0.1 for the tests of fetching: a fixed answer for each path, and a log of what was asked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server says when one path is asked for."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    withheld: int = 0
    """Bytes that Content-Length promises and that never come."""
    delay_s: float = 0.0


@dataclass
class Server:
    """A running server; `answers` may be changed at any time, all other paths give 404."""

    address: str
    answers: dict[str, Answer]
    asked: list[str] = field(default_factory=list)
    """Paths in the order in which they were asked for, GET only."""


@contextmanager
def serve(answers: dict[str, Answer]) -> Iterator[Server]:
    """Serve `answers`, path → answer, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, with_body: bool) -> None:
            answer = server.answers.get(self.path, Answer(status=404))
            time.sleep(answer.delay_s)
            self.send_response(answer.status)
            length = len(answer.body) + answer.withheld
            for name, value in ({"Content-Type": "video/mp4", "Content-Length": str(length)} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):  # yt-dlp's first look at an address reads only the beginning
                self.wfile.write(answer.body if with_body else b"")

        def log_message(self, *_) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_port}", dict(answers))
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
