"""Where raw clips come from: a folder or archives that have them, or addresses that yt-dlp reads, as YouTube's.

A source offers clips, cuts them into batches, and fetches a batch. One that is `local` knows what it has: it is asked
even for clips that failed elsewhere.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

from pipeline.clip_names import SUFFIX, clip_id_of
from pipeline.cut import cut_clip
from pipeline.errors import AvpipeError
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.tar_source import TAR_SUFFIX, TarSource
from pipeline.youtube import YOUTUBE, Downloader

PLACEHOLDERS = {"youtube_id", "clip_id"}


class FolderSource:
    """mp4 files of one folder, named in any of the ways of `clip_id_of`; linked where possible, else copied."""

    local = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped: list[str] = []
        """Files that are no clips, with the reason."""
        self._paths: dict[str, Path] = {}
        for path in sorted(path for path in folder.iterdir() if path.suffix == SUFFIX):
            clip_id = clip_id_of(path.name)
            if clip_id is None:
                self.skipped.append(f"{path.name!r}: no name of a clip")
            elif clip_id in self._paths:
                self.skipped.append(f"{path.name!r}: {clip_id} is there already")
            else:
                self._paths[clip_id] = path
        if not self._paths:
            raise AvpipeError(f"{folder} holds no clip; files are expected as <clip_id>.mp4 or in .tar or .tar.gz")

    def __str__(self) -> str:
        return str(self.folder)

    def ids(self) -> list[str]:
        """Ids of all clips in the folder."""
        return list(self._paths)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Those of `clips` that the folder holds."""
        return [clip for clip in clips if clip.clip_id in self._paths]

    def batches(self, clips: list[Clip]) -> list[list[Clip]]:
        """Units of work: one clip each."""
        return [[clip] for clip in clips]

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Put each clip into `folder`; yields it with its file, or with what went wrong."""
        for clip in clips:
            source, target = self._paths[clip.clip_id], folder / f"{clip.clip_id}.mp4"
            try:
                _link_or_copy(source, target)
                yield clip, target
            except OSError as error:
                yield clip, MediaError("disk", f"{source}: {error.strerror}")


class UrlSource:
    """Addresses for yt-dlp. With `{clip_id}` each holds a clip; with `{youtube_id}` a whole video, cut here."""

    local = False

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


Source = FolderSource | TarSource | UrlSource


def open_source(text: str) -> Source:
    """`youtube`, an address with a placeholder, a folder or a tar. Raises AvpipeError for anything else."""
    if text == "youtube":
        return UrlSource(YOUTUBE)
    if text.startswith(("http://", "https://")):
        return UrlSource(text)
    if Path(text).exists():
        return open_local(Path(text))
    raise AvpipeError(
        f"{text} is neither 'youtube', nor a folder, nor a tar archive, nor an http(s) address with {{clip_id}}"
    )


def open_local(path: Path) -> FolderSource | TarSource:
    """A folder of clips, a tar archive, or a folder of archives. Raises AvpipeError for what is none of them."""
    if path.is_file():
        return TarSource([path])
    if not path.is_dir():
        raise AvpipeError(f"{path}: there is no such folder or archive")
    archives = sorted(p for p in path.iterdir() if TAR_SUFFIX.fullmatch(p.name) and p.is_file())
    return TarSource(archives) if archives else FolderSource(path)


def _placeholders(template: str) -> set[str]:
    """Names in braces; none where the braces do not match or ask for more than to be filled in."""
    try:
        template.format(youtube_id="", clip_id="")
        return {field for _, field, _, _ in Formatter().parse(template) if field is not None}
    except (ValueError, LookupError, AttributeError):
        return set()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one that cannot link
        shutil.copyfile(source, target)
