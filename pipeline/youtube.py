"""yt-dlp only: its options, and what its messages mean for the ledger."""

import threading
from pathlib import Path

import yt_dlp

from pipeline.cut import ffmpeg_program
from pipeline.media import MediaError

YOUTUBE = "https://www.youtube.com/watch?v={youtube_id}"
# A 360p file is enough for a 256-pixel frame and 16 kHz audio; progressive first, because it needs no merging.
FORMAT = "best[height<=360][acodec!=none][vcodec!=none]/bestvideo[height<=360]+bestaudio/best"
# The pace of yt-dlp's own `sleep` preset: seconds before each request and each video.
YOUTUBE_PACE = {"sleep_interval_requests": 0.75, "sleep_interval": 10, "max_sleep_interval": 20}

# What yt-dlp says (in lower case) and the ledger's reason; the first match counts. A set-up fault or a block of this
# address must never read as a dead video, so these stand before the messages of removal.
MESSAGES = (
    ("no space left", "disk"),
    ("not a bot", "bot_check"),
    ("captcha", "bot_check"),
    ("try again later", "rate_limited"),
    ("too many requests", "rate_limited"),
    ("http error 429", "rate_limited"),
    ("requested format is not available", "setup"),
    ("only images are available", "setup"),
    ("ffmpeg is not installed", "setup"),
    ("ffmpeg not found", "setup"),
    ("unsupported url", "setup"),
    ("confirm your age", "age_gate"),
    ("age-restricted", "age_gate"),
    ("private video", "private"),
    ("in your country", "geo_blocked"),
    ("geo restriction", "geo_blocked"),
    ("http error 404", "removed"),
    ("http error 410", "removed"),
    ("video unavailable", "removed"),
    ("has been removed", "removed"),
    ("been terminated", "removed"),
    ("no longer available", "removed"),
    ("timed out", "timeout"),
    ("http error", "network"),
    ("unable to download", "network"),
    ("connection", "network"),
    ("bytes read", "network"),
)


class _Silent:
    """yt-dlp's messages arrive as exceptions; its console output would tear the progress bar."""

    def debug(self, message: str) -> None: ...

    def info(self, message: str) -> None: ...

    def warning(self, message: str) -> None: ...

    def error(self, message: str) -> None: ...


def options(url_template: str) -> dict:
    """Options of YoutubeDL for one source; polite pauses only where the pages are YouTube's."""
    pace = YOUTUBE_PACE if url_template == YOUTUBE else {}
    return pace | {
        "color": {"stdout": "no_color", "stderr": "no_color"},
        "format": FORMAT,
        "logger": _Silent(),
        "noplaylist": True,
        "noprogress": True,
        "quiet": True,
        "retries": 3,
        "ffmpeg_location": ffmpeg_program(),
        "fragment_retries": 3,
        "socket_timeout": 30,
        "merge_output_format": "mp4",
    }


class Downloader:
    """Fetches single videos; each thread keeps one client, which is six times as fast as a new one each time."""

    def __init__(self, url_template: str):
        self.url_template = url_template
        self._of_thread = threading.local()

    def fetch(self, youtube_id: str, clip_id: str, folder: Path) -> Path:
        """Download one video into `folder` and return its file. Raises MediaError with the ledger's reason."""
        url = self.url_template.format(youtube_id=youtube_id, clip_id=clip_id)
        client = self._client()
        # The name is ours and fixed: nothing that a server sends can choose a path. A % of the folder is no field.
        client.params["outtmpl"]["default"] = str(folder).replace("%", "%%") + "/video.%(ext)s"
        try:
            client.extract_info(url, download=True)
        except Exception as error:  # extractors are many and raise anything; no clip may end the run
            text = " ".join(str(error).removeprefix("ERROR: ").split())
            raise MediaError(classify(text), text) from None
        files = [path for path in folder.iterdir() if path.suffix not in (".part", ".ytdl")]
        if len(files) != 1:
            raise MediaError("unknown", f"{url} gave {len(files)} files instead of one")
        return files[0]

    def _client(self) -> yt_dlp.YoutubeDL:
        if not hasattr(self._of_thread, "client"):
            self._of_thread.client = yt_dlp.YoutubeDL(options(self.url_template))
        return self._of_thread.client


def classify(message: str) -> str:
    """The ledger's reason for one of yt-dlp's messages."""
    lowered = message.lower()
    return next((reason for text, reason in MESSAGES if text in lowered), "unknown")
