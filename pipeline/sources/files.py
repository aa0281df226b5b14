"""Reading files of untrusted origin, and writing files whose failure is the disk's."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import AvpipeError


def open_regular(path: Path) -> BinaryIO:
    """Open a plain file for reading. Raises OSError for what is none: a pipe would be waited for, a device never ends.

    Symbolic links are followed; who does not want that asks for the path's real place before.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no plain file")
    return open(descriptor, "rb")


class ScratchFile:
    """A file to write. Raises AvpipeError where the disk does not take it: that is no fault of what is read."""

    def __init__(self, path: Path):
        self._path = path
        self._file = self._guarded(open, path, "wb")

    def __enter__(self) -> "ScratchFile":
        return self

    def __exit__(self, *_) -> None:
        self._guarded(self._file.close)

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._guarded(self._file.write, data)

    def _guarded(self, call, *arguments):
        try:
            return call(*arguments)
        except OSError as error:
            raise disk_error(self._path, error) from None


def disk_error(path: Path, error: OSError) -> AvpipeError:
    """The sentence for a disk that does not take what is written to `path`."""
    why = error.strerror or error
    return AvpipeError(f"stopped (disk): {path}: {why}; make room, then run the same command again")
