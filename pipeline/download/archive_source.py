"""Clips from archives: tars, plain or compressed, and zips, read once from front to back.

An archive is untrusted, and files from mirrors are often damaged. What its checksums do not confirm stays in the
scratch folder and becomes a failure; undamaged members are extracted.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from avpipe.pipeline.archives.packed import open_stream
from avpipe.pipeline.archives.tar_members import Losses, Member, TarReader
from avpipe.pipeline.archives.zip_members import STARTS as ZIP_STARTS
from avpipe.pipeline.archives.zip_members import ZipReader
from avpipe.pipeline.core.disk import check_reserve
from avpipe.pipeline.core.untrusted_files import open_regular
from avpipe.pipeline.download.clip_names import clip_id_of
from avpipe.pipeline.manifest.tables import Clip
from avpipe.pipeline.media import MediaError
from avpipe.pipeline.media.probe import check_clip

ARCHIVE_NAME = re.compile(r".+\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz|tzst|zip)", re.IGNORECASE)
KINDS = ".tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst or .zip"
# Ten seconds of video are a few megabytes; a larger member is not a clip, and could fill the disk.
MAX_CLIP_BYTES = 1 << 30
SHOWN_CHARACTERS = 120
# Number of damaged places to name in a message; the others are counted.
SHOWN_PLACES = 3


class ArchiveSource:
    """Clips in one or several archives; of several members for one clip, the first good one counts.

    The contents of the archives are known only after reading them.
    """

    local = True

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.skipped: list[str] = []
        """Members that are not clips or were already downloaded, with the reason."""
        self.seen: dict[str, None] = {}
        """Ids of all clips read from the archives so far, in member order."""
        self.damage: list[str] = []
        """A message for each archive that is damaged, truncated or not an archive."""

    def __str__(self) -> str:
        return str(self.paths[0]) + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")

    @property
    def packed_bytes(self) -> int:
        """Size of all archives; extracted clips take about as much, because they are compressed already."""
        return sum(path.stat().st_size for path in self.paths)

    def fetch(self, wanted: Callable[[str], Clip | None], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Unpack the clips that `wanted` returns for their ids into `folder`; yield each with its file or its failure.

        Yielded files are checked: they match the archive's checksums, if any, and are videos. Failures come last, for
        clips without another good member. Raises AvpipeError if the disk is full.
        """
        taken: dict[str, Clip | None] = {}
        failures: dict[str, MediaError] = {}
        for number, path in enumerate(self.paths):
            scratch = folder / str(number)
            scratch.mkdir()
            for member in self._members(path, lambda member, at=scratch: self._place(member, wanted, taken, at)):
                if member.refused:
                    self.skipped.append(f"{path.name}: {member.name[:SHOWN_CHARACTERS]!r}: {member.refused}")
                if member.file is None:
                    continue
                clip = taken[member.file.stem]
                try:
                    _check(path, member, clip)
                except MediaError as error:
                    member.file.unlink(missing_ok=True)
                    failures[clip.clip_id] = error
                    del taken[clip.clip_id]  # another member may be good
                else:
                    failures.pop(clip.clip_id, None)
                    yield clip, member.file
        for clip_id, error in failures.items():
            yield wanted(clip_id), error

    def _place(
        self, member: Member, wanted: Callable[[str], Clip | None], taken: dict[str, Clip | None], scratch: Path
    ) -> Path | None:
        """Return where to write a member; None if it is not a clip, not wanted, or already there."""
        if member.refused:
            return None
        clip_id = clip_id_of(PurePosixPath(member.name).name)
        if clip_id is None:
            member.refused = "no name of a clip"
        elif member.size > MAX_CLIP_BYTES:
            member.refused = f"{member.size:,} bytes cannot be a clip"
        elif clip_id in taken:
            member.refused = f"{clip_id} is there already"
        if member.refused:
            return None
        self.seen[clip_id] = None
        taken[clip_id] = wanted(clip_id)
        if taken[clip_id] is None:
            return None
        check_reserve(scratch)
        return scratch / f"{clip_id}.mp4"

    def _members(self, path: Path, choose: Callable[[Member], Path | None]) -> Iterator[Member]:
        """Yield all members of one archive; its problems are added to `damage`."""
        found = False
        try:
            with open_regular(path) as file:
                reader = _open_reader(file, path.name, choose)
                for member in reader.members():
                    found = True
                    yield member
        except OSError as error:
            self.damage.append(f"{path} cannot be read ({error.strerror or error}); copy it again")
            return
        if not found and isinstance(reader, TarReader) and reader.plain:
            self.damage.append(f"{path} is not an archive that holds files; what is read are {KINDS}")
        elif reader.losses.places:
            self.damage.append(f"{path} is cut off or damaged: {_told(reader.losses)}; get it again")


def _open_reader(file: BinaryIO, name: str, choose: Callable[[Member], Path | None]) -> TarReader | ZipReader:
    """Return the reader for an archive, by its first bytes, or by its name if those are damaged."""
    head = file.read(4)
    file.seek(0)
    if head in ZIP_STARTS or name.lower().endswith(".zip"):
        return ZipReader(file, choose)
    return TarReader(open_stream(file, name), choose)


def _check(path: Path, member: Member, clip: Clip) -> None:
    """Raise MediaError unless a member's bytes are intact, as far as can be known, and a video."""
    if member.damage:
        raise MediaError("corrupt", f"{path.name} is damaged here: {member.damage}; get the archive again")
    check_clip(member.file, clip.length_s)


def _told(losses: Losses) -> str:
    more = len(losses.places) - SHOWN_PLACES
    text = "; ".join(losses.places[:SHOWN_PLACES]) + (f"; {more:,} more places" if more > 0 else "")
    return text + (f"; {losses.skipped:,} bytes were passed over" if losses.skipped else "")
