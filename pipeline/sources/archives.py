"""Clips out of archives, read once from front to back: tars, plain or packed, and zips.

An archive's bytes are untrusted, and files from mirrors are often damaged. What its checksums do not vouch for stays in
the scratch folder and becomes a failure; members that no damage touches come out.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pipeline.disk_space import check_reserve
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.sources.clip_names import clip_id_of
from pipeline.sources.files import open_regular
from pipeline.sources.packed import open_stream
from pipeline.sources.probe import check_clip
from pipeline.sources.tar_members import Losses, Member, TarReader
from pipeline.sources.zip_members import STARTS as ZIP_STARTS
from pipeline.sources.zip_members import ZipReader

ARCHIVE_NAME = re.compile(r".+\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz|tzst|zip)", re.IGNORECASE)
KINDS = ".tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst or .zip"
# Ten seconds of video are a few megabytes; a member that claims more is no clip, and could fill the disk.
MAX_CLIP_BYTES = 1 << 30
SHOWN_CHARACTERS = 120
# Damaged places that a message names; the others are counted.
SHOWN_PLACES = 3


class ArchiveSource:
    """Clips in one or several archives; of members that are the same clip, the first that is good counts.

    What the archives hold is known only when they have been read.
    """

    local = True

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.skipped: list[str] = []
        """Members that are no clips or were there already, with the reason."""
        self.seen: dict[str, None] = {}
        """Ids of all clips in the archives, as far as they were read, in the order of the members."""
        self.damage: list[str] = []
        """A sentence for each archive that is damaged, cut off or no archive."""

    def __str__(self) -> str:
        return str(self.paths[0]) + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")

    @property
    def packed_bytes(self) -> int:
        """Size of all archives; clips take about as much, being compressed already."""
        return sum(path.stat().st_size for path in self.paths)

    def fetch(self, wanted: Callable[[str], Clip | None], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Unpack into `folder` what `wanted` gives a clip for, by its id; yields the clip with its file or a failure.

        A file that is yielded is checked: its archive's checksums fit, as far as there are any, and it is a video. What
        failed comes last, for clips that no other member made good. Raises AvpipeError when the disk is full.
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
        """Where a member's bytes are to be put; None for those that are no clip, not wanted, or there already."""
        if member.refused:
            return None
        clip_id = clip_id_of(PurePosixPath(member.name).name)
        if clip_id is None:
            member.refused = "no name of a clip"
        elif member.size > MAX_CLIP_BYTES:
            member.refused = f"{member.size:,} bytes are no clip"
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
        """All members of one archive; what is wrong with it is added to `damage`."""
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
            self.damage.append(f"{path} is no archive with files in it; what is read are {KINDS}")
        elif reader.losses.places:
            self.damage.append(f"{path} is cut off or damaged: {_told(reader.losses)}; get it again")


def _open_reader(file: BinaryIO, name: str, choose: Callable[[Member], Path | None]) -> TarReader | ZipReader:
    """The reader for an archive, by its first bytes, or by its name where they are damaged."""
    head = file.read(4)
    file.seek(0)
    if head in ZIP_STARTS or name.lower().endswith(".zip"):
        return ZipReader(file, choose)
    return TarReader(open_stream(file, name), choose)


def _check(path: Path, member: Member, clip: Clip) -> None:
    """Raise MediaError unless a member's bytes are right, as far as can be known, and a video."""
    if member.damage:
        raise MediaError("corrupt", f"{path.name} is damaged here: {member.damage}; get the archive again")
    check_clip(member.file, clip.length_s)


def _told(losses: Losses) -> str:
    more = len(losses.places) - SHOWN_PLACES
    text = "; ".join(losses.places[:SHOWN_PLACES]) + (f"; {more:,} more places" if more > 0 else "")
    return text + (f"; {losses.skipped:,} bytes were passed over" if losses.skipped else "")
