"""Downloads with yt-dlp: its options, and the ledger reasons for its errors and messages."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlsplit

from yt_dlp.networking.exceptions import CertificateVerifyError, HTTPError, ProxyError
from yt_dlp.utils import DownloadCancelled, GeoRestrictedError

from avpipe.pipeline.core.disk import RESERVE_BYTES, free_bytes
from avpipe.pipeline.download.access import load_cookie_jar, without_address, without_secrets
from avpipe.pipeline.download.client import Client
from avpipe.pipeline.download.cut import ffmpeg_program
from avpipe.pipeline.download.guard import FetchGuard, RefusedError
from avpipe.pipeline.download.js_runtime import find_runtime
from avpipe.pipeline.download.pacing import NO_PACE, YOUTUBE_PACE, StoppedError
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.media.container import END_TOLERANCE_S
from avpipe.pipeline.media.probe import WEB_PAGE
from avpipe.pipeline.media.survey import open_clip

YOUTUBE = "https://www.youtube.com/watch?v={youtube_id}"
HOSTS = ("youtube.com", "youtu.be", "youtube-nocookie.com")
# A 360p file is enough for a 256-pixel frame and 16 kHz audio; progressive first, because it needs no merging.
FORMAT = "best[height<=360][acodec!=none][vcodec!=none]/bestvideo[height<=360]+bestaudio/best"
# Seconds without a byte after which a connection is considered dead.
SOCKET_TIMEOUT_S = 30.0
# How often yt-dlp resumes a broken response body.
RETRIES = 3
# Hours of 360p; only a live stream, or an endless server, sends more.
MAX_VIDEO_BYTES = 4_000_000_000

# yt-dlp's messages (in lower case) and the ledger's reasons; the first match counts. A set-up error or a block of this
# address must never be taken for a dead video, so these come before the messages about removal.
MESSAGES = (
    ("no space left", "disk"),
    ("disk quota exceeded", "disk"),
    ("unable to open for writing", "disk"),
    ("read-only file system", "disk"),
    ("not a bot", "bot_check"),
    ("captcha", "bot_check"),
    ("please sign in", "bot_check"),
    ("try again later", "rate_limited"),
    ("too many requests", "rate_limited"),
    ("http error 429", "rate_limited"),
    ("requested format is not available", "setup"),
    ("only images are available", "setup"),
    ("ffmpeg is not installed", "setup"),
    ("ffmpeg not found", "setup"),
    ("unsupported url", "setup"),
    ("no video formats found", "setup"),
    ("no m3u header", "setup"),
    # Messages to a session or a kind of client, not about the video.
    ("not available on this app", "setup"),
    ("drm protected", "setup"),
    ("page needs to be reloaded", "setup"),
    ("confirm your age", "age_gate"),
    ("age-restricted", "age_gate"),
    ("private video", "private"),
    ("in your country", "geo_blocked"),
    ("geo restriction", "geo_blocked"),
    ("video unavailable", "removed"),
    ("has been removed", "removed"),
    ("been terminated", "removed"),
    ("no longer available", "removed"),
    ("timed out", "network"),
    ("http error", "network"),
    ("unable to download", "network"),
    ("connection", "network"),
    ("bytes read", "network"),
    ("giving up after", "network"),
    ("fragment", "network"),
    ("did not get any data", "network"),
    ("downloaded file is empty", "network"),
    ("answer is malformed", "network"),
)

# Reasons that only YouTube's own messages can give; another server's may be about anything.
OF_YOUTUBE = frozenset({"removed", "private", "geo_blocked", "age_gate", "bot_check"})

# Errors whose message only says that the network failed, or depends on the locale.
ERROR_TYPES = ((ProxyError, "setup"), (CertificateVerifyError, "setup"), (GeoRestrictedError, "geo_blocked"))


class SessionLimitError(MediaError):
    """The server limits this session; the video itself is not to blame."""

    def __init__(self, detail: str, retry_after_s: float | None):
        super().__init__("rate_limited", detail)
        self.retry_after_s = retry_after_s


class _Silent:
    """Discards yt-dlp's console output, which would break the progress bar; its errors arrive as exceptions."""

    def debug(self, message: str) -> None: ...

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


def is_youtube(url: str) -> bool:
    """Whether an address is on YouTube, which needs a JavaScript runtime and a slow pace."""
    host = (urlsplit(url).hostname or "").lower()
    return any(host == name or host.endswith(f".{name}") for name in HOSTS)


def options(youtube: bool, access: dict) -> dict:
    """Return YoutubeDL options; `access` comes from `access_parameters`. Pauses only apply to YouTube."""
    pace = YOUTUBE_PACE if youtube else NO_PACE
    return access | {
        "color": {"stdout": "no_color", "stderr": "no_color"},
        "continuedl": True,
        "ffmpeg_location": ffmpeg_program(),
        # ffmpeg would follow whatever an untrusted file references.
        "fixup": "detect_or_warn" if youtube else "never",
        "format": FORMAT,
        "fragment_retries": RETRIES,
        "hls_prefer_native": True,
        "logger": _Silent(),
        "merge_output_format": "mp4",
        "noplaylist": True,
        "noprogress": True,
        "quiet": True,
        "retries": RETRIES,
        "skip_unavailable_fragments": False,
        "sleep_interval_requests": pace.request_s,
        "socket_timeout": SOCKET_TIMEOUT_S,
    }


