"""A web server on 127.0.0.1 for the tests of fetching: a script of answers for each path, and a log of requests."""

import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

os.environ["no_proxy"] = "127.0.0.1"  # nothing that a machine is set to may stand between the test and its server
# To the client, closing so is a reset and no end of the answer.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server says when one path is asked for. With a good status, ranges are served."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    """None as a value leaves a header out."""
    withheld: int = 0
    """Bytes that Content-Length promises and that never come."""
    sends: int | None = None
    """So many bytes of what was asked for are sent, then comes what `then` says; None for all."""
    then: str = "close"
    """`close`, `reset`, or `stall` (for 1.2 s)."""
    delay_s: float = 0.0


@dataclass
class Server:
    """A running server; `answers` may be changed at any time, all other paths give 404."""

    address: str
    answers: dict[str, Answer | list[Answer]]
    """Of a list, one answer is given after the other; the last stays."""
    asked: list[str] = field(default_factory=list)
    """Paths in the order in which they were asked for, GET only."""
    ranges: list[int] = field(default_factory=list)
    """First bytes asked for, where it was not the file's first."""
    lock: Lock = field(default_factory=Lock)

    def next_answer(self, path: str) -> Answer:
        """The answer due for this request."""
        with self.lock:
            script = self.answers.get(path, Answer(status=404))
            if isinstance(script, Answer):
                return script
            return script.pop(0) if len(script) > 1 else script[0]


class _Handler(BaseHTTPRequestHandler):
    server: "_Http"

    def do_GET(self) -> None:
        state = self.server.state
        state.asked.append(self.path)
        answer = state.next_answer(self.path)
        time.sleep(answer.delay_s)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and answer.status == 200 else 0
        state.ranges += [start] if start else []
        body = answer.body[start:]
        headers = {"Content-Type": "video/mp4", "Content-Length": str(len(body) + answer.withheld)} | answer.headers
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(answer.body) - 1}/{len(answer.body)}"
        self.send_response(206 if start else answer.status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):  # yt-dlp's first look at an address reads only the beginning
            self.wfile.write(body[: answer.sends])
            self._end(answer)

    def _end(self, answer: Answer) -> None:
        if answer.sends is not None and answer.then == "stall":
            time.sleep(1.2)
        elif answer.sends is not None and answer.then == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.connection.close()

    def log_message(self, *_) -> None: ...


class _Http(ThreadingHTTPServer):
    state: Server

    def handle_error(self, *_) -> None: ...  # clients that go away are what is tested


@contextmanager
def serve(answers: dict[str, Answer | list[Answer]]) -> Iterator[Server]:
    """Serve `answers`, path → answer or script of answers, until the end of the block."""
    with _Http(("127.0.0.1", 0), _Handler) as http:
        http.state = Server(f"http://127.0.0.1:{http.server_port}", dict(answers))
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield http.state
        finally:
            http.shutdown()
            thread.join()
