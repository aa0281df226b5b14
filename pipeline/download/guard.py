"""Limits on fetching a video: which hosts it may reach, how much of a page is read, how long a server may take.

Servers are untrusted. A violation raises RefusedError; a thread that waits for a server is woken by closing its
connections, because Python cannot interrupt a read.
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

# YouTube's pages have about 2 MB, its player 3 MB.
MAX_PAGE_BYTES = 32 << 20
# At least this much must arrive in this many seconds, response header included: a modem of 1995 would do.
PIECE_BYTES = 1 << 14
SLOW_S = 30.0
# Enough for hours of 360p over a slow connection.
VIDEO_LIMIT_S = 2 * 3600.0
LOOK_EVERY_S = 0.2


class RefusedError(RequestError):
    """The server did, or redirected to, something not allowed; `reason` is the ledger's."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


class FetchGuard:
    """Guards the fetching of one video in one thread; a context manager."""

    def __init__(self, url: str, anywhere: bool, follow: bool, stopped: Callable[[], bool]):
        """`anywhere`: a site that may name its own hosts. `follow`: other public hosts are allowed."""
        self.error: RefusedError | None = None
        """The first violation."""
        self.promised_s: float | None = None
        """Duration declared by a playlist, in seconds; None without one."""
        self._host, self._anywhere, self._follow, self._stopped = _host(url), anywhere, follow, stopped
        self._private = anywhere
        self._sockets: set[socket.socket] = set()
        self._end_s = time.monotonic() + VIDEO_LIMIT_S
        self._deadline_s = math.inf
        self._over = threading.Event()

    def __enter__(self) -> "FetchGuard":
        threading.Thread(target=self._watch, daemon=True, name="guard").start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def refuse(self, reason: str, text: str) -> RefusedError:
        """Record a violation; return the error to raise."""
        self.error = self.error or RefusedError(reason, text)
        return self.error

    def check_url(self, url: str) -> None:
        """Raise RefusedError for a forbidden address, DownloadCancelled if the run has ended."""
        if self._stopped():
            raise DownloadCancelled("the run was stopped")
        if self.error is not None:
            raise self.error
        host = _host(url)
        if not (self._anywhere or self._follow or host == self._host):
            raise self.refuse("setup", f"it leads to another host, {host[:100]}; --follow allows that")

    def check_address(self, host: str, address: str) -> None:
        """Raise RefusedError if a host that the user did not give is on this machine or its network."""
        public = ipaddress.ip_address(address.partition("%")[0]).is_global
        if host.lower().rstrip(".") == self._host:
            self._private |= not public
        elif not (public or self._private):
            raise self.refuse("setup", f"it leads to {host[:100]}, an address of this machine or its own network")

    def watch_socket(self, connection: socket.socket) -> None:
        """Register a connection to close when the fetch has to end."""
        self._sockets.add(connection)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait for a server; raises RefusedError if it takes too long."""
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
        """Read up to `count` bytes (None: an entire page) by `read(number of bytes)`."""
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
        return host.encode("idna").decode()  # as in connections and redirects
    except UnicodeError:
        return host
