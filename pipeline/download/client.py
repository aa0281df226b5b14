"""yt-dlp's client under a guard that checks every connection, redirect and response; ffmpeg fetches nothing."""

import re
import socket
import threading
from urllib.parse import urljoin

import urllib3
import yt_dlp
from requests.structures import CaseInsensitiveDict
from urllib3.exceptions import NameResolutionError, NewConnectionError
from yt_dlp.downloader import DashSegmentsFD, HlsFD, HttpFD, get_suitable_downloader
from yt_dlp.networking._requests import RequestsHTTPAdapter, RequestsRH, RequestsSession
from yt_dlp.networking.common import Request, Response
from yt_dlp.networking.exceptions import HTTPError, RequestError
from yt_dlp.utils import YoutubeDLError

from avpipe.pipeline.download.guard import FetchGuard

NOT_FETCHED = "a live, encrypted or otherwise special stream, which is not fetched"
SEGMENT_S = re.compile(r"^#EXTINF:\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)", re.MULTILINE)

_current = threading.local()  # `guard` of each thread: urllib3's connections do not know the client


class Client(yt_dlp.YoutubeDL):
    """A YoutubeDL that fetches under a guard; one client per thread."""

    def start(self, guard: FetchGuard) -> None:
        """Put this thread under `guard`."""
        _current.guard = guard

    def urlopen(self, req):
        """Open an address, if the guard allows it."""
        _current.guard.check_url(req if isinstance(req, str) else req.url)
        with _current.guard.waiting():
            return super().urlopen(req)

    def build_request_director(self, handlers, preferences=None):
        """Allow only guarded HTTP, whatever other request handlers this yt-dlp has."""
        return super().build_request_director([_WatchedRequests], preferences)

    def dl(self, name, info, subtitle=False, test=False):
        """Download one format with yt-dlp's own code; other programs would follow addresses unchecked."""
        if not info.get("url"):
            self.raise_no_formats(info, forced=True)
        kind = NATIVE.get(get_suitable_downloader(info, self.params))
        if kind is None:
            raise _current.guard.refuse("setup", NOT_FETCHED)
        downloader = kind(self, self.params)
        for hook in self._progress_hooks:
            downloader.add_progress_hook(hook)
        info = self._copy_infodict(info)
        if info.get("http_headers") is None:
            info["http_headers"] = self._calc_headers(info)
        return downloader.download(name, info, subtitle)


class _NativeHls(HlsFD):
    """Downloads the segments of a playlist; refuses where yt-dlp would call ffmpeg."""

    @classmethod
    def can_download(cls, manifest, info_dict, allow_unplayable_formats=False):
        if not super().can_download(manifest, info_dict, allow_unplayable_formats):
            raise _current.guard.refuse("setup", NOT_FETCHED)
        _current.guard.promised_s = sum(map(float, SEGMENT_S.findall(manifest)))
        return True


NATIVE = {HttpFD: HttpFD, HlsFD: _NativeHls, DashSegmentsFD: DashSegmentsFD}


class _WatchedRequests(RequestsRH):
    RH_KEY = "Requests"

    def _create_instance(self, cookiejar, legacy_ssl_support=None):
        context = self._make_sslcontext(legacy_ssl_support=legacy_ssl_support)
        adapter = _WatchedAdapter(ssl_context=context, max_retries=urllib3.util.Retry(False))
        session = _WatchedSession()
        session.headers = CaseInsensitiveDict()
        session.cookies, session.trust_env = cookiejar, False
        for scheme in ("https://", "http://"):
            session.mount(scheme, adapter)
        return session

    def _send(self, request: Request) -> Response:
        try:
            response = super()._send(request)
        except HTTPError as error:
            _watch(error.response)  # extractors read error bodies, too
            raise
        except YoutubeDLError:
            raise
        except Exception as error:  # requests raises many kinds of errors for malformed responses
            raise RequestError(f"the server's response is malformed ({error})") from error
        return _watch(response)


def _watch(response: Response) -> Response:
    read, guard = response.read, _current.guard
    response.read = lambda amt=None: guard.read(read, amt)
    return response


class _WatchedSession(RequestsSession):
    def get_redirect_target(self, resp):
        target = super().get_redirect_target(resp)
        if target is not None:
            _current.guard.check_url(urljoin(resp.url, target))
        return target


class _WatchedAdapter(RequestsHTTPAdapter):
    def init_poolmanager(self, *arguments, **options):
        super().init_poolmanager(*arguments, **options)
        _watch_pools(self.poolmanager, _Direct)

    def proxy_manager_for(self, proxy, **options):
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **options)
        return manager if known else _watch_pools(manager, _Watched)


class _Watched:
    """A connection that the guard can close."""

    def connect(self) -> None:
        super().connect()
        _current.guard.watch_socket(self.sock)

    def request(self, *arguments, **options):
        """Send a request; a reused connection is guarded again."""
        if self.sock is not None:
            _current.guard.watch_socket(self.sock)
        return super().request(*arguments, **options)


class _Direct(_Watched):
    """A connection without a proxy, only to addresses that the guard allows."""

    def _new_conn(self) -> socket.socket:
        guard, error = _current.guard, None
        try:
            found = socket.getaddrinfo(self._dns_host, self.port, 0, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as caught:
            raise NameResolutionError(self.host, self, caught) from caught
        for family, kind, protocol, _, address in found:
            guard.check_address(self._dns_host, address[0])
            connection = socket.socket(family, kind, protocol)
            guard.watch_socket(connection)
            try:
                connection.settimeout(self.timeout)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.connect(address)
                return connection
            except OSError as caught:
                connection.close()
                error = caught
        raise NewConnectionError(self, f"Failed to establish a new connection: {error}") from error


def _watch_pools(manager: urllib3.PoolManager, kind: type[_Watched]) -> urllib3.PoolManager:
    """Make a pool manager use connections of this kind."""
    pools = {}
    for scheme, pool in manager.pool_classes_by_scheme.items():
        connection = type("Connection", (kind, pool.ConnectionCls), {})
        pools[scheme] = type("Pool", (pool,), {"ConnectionCls": connection})
    manager.pool_classes_by_scheme = pools
    return manager
