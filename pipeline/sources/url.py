"""Clips from addresses that yt-dlp reads: YouTube's, a template with the id filled in, or a list of addresses."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from urllib.parse import urlsplit

from pipeline.errors import AvpipeError
from pipeline.layout import check_clip_id
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.sources.access import public_template, without_address
from pipeline.sources.cut import cut_clip
from pipeline.sources.pacing import NO_PACE, YOUTUBE_PACE, Pace
from pipeline.sources.probe import check_clip
from pipeline.sources.youtube import Downloader, SessionLimitError, is_youtube

PLACEHOLDERS = {"youtube_id", "clip_id"}
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
LINE = re.compile(r"([^\s,]+)(?:[ \t]*,[ \t]*|[ \t]+)(\S+)")


class UrlSource:
    """A template for addresses. With `{clip_id}` each holds a clip; with `{youtube_id}` a whole video, cut here."""

    local = False

    def __init__(self, template: str, access: dict | None = None, follow: bool = False):
        """`access` holds yt-dlp's parameters of `access_parameters`; `follow`: other hosts may be led to."""
        fields = _placeholders(template)
        if not fields or not fields <= PLACEHOLDERS:
            raise AvpipeError(
                f"{public_template(template)!r} needs {{clip_id}} (address of a clip) or {{youtube_id}} (of a video)"
            )
        if not _is_web_address(template.format(youtube_id="x", clip_id="x")):
            raise AvpipeError(f"{public_template(template)!r} is no http(s) address; correct it")
        self.whole_videos = "clip_id" not in fields
        self._template = template
        self._name = template if is_youtube(template) else public_template(template)
        self._downloader = Downloader(is_youtube(template), access or {}, follow)

    def __str__(self) -> str:
        return self._name

    @property
    def pace(self) -> Pace:
        """The pauses that these addresses want."""
        return YOUTUBE_PACE if self._downloader.youtube else NO_PACE

    def prepare(self, stopped: Callable[[], bool]) -> str:
        """Check what fetching needs; see `Downloader.prepare`."""
        return self._downloader.prepare(stopped)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """All of `clips`: only asking can tell. Flickr's are no YouTube videos."""
        return [clip for clip in clips if clip.youtube_id or not self.whole_videos]

    def batches(self, clips: list[Clip]) -> list[list[Clip]]:
        """Units of work: one clip, or all wanted clips of one video, which is then fetched once."""
        if not self.whole_videos:
            return [[clip] for clip in clips]
        by_video: dict[str, list[Clip]] = {}
        for clip in clips:
            by_video.setdefault(clip.youtube_id, []).append(clip)
        return list(by_video.values())

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Download into `folder`, check and cut; yields each clip with its file, or with what went wrong.

        After a SessionLimitError the same call may be made again: what has come of the video is still in `folder`, and
        the download goes on where it broke off.
        """
        scratch = folder / "video"
        scratch.mkdir(exist_ok=True)
        try:
            video = self._downloader.fetch(self._address(clips[0]), scratch)
        except MediaError as error:
            yield from ((clip, error) for clip in clips)
            if isinstance(error, SessionLimitError):
                return
        else:
            for clip in clips:
                yield clip, self._clip_of(video, clip, folder)
        shutil.rmtree(scratch)

    def _address(self, clip: Clip) -> str:
        return self._template.format(youtube_id=clip.youtube_id, clip_id=clip.clip_id)

    def _clip_of(self, video: Path, clip: Clip, folder: Path) -> Path | MediaError:
        target = folder / f"{clip.clip_id}.mp4"
        try:
            if self.whole_videos:
                cut_clip(video, clip.start_s, clip.end_s, target)
            else:
                check_clip(video, clip.length_s)
                video.replace(target)
        except MediaError as error:
            return error
        return target


class UrlList(UrlSource):
    """A file with one clip a line, its id and its address: each address holds the clip itself."""

    def __init__(self, path: Path, access: dict | None = None, follow: bool = False):
        """As of `UrlSource`. Raises AvpipeError with file and line."""
        self.whole_videos = False
        self._name = str(path)
        self._urls = read_url_list(path)
        self._downloader = Downloader(any(map(is_youtube, self._urls.values())), access or {}, follow)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Those of `clips` that the list names."""
        return [clip for clip in clips if clip.clip_id in self._urls]

    def _address(self, clip: Clip) -> str:
        return self._urls[clip.clip_id]


def read_url_list(path: Path) -> dict[str, str]:
    """{clip id: address} of lines `<clip id><tab, comma or space><address>`; empty lines and those with # do not count.

    Raises AvpipeError with file and line for anything else, for a clip named twice, and for an empty list.
    """
    urls: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise AvpipeError(f"{path} is no text in UTF-8; write one `<clip id> <address>` a line") from None
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        where = f"{path}:{number}"
        match = LINE.fullmatch(line)
        if match is None:
            raise AvpipeError(
                f"{where}: {without_address(line)[:80]!r} is not `<clip id> <address>`; correct or remove it"
            )
        clip_id, url = check_clip_id(match[1], where), match[2]
        if not _is_web_address(url):
            raise AvpipeError(f"{where}: {without_address(url)[:80]!r} is no http(s) address; correct or remove it")
        if clip_id in urls:
            raise AvpipeError(f"{where}: {clip_id} stands in the list already; leave one address")
        urls[clip_id] = url
    if not urls:
        raise AvpipeError(f"{path} names no clip; write one `<clip id> <address>` a line")
    return urls


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
    except ValueError:  # a bracket without its other
        return False


def _placeholders(template: str) -> set[str]:
    """Names in braces; none where the braces do not match or ask for more than to be filled in."""
    try:
        template.format(youtube_id="", clip_id="")
        return {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except (ValueError, LookupError, AttributeError):
        return set()
