"""Clips from addresses that yt-dlp reads: YouTube's, a template for ids, or a list of addresses."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from urllib.parse import urlsplit

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import check_clip_id
from avpipe.pipeline.download.access import public_template, without_address
from avpipe.pipeline.download.cut import cut_clip
from avpipe.pipeline.download.pacing import NO_PACE, YOUTUBE_PACE, Pace
from avpipe.pipeline.download.youtube import Downloader, SessionLimitError, is_youtube
from avpipe.pipeline.manifest.tables import Clip
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.media.probe import check_clip

PLACEHOLDERS = {"youtube_id", "clip_id"}
LIST_SUFFIXES = (".txt", ".csv", ".tsv")
LINE = re.compile(r"([^\s,]+)(?:[ \t]*,[ \t]*|[ \t]+)(\S+)")


class UrlSource:
    """A template for addresses: of clips with `{clip_id}`, of full videos, which are cut here, with `{youtube_id}`."""

    local = False

    def __init__(self, template: str, access: dict | None = None, follow: bool = False):
        """`access` has yt-dlp's parameters from `access_parameters`; `follow` allows redirects to other hosts."""
        fields = _placeholders(template)
        if not fields or not fields <= PLACEHOLDERS:
            raise AvpipeError(
                f"{public_template(template)!r} needs {{clip_id}} (address of a clip) or {{youtube_id}} (of a video)"
            )
        if not _is_web_address(template.format(youtube_id="x", clip_id="x")):
            raise AvpipeError(f"{public_template(template)!r} is not an http(s) address; correct it")
        self.whole_videos = "clip_id" not in fields
        self._template = template
        self._name = template if is_youtube(template) else public_template(template)
        self._downloader = Downloader(is_youtube(template), access or {}, follow)

    def __str__(self) -> str:
        return self._name

    @property
    def pace(self) -> Pace:
        """Pauses that these addresses require."""
        return YOUTUBE_PACE if self._downloader.youtube else NO_PACE

    def prepare(self, stopped: Callable[[], bool]) -> str:
        """Check what fetching needs; see `Downloader.prepare`."""
        return self._downloader.prepare(stopped)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Return all of `clips`, for only a request can tell; but Flickr clips are not on YouTube."""
        return [clip for clip in clips if clip.youtube_id or not self.whole_videos]

    def batches(self, clips: list[Clip]) -> list[list[Clip]]:
        """Return units of work: one clip, or all wanted clips of one video, which is fetched once."""
        if not self.whole_videos:
            return [[clip] for clip in clips]
        by_video: dict[str, list[Clip]] = {}
        for clip in clips:
            by_video.setdefault(clip.youtube_id, []).append(clip)
        return list(by_video.values())

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Download into `folder`, check and cut; yield each clip with its file or its error.

        After a SessionLimitError the same call may be repeated: the partial video is still in `folder`, and the
        download resumes.
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
    """A file with a clip id and its address per line; each address is that of the clip itself."""

    def __init__(self, path: Path, access: dict | None = None, follow: bool = False):
        """Read the list; options as for `UrlSource`. Raises AvpipeError with file and line."""
        self.whole_videos = False
        self._name = str(path)
        self._urls = read_url_list(path)
        self._downloader = Downloader(any(map(is_youtube, self._urls.values())), access or {}, follow)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Return those of `clips` that are in the list."""
        return [clip for clip in clips if clip.clip_id in self._urls]

    def _address(self, clip: Clip) -> str:
        return self._urls[clip.clip_id]


def read_url_list(path: Path) -> dict[str, str]:
    """Return {clip id: address} of lines `<clip id><tab, comma or space><address>`; skips empty and # lines.

    Raises AvpipeError with file and line for other lines and duplicate clips, and for an empty list.
    """
    urls: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise AvpipeError(f"{path} is not UTF-8 text; write one `<clip id> <address>` a line") from None
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
            raise AvpipeError(f"{where}: {without_address(url)[:80]!r} is not an http(s) address; correct or remove it")
        if clip_id in urls:
            raise AvpipeError(f"{where}: {clip_id} is in the list already; leave one address")
        urls[clip_id] = url
    if not urls:
        raise AvpipeError(f"{path} names no clip; write one `<clip id> <address>` a line")
    return urls


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
    except ValueError:  # an unmatched bracket
        return False


def _placeholders(template: str) -> set[str]:
    """Return the names in braces; none if braces do not match or contain format specifications."""
    try:
        template.format(youtube_id="", clip_id="")
        return {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except (ValueError, LookupError, AttributeError):
        return set()
