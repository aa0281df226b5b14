"""Files that appear complete or not at all, leftovers of killed writers, and checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from avpipe.pipeline.core.errors import named


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is renamed to `path`, otherwise it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(temporary, shown=path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # a final name must never point at bytes that a power cut can lose
            temporary.replace(path)
    finally:
        with suppress(OSError):  # a disk that was unplugged: the original error is the one to report
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that killed processes left in `folder`; the caller must hold the stage's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
