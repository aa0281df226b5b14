"""Clips out of tar archives, read from front to back; what a stranger's archive may hold never leaves its member."""

import gzip
import re
import shutil
import tarfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath

from pipeline.errors import AvpipeError
from pipeline.manifest import Clip
from pipeline.media import MediaError
from pipeline.sources.clip_names import clip_id_of

TAR_SUFFIX = re.compile(r".+\.(tar|tar\.gz|tgz)")
GZIP_MAGIC = b"\x1f\x8b"
# Ten seconds of video are a few megabytes; a member that claims more is no clip, and could fill the disk.
MAX_CLIP_BYTES = 1 << 30
MAX_STEP_BYTES = 1 << 36
# Headers that carry long names; tarfile reads them into memory whole.
NAME_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
NAME_HEADERS += (tarfile.SOLARIS_XHDTYPE,)
MAX_NAME_BYTES = 1 << 20
SHOWN_CHARACTERS = 120


class ArchiveError(AvpipeError):
    """An archive that is damaged or cut off behind its first `complete` members."""

    def __init__(self, path: Path, complete: int, error: Exception):
        super().__init__(f"{path} is cut off or damaged behind its first {complete:,} members ({error}); get it again")
        self.complete = complete


class _BadHeader(tarfile.ReadError):
    """Where a header must stand there is none."""


class TarSource:
    """Clips in one or several tars, plain or with gzip; where two members are the same clip, the first counts.

    The archives are read once to learn what they hold, and once more by `batches`. Plain tars are skipped through by
    seeking, so that only what is wanted is read.
    """

    local = True

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self.skipped: list[str] = []
        """Members that are no clips, with the reason."""
        self._places: dict[str, tuple[int, int]] = {}  # clip id: number of the archive and of the member in it
        self._copied = threading.Event()
        self._open_member: tuple[tarfile.TarFile, tarfile.TarInfo] | None = None
        self._broken: str | None = None
        for archive, path in enumerate(paths):
            try:
                self._learn(archive, path)
            except ArchiveError as error:
                self._broken = self._broken or str(error)
                self._forget_behind(archive, error.complete)
        if not self._places:
            raise AvpipeError(self._broken or f"{self} holds no clip; members are expected as <clip_id>.mp4")

    def __str__(self) -> str:
        return str(self.paths[0]) + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")

    def ids(self) -> list[str]:
        """Ids of all clips in the archives, in the order of the members."""
        return list(self._places)

    def offered(self, clips: list[Clip]) -> list[Clip]:
        """Those of `clips` that the archives hold, in the order of the members."""
        wanted = {clip.clip_id: clip for clip in clips}
        return [wanted[clip_id] for clip_id in self._places if clip_id in wanted]

    def batches(self, clips: list[Clip]) -> Iterator[list[Clip]]:
        """One clip at a time, as reading comes to it; the next one follows when `fetch` has copied it.

        Raises AvpipeError at the end when an archive is cut off or damaged: its complete clips have come before.
        """
        wanted = {self._places[clip.clip_id]: clip for clip in clips}
        for archive in sorted({archive for archive, _ in wanted}):
            for number, tar, member in self._complete_members(archive):
                if clip := wanted.get((archive, number)):
                    self._copied.clear()
                    self._open_member = tar, member
                    yield [clip]
                    self._copied.wait()  # an archive has one position: it must not move on while a member is copied
        if self._broken:
            raise AvpipeError(self._broken)

    def fetch(self, clips: list[Clip], folder: Path) -> Iterator[tuple[Clip, Path | MediaError]]:
        """Copy the member that `batches` stands at into `folder`; yields its clip with its file, or what went wrong."""
        (clip,) = clips
        tar, member = self._open_member
        target = folder / f"{clip.clip_id}.mp4"
        try:
            with open(target, "wb") as file:
                shutil.copyfileobj(tar.extractfile(member), file, 1 << 20)
            result = target if target.stat().st_size == member.size else MediaError("corrupt", "the archive is cut off")
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            result = MediaError("corrupt", f"{member.name} cannot be read from the archive: {error}")
        except OSError as error:
            result = MediaError("disk", f"{target}: {error.strerror}")
        finally:
            self._copied.set()
        yield clip, result

    def _learn(self, archive: int, path: Path) -> None:
        for number, _, member in members(path):
            if member.isdir():
                continue
            name = f"{path.name}: {member.name[:SHOWN_CHARACTERS]!r}"
            clip_id = clip_id_of(PurePosixPath(member.name).name)
            if reason := _why_not(member) or ("" if clip_id else "no name of a clip"):
                self.skipped.append(f"{name}: {reason}")
            elif clip_id in self._places:
                self.skipped.append(f"{name}: {clip_id} is there already")
            else:
                self._places[clip_id] = archive, number

    def _forget_behind(self, archive: int, complete: int) -> None:
        places = self._places.items()
        self._places = {clip_id: place for clip_id, place in places if place < (archive, complete)}

    def _complete_members(self, archive: int) -> Iterator[tuple[int, tarfile.TarFile, tarfile.TarInfo]]:
        try:
            yield from members(self.paths[archive])
        except ArchiveError as error:
            self._broken = self._broken or str(error)


def members(path: Path) -> Iterator[tuple[int, tarfile.TarFile, tarfile.TarInfo]]:
    """(number, tar, member) from front to back; each is readable until the next is asked for.

    Raises ArchiveError, after the last member, for what is no tar, is damaged, or lacks its end mark.
    """
    number = 0
    with _opened(path) as tar:
        while True:
            try:
                member = tar.next()
                # With a negative size the reader would walk in a circle, with a huge one seek for ever behind the end.
                if member and not member.offset < tar.offset < member.offset + MAX_STEP_BYTES:
                    raise _BadHeader("a member has an impossible size")
            except Exception as error:  # tarfile and zlib meet a stranger's bytes with many kinds of error
                # Without a good header the data before it may be whole; without data, the last member is cut off.
                complete = number if isinstance(error, _BadHeader) else max(number - 1, 0)
                raise ArchiveError(path, complete, error) from error
            if member is None:
                return
            tar.members.clear()  # tarfile keeps them all
            yield number, tar, member
            number += 1


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        try:
            if packed:  # unlike tarfile's own, this reader notices a stream that is cut off or has a wrong checksum
                stream = stack.enter_context(gzip.open(file))
                tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member))
            else:
                tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:", tarinfo=_Member))
        except Exception as error:
            raise ArchiveError(path, 0, error) from error
        yield tar


class _Member(tarfile.TarInfo):
    """tarfile's header, but one that is wrong is an error: tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise _BadHeader(str(error)) from error

    def _proc_member(self, tar):
        if self.type in NAME_HEADERS and self.size > MAX_NAME_BYTES:
            self.type = b"!"  # unknown to tarfile, which then skips the data
        try:
            return super()._proc_member(tar)
        except Exception as error:  # names that nest too deep, numbers that are none, an end within a header
            raise _BadHeader(str(error)) from error


def _why_not(member: tarfile.TarInfo) -> str | None:
    """Why a member cannot be a clip, or None."""
    path = PurePosixPath(member.name)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        return "no plain file"
    if path.is_absolute() or ".." in path.parts:
        return "its path leads out of the folder"
    if member.size > MAX_CLIP_BYTES:
        return f"{member.size:,} bytes are no clip"
    return None
