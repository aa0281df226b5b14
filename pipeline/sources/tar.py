"""The members of a tar of untrusted origin, for readers that need the place of each."""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.errors import AvpipeError

GZIP_MAGIC = b"\x1f\x8b"
MAX_STEP_BYTES = 1 << 36
# Headers that carry long names; tarfile reads them into memory whole.
NAME_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
NAME_HEADERS += (tarfile.SOLARIS_XHDTYPE,)
MAX_NAME_BYTES = 1 << 20


class ArchiveError(AvpipeError):
    """An archive that is damaged or cut off behind its first `complete` members."""

    def __init__(self, path: Path, complete: int, error: Exception):
        super().__init__(f"{path} is cut off or damaged behind its first {complete:,} members ({error}); get it again")
        self.complete = complete


class _BadHeader(tarfile.ReadError):
    """Where a header must stand there is none."""


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
        try:
            tar = stack.enter_context(tarfile.open(path, "r:", tarinfo=_Member))
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