class Downloader:
    """Fetches single videos; each thread keeps its client, which is six times as fast as a new one each time."""

    def __init__(self, youtube: bool, access: dict, follow: bool = False):
        """`follow` allows redirects to other hosts; YouTube's are always allowed."""
        self.youtube = youtube
        self._access, self._follow = access, follow
        self._of_thread = threading.local()
        self._cookies: CookieJar | None = None
        self._runtime: dict = {}
        self._stopped: Callable[[], bool] = lambda: False

    def prepare(self, stopped: Callable[[], bool]) -> str:
        """Check the requirements before the first request; return a note for the user, "" for none.

        Downloads end soon after `stopped` returns true. Raises AvpipeError if YouTube is needed and there is no
        JavaScript runtime, or if cookies are unreadable.
        """
        self._stopped = stopped
        self._cookies = load_cookie_jar(self._access)
        if not self.youtube:
            return ""
        runtime = find_runtime()
        self._runtime = runtime.options()
        return str(runtime)

    def fetch(self, url: str, folder: Path) -> Path:
        """Download one video into `folder` and return its file; a partial file there is resumed.

        Raises SessionLimitError, MediaError with the ledger's reason, or StoppedError when the run has ended.
        """
        client = self._client()
        # A fixed name: nothing that a server sends can choose a path. A % in the folder must not be a field.
        client.params["outtmpl"]["default"] = str(folder).replace("%", "%%") + "/video.%(ext)s"
        with FetchGuard(url, anywhere=is_youtube(url), follow=self._follow, stopped=self._stopped) as guard:
            client.start(guard)
            self._of_thread.guard = guard
            try:
                client.extract_info(url, download=True)
            except Exception as error:  # extractors raise anything; no clip may end the run
                if self._stopped():
                    raise StoppedError from None
                raise self._meaning(guard.error or error, url) from None
        files = [path for path in folder.iterdir() if path.suffix not in (".part", ".ytdl")]
        if len(files) != 1:
            raise MediaError("unknown", f"the address gave {len(files)} files instead of one")
        _check_length(files[0], guard.promised_s)
        return files[0]

    def _client(self) -> Client:
        if not hasattr(self._of_thread, "client"):
            client = Client(options(self.youtube, self._access) | self._runtime)
            if self._cookies is not None:
                client.cookiejar = self._cookies
            client.add_progress_hook(self._guard)
            self._of_thread.client = client
        return self._of_thread.client

    def _guard(self, progress: dict) -> None:
        """End a download that must not continue; yt-dlp calls this with every block."""
        if self._stopped():
            raise DownloadCancelled("the run was stopped")
        if progress.get("downloaded_bytes", 0) > MAX_VIDEO_BYTES:
            raise self._of_thread.guard.refuse("setup", f"more than {MAX_VIDEO_BYTES:,} bytes came: that is no clip")
        if free_bytes(Path(progress["filename"]).parent) < RESERVE_BYTES / 2:
            raise DownloadCancelled("no space left but half of the reserve")

    def _meaning(self, error: Exception, url: str) -> MediaError:
        youtube = is_youtube(url)
        text = " ".join(str(error).removeprefix("ERROR: ").split())
        cause = (getattr(error, "exc_info", None) or (None, error))[1]
        reason = error.reason if isinstance(error, RefusedError) else classify(text, cause, youtube)
        text = without_secrets(text if youtube else without_address(text, url), self._access)
        if reason == "rate_limited":
            return SessionLimitError(text, retry_after_s(cause))
        return MediaError(reason, f"{WEB_PAGE}: {text}" if "Unsupported URL" in text else text)


def classify(message: str, cause: BaseException | None = None, youtube: bool = True) -> str:
    """Return the ledger's reason for a yt-dlp message and its cause, from `youtube` or another server.

    Only YouTube's own words make a failure permanent. A status code does not: a mirror's 404 may be a wrong address,
    and its reason phrase is arbitrary.
    """
    lowered = message.lower()
    if isinstance(cause, HTTPError) and "http error" in lowered:
        return "rate_limited" if cause.status == 429 else "network"
    reasons = (reason for text, reason in MESSAGES if text in lowered and (youtube or reason not in OF_YOUTUBE))
    reason = next(reasons, "unknown")
    if not youtube and isinstance(cause, ValueError):
        return "network"  # a response that is not HTTP
    if reason in ("network", "unknown"):
        return next((better for kind, better in ERROR_TYPES if isinstance(cause, kind)), reason)
    return reason


def _check_length(path: Path, promised_s: float | None) -> None:
    """Raise MediaError if a playlist declared more seconds than arrived."""
    if promised_s is None:
        return
    try:
        with open_clip(path) as clip:
            came_s = clip.duration_s
    except (MediaError, OSError):  # `check_clip` reports it
        return
    if came_s < promised_s - END_TOLERANCE_S:
        raise MediaError("network", f"{came_s:.1f} s came of the {promised_s:.1f} s that the playlist promises")


def retry_after_s(cause: BaseException | None) -> float | None:
    """Return the seconds of the server's Retry-After (a number or a date); None without one."""
    value = cause.response.headers.get("Retry-After") if isinstance(cause, HTTPError) else None
    try:
        if value is None or value.strip().isdecimal():
            return float(value) if value else None
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return None
