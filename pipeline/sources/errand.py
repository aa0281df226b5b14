"""One video's fetching, watched: where it may lead, how much of a page is read, how long a server may take.

A server is untrusted. What it must not do ends in an ErrandError, and a thread that waits for it is woken by closing
its connections: Python cannot interrupt a read.
"""

import ipaddress
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from yt_dlp.networking.exceptions import RequestError
from yt_dlp.utils import DownloadCancelled

# YouTube's pages have some 2 MB, its player 3 MB.
MAX_PAGE_BYTES = 32 << 20
# So much must come in so many seconds, and the answer must begin in them: a telephone line of 1995 would do.
PIECE_BYTES = 1 << 14
SLOW_S = 30.0
# Hours of 360p come through a slow line in this time.
VIDEO_LIMIT_S = 2 * 3600.0
LOOK_EVERY_S = 0.2


class ErrandError(RequestError):
    """The server did, or led to, what is not accepted; `reason` is the ledger's."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


class Errand:
    """Fetching one video in one thread; use it as a context manager, so that it is watched."""

    def __init__(self, url: str, anywhere: bool, follow: bool, stopped: Callable[[], bool]):
        """`anywhere`: a site that is trusted to name its own hosts. `follow`: other public hosts are allowed."""
        self.error: ErrandError | None = None
        """The first thing that was not accepted."""
        self.promised_s: float | None = None
        """Seconds that a playlist promises; None without one."""
        self._host, self._anywhere, self._follow, self._stopped = _host(url), anywhere, follow, stopped
        self._private = anywhere
        self._sockets: set[socket.socket] = set()
        self._end_s = time.monotonic() + VIDEO_LIMIT_S
        self._deadline_s = math.inf
        self._over = threading.Event()

    def __enter__(self) -> "Errand":
        threading.Thread(target=self._watch, daemon=True, name="errand").start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def refuse(self, reason: str, text: str) -> ErrandError:
        """Note that the server did what is not accepted; returns the error to raise."""
        self.error = self.error or ErrandError(reason, text)
        return self.error

    def check_url(self, url: str) -> None:
        """Raise ErrandError where an address must not be asked, DownloadCancelled where the run has ended."""
        if self._stopped():
            raise DownloadCancelled("the run was stopped")
        if self.error is not None:
            raise self.error
        host = _host(url)
        if not (self._anywhere or self._follow or host == self._host):
            raise self.refuse("setup", f"it leads to another host, {host[:100]}; --follow allows that")

    def check_address(self, host: str, address: str) -> None:
        """Raise ErrandError where a host that was not given lies on this machine or in its network."""
        public = ipaddress.ip_address(address.partition("%")[0]).is_global
        if host.lower().rstrip(".") == self._host:
            self._private |= not public
        elif not (public or self._private):
            raise self.refuse("setup", f"it leads to {host[:100]}, an address of this machine or its own network")

    def watch_socket(self, connection: socket.socket) -> None:
        """Close this connection when the errand has to end."""
        self._sockets.add(connection)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the server is waited for; raises ErrandError where that took too long."""
        self._deadline_s = min(time.monotonic() + SLOW_S, self._end_s)
        try:
            yield
        except Exception:
            if self.error is not None:
                raise self.error from None
            raise
        finally:
            self._deadline_s = math.inf

    def read(self, read: Callable[[int], bytes], count: int | None = None) -> bytes:
        """Up to `count` bytes (None: all, of a page) by `read`, which gets the number of bytes that are wanted."""
        pieces, left = [], MAX_PAGE_BYTES + 1 if count is None else count
        while left > 0:
            with self.waiting():
                piece = read(min(left, PIECE_BYTES))
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
        if count is None and left <= 0:
            raise self.refuse("setup", f"a page of more than {MAX_PAGE_BYTES:,} bytes came, and no video")
        return b"".join(pieces)

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            now = time.monotonic()
            if now > self._deadline_s:
                slow = f"less than {PIECE_BYTES:,} bytes came in {SLOW_S:.0f} s"
                self.refuse("timeout", f"it took more than {VIDEO_LIMIT_S:,.0f} s" if now > self._end_s else slow)
            if self.error or self._stopped():
                self._hang_up()

    def _hang_up(self) -> None:
        for connection in list(self._sockets):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except (OSError, ValueError):  # closed already
                self._sockets.discard(connection)


def _host(url: str) -> str:
    host = (urlsplit(url).hostname or "").lower().rstrip(".")
    try:
        return host.encode("idna").decode()  # as connections and redirects have it
    except UnicodeError:
        return host
