"""Members of an untrusted tar, for readers that need their offsets."""

import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError

GZIP_MAGIC = b"\x1f\x8b"
MAX_STEP_BYTES = 1 << 36
# Size limit of headers with long names, which tarfile reads into memory.
NAME_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
NAME_HEADERS += (tarfile.SOLARIS_XHDTYPE,)
MAX_NAME_BYTES = 1 << 20


class ArchiveError(AvpipeError):
    """An archive that is damaged or truncated after its first `complete` members."""

    def __init__(self, path: Path, complete: int, error: Exception):
        super().__init__(f"{path} is truncated or damaged after its first {complete:,} members ({error}); get it again")
        self.complete = complete


class _BadHeader(tarfile.ReadError):
    """A header is missing where one is required."""


def members(path: Path) -> Iterator[tuple[int, tarfile.TarFile, tarfile.TarInfo]]:
    """Yield (index, tar, member) from front to back; each is readable until the next one is requested.

    Raises ArchiveError, after the last member, if the file is not a tar, is damaged, or lacks its end marker.
    """
    number = 0
    with _opened(path) as tar:
        while True:
            try:
                member = tar.next()
                # With a negative size the reader would loop, with a huge one seek far past the end.
                if member and not member.offset < tar.offset < member.offset + MAX_STEP_BYTES:
                    raise _BadHeader("a member has an impossible size")
            except Exception as error:  # tarfile and zlib raise many kinds of errors for untrusted bytes
                # Without a valid header the data before it may be intact; without data, the last member is truncated.
                complete = number if isinstance(error, _BadHeader) else max(number - 1, 0)
                raise ArchiveError(path, complete, error) from error
            if member is None:
                return
            tar.members.clear()  # tarfile keeps all of them
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
    """tarfile's header, except that an invalid one is an error instead of the end of the archive."""

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
            self.type = b"!"  # unknown to tarfile, which would skip the data
        try:
            return super()._proc_member(tar)
        except Exception as error:  # nested too deep, invalid numbers, an end within a header
            raise _BadHeader(str(error)) from error
