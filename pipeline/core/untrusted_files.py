"""Untrusted files to read, and scratch files whose write errors are the disk's fault."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from avpipe.pipeline.core.errors import AvpipeError


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else: a pipe would block, a device never ends.

    Symbolic links are followed; resolve the path first where that matters.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a regular file")
    return open(descriptor, "rb")


class ScratchFile:
    """A file to write. Raises AvpipeError if the disk fails, which is not the fault of the input."""

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
    """Return the error for a failed write to `path`."""
    why = error.strerror or error
    return AvpipeError(f"stopped (disk): {path}: {why}; free some space, then rerun the command")
