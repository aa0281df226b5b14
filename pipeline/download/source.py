"""Sources of clips: a folder, archives, or addresses for yt-dlp such as YouTube's.

A source offers clips, splits them into batches, and fetches a batch. A `local` one knows what it has, so it is asked
even for clips that failed elsewhere.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.untrusted_files import open_regular
from avpipe.pipeline.download.access import without_address
from avpipe.pipeline.download.archive_source import ARCHIVE_NAME, KINDS, MAX_CLIP_BYTES, ArchiveSource
from avpipe.pipeline.download.clip_names import clip_id_of, is_video_name
from avpipe.pipeline.download.url import LIST_SUFFIXES, UrlList, UrlSource
from avpipe.pipeline.download.youtube import YOUTUBE
from avpipe.pipeline.manifest.tables import Clip
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.media.probe import check_clip

COPY_BYTES = 1 << 20


class FolderSource:
    """Video files of one folder, with names as in `clip_id_of`; hard-linked if possible, else copied.

    Pipes, devices, and links that lead out of the folder are never opened.
    """

    local = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped: list[str] = []
        """Files that are not clips, with the reason."""
        self._names: dict[str, str] = {}  # as strings: 200,000 Paths would take four times as long
        self._others: dict[str, list[str]] = {}  # other files of the same clips
        real = os.path.realpath(folder)
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                clip_id = clip_id_of(entry.name)
                if clip_id and (reason := _why_not(entry, real)):
                    self._skip(entry, reason)
                elif clip_id in self._names:
                    self._skip(entry, f"{clip_id} is there already")
                    self._others.setdefault(clip_id, []).append(entry.name)
                elif clip_id:
                    self._names[clip_id] = entry.name
                elif is_video_name(entry.name) and not entry.is_dir():
                    self._skip(entry, "no name of a clip")
        if not self._names:
            first = f" ({len(self.skipped):,} files are none: {self.skipped[0]})" if self.skipped else ""
            raise AvpipeError(f"{folder} holds no clip; files are expected as <clip_id>.mp4 or in {KINDS}{first}")

    def __str__(self) -> str:
        return str(self.folder)

    def ids(self) -> list[str]:
        """Ids of all clips in the folder."""
        return list(self._names)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Return those of `clips` that the folder contains."""
        return [clip for clip in clips if clip.clip_id in self._names]

    def batches(self, clips: list[Clip]) -> list[list[Clip]]:
        """Return units of work: one clip each."""
        return [[clip] for clip in clips]

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Put each clip into `folder` and check it; yield it with its file or its error.

        Of several files for one clip the first good one counts.
        """
        for clip in clips:
            names = [self._names[clip.clip_id], *self._others.get(clip.clip_id, [])]
            results = (self._take(self.folder / name, clip, folder) for name in names)
            first = next(results)
            good = (result for result in results if isinstance(result, Path))
            yield clip, first if isinstance(first, Path) else next(good, first)

    def _take(self, source: Path, clip: Clip, folder: Path) -> Path | MediaError:
        target = folder / f"{clip.clip_id}.mp4"
        target.unlink(missing_ok=True)
        try:
            _link_or_copy(source, target)
            check_clip(target, clip.length_s)
        except MediaError as error:
            return error
        except OSError as error:
            return MediaError("disk", f"{source}: {error.strerror}")
        return target

    def _skip(self, entry: os.DirEntry, reason: str) -> None:
        self.skipped.append(f"{entry.name!r}: {reason}")


Source = FolderSource | ArchiveSource | UrlSource


def open_source(text: str, access: dict | None = None, follow: bool = False) -> Source:
    """Open `youtube`, an address with a placeholder, a list of addresses, a folder or an archive.

    `access` has yt-dlp's parameters from `access_parameters`; with `follow`, addresses may redirect to other hosts.
    Raises AvpipeError for anything else.
    """
    if text == "youtube":
        return UrlSource(YOUTUBE, access, follow)
    if text.startswith(("http://", "https://")):
        return UrlSource(text, access, follow)
    path = Path(text)
    if path.suffix in LIST_SUFFIXES and path.is_file():
        return UrlList(path, access, follow)
    if path.exists():
        return open_local(path)
    raise AvpipeError(
        f"{without_address(text)} is neither 'youtube', nor a folder, an archive or a list of addresses (.txt, .csv), "
        "nor an http(s) address with {clip_id}"
    )


def open_local(path: Path) -> FolderSource | ArchiveSource:
    """Open a folder of clips, an archive, or a folder of archives. Raises AvpipeError for anything else."""
    if path.is_file():
        return ArchiveSource([path])
    if not path.is_dir():
        raise AvpipeError(f"{path}: there is no such folder or archive")
    archives = sorted(p for p in path.iterdir() if ARCHIVE_NAME.fullmatch(p.name) and p.is_file())
    if not archives:
        return FolderSource(path)
    source = ArchiveSource(archives)
    source.skipped += [f"{name!r}: beside archives" for name in sorted(os.listdir(path)) if clip_id_of(name)]
    return source


def _why_not(entry: os.DirEntry, folder: str) -> str:
    """Return why an entry of a folder (with this real path) cannot be a clip; "" if it can."""
    try:
        info = entry.stat()
    except OSError as error:
        return error.strerror or "it cannot be read"
    if not stat.S_ISREG(info.st_mode):
        return "not a regular file"
    if entry.is_symlink() and os.path.commonpath([folder, os.path.realpath(entry.path)]) != folder:
        return "a link that leads out of the folder; name the folder that it leads to"
    if info.st_size > MAX_CLIP_BYTES:
        return f"{info.st_size:,} bytes cannot be a clip"
    return ""


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without hard links
        with open_regular(source) as given, open(target, "wb") as copy:
            shutil.copyfileobj(given, copy, COPY_BYTES)
