"""Where raw clips come from: a folder that has them, or addresses that yt-dlp reads (YouTube among them)."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

from pipeline.cut import cut_clip
from pipeline.errors import AvpipeError
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.youtube import YOUTUBE, Downloader

PLACEHOLDERS = {"youtube_id", "clip_id"}


class FolderSource:
    """`<clip_id>.mp4` files that are already there; linked where the file system allows, else copied."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._names = {path.stem for path in folder.iterdir() if path.suffix == ".mp4"}
        if not self._names:
            raise AvpipeError(f"{folder} holds no .mp4 file; clips are expected as <clip_id>.mp4")

    def __str__(self) -> str:
        return str(self.folder)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Those of `clips` that the folder holds."""
        return [clip for clip in clips if clip.clip_id in self._names]

    def batches(self, clips: list[Clip]) -> list[list[Clip]]:
        """Units of work: one clip each."""
        return [[clip] for clip in clips]

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Put each clip into `folder`; yields it with its file, or with what went wrong."""
        for clip in clips:
            source, target = self.folder / f"{clip.clip_id}.mp4", folder / f"{clip.clip_id}.mp4"
            try:
                _link_or_copy(source, target)
                yield clip, target
            except OSError as error:
                yield clip, MediaError("disk", f"{source}: {error.strerror}")


class UrlSource:
    """Addresses for yt-dlp. With `{clip_id}` each holds a clip; with `{youtube_id}` a whole video, cut here."""

    def __init__(self, template: str):
        fields = _placeholders(template)
        if not fields or not fields <= PLACEHOLDERS:
            raise AvpipeError(
                f"{template!r} needs {{clip_id}} (address of a clip) or {{youtube_id}} (of a whole video)"
            )
        self.whole_videos = "clip_id" not in fields
        self._downloader = Downloader(template)

    def __str__(self) -> str:
        return self._downloader.url_template

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """All of `clips`: only asking can tell."""
        return clips

    def batches(self, clips: list[Clip]) -> list[list[Clip]]:
        """Units of work: one clip, or all wanted clips of one video, which is then fetched once."""
        if not self.whole_videos:
            return [[clip] for clip in clips]
        by_video: dict[str, list[Clip]] = {}
        for clip in clips:
            by_video.setdefault(clip.youtube_id, []).append(clip)
        return list(by_video.values())

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Download into `folder` and cut; yields each clip with its file, or with what went wrong."""
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            try:
                video = self._downloader.fetch(clips[0].youtube_id, clips[0].clip_id, Path(scratch))
            except MediaError as error:
                yield from ((clip, error) for clip in clips)
                return
            for clip in clips:
                yield clip, self._clip_of(video, clip, folder)

    def _clip_of(self, video: Path, clip: Clip, folder: Path) -> Path | MediaError:
        target = folder / f"{clip.clip_id}.mp4"
        try:
            if self.whole_videos:
                cut_clip(video, clip.start_s, clip.end_s, target)
            else:
                video.replace(target)
        except MediaError as error:
            return error
        return target


Source = FolderSource | UrlSource


def open_source(text: str) -> Source:
    """`youtube`, an address with a placeholder, or a folder. Raises AvpipeError for anything else."""
    if text == "youtube":
        return UrlSource(YOUTUBE)
    if text.startswith(("http://", "https://")):
        return UrlSource(text)
    if Path(text).is_dir():
        return FolderSource(Path(text))
    raise AvpipeError(f"--from {text}: neither 'youtube', nor a folder, nor an http(s) address with {{clip_id}}")


def _placeholders(template: str) -> set[str]:
    """Names in braces; none where the braces do not match or ask for more than to be filled in."""
    try:
        template.format(youtube_id="", clip_id="")
        return {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except (ValueError, LookupError, AttributeError):
        return set()


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one that cannot link
        shutil.copyfile(source, target)
