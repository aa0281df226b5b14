"""Where raw clips come from: a folder or archives that have them, or addresses that yt-dlp reads, as YouTube's.

A source offers clips, cuts them into batches, and fetches a batch. One that is `local` knows what it has: it is asked
even for clips that failed elsewhere.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import AvpipeError
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.sources.clip_names import SUFFIX, clip_id_of
from pipeline.sources.tar import TAR_SUFFIX, TarSource
from pipeline.sources.url import LIST_SUFFIXES, UrlList, UrlSource
from pipeline.sources.youtube import YOUTUBE


class FolderSource:
    """mp4 files of one folder, named in any of the ways of `clip_id_of`; linked where possible, else copied."""

    local = True

    def __init__(self, folder: Path):
        self.folder = folder
        self.skipped: list[str] = []
        """Files that are no clips, with the reason."""
        self._names: dict[str, str] = {}  # of the files; 200,000 paths would take four times as long
        for name in sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX)):
            clip_id = clip_id_of(name)
            if clip_id is None:
                self.skipped.append(f"{name!r}: no name of a clip")
            elif clip_id in self._names:
                self.skipped.append(f"{name!r}: {clip_id} is there already")
            else:
                self._names[clip_id] = name
        if not self._names:
            raise AvpipeError(f"{folder} holds no clip; files are expected as <clip_id>.mp4 or in .tar or .tar.gz")

    def __str__(self) -> str:
        return str(self.folder)

    def ids(self) -> list[str]:
        """Ids of all clips in the folder."""
        return list(self._names)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Those of `clips` that the folder holds."""
        return [clip for clip in clips if clip.clip_id in self._names]

    def batches(self, clips: list[Clip]) -> list[list[Clip]]:
        """Units of work: one clip each."""
        return [[clip] for clip in clips]

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Put each clip into `folder`; yields it with its file, or with what went wrong."""
        for clip in clips:
            source, target = self.folder / self._names[clip.clip_id], folder / f"{clip.clip_id}.mp4"
            try:
                _link_or_copy(source, target)
                yield clip, target
            except OSError as error:
                yield clip, MediaError("disk", f"{source}: {error.strerror}")


Source = FolderSource | TarSource | UrlSource


def open_source(text: str, access: dict | None = None) -> Source:
    """`youtube`, an address with a placeholder, a list of addresses, a folder or a tar.

    `access` holds yt-dlp's parameters of `access_parameters`. Raises AvpipeError for anything else.
    """
    if text == "youtube":
        return UrlSource(YOUTUBE, access)
    if text.startswith(("http://", "https://")):
        return UrlSource(text, access)
    path = Path(text)
    if path.suffix in LIST_SUFFIXES and path.is_file():
        return UrlList(path, access)
    if path.exists():
        return open_local(path)
    raise AvpipeError(
        f"{text} is neither 'youtube', nor a folder, a tar archive or a list of addresses (.txt, .csv), nor an http(s) "
        "address with {clip_id}"
    )


def open_local(path: Path) -> FolderSource | TarSource:
    """A folder of clips, a tar archive, or a folder of archives. Raises AvpipeError for what is none of them."""
    if path.is_file():
        return TarSource([path])
    if not path.is_dir():
        raise AvpipeError(f"{path}: there is no such folder or archive")
    archives = sorted(p for p in path.iterdir() if TAR_SUFFIX.fullmatch(p.name) and p.is_file())
    return TarSource(archives) if archives else FolderSource(path)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one that cannot link
        shutil.copyfile(source, target)
