"""Locks: one process at a time in a folder."""

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import remove_leftovers

log = logging.getLogger(__name__)


# Returned by Lustre, NFS and FUSE mounts without `flock`.
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL})


@contextmanager
def stage_lock(folder: Path, what: str, clean: bool = False) -> Iterator[None]:
    """Lock `folder`; the kernel releases it however the process ends. Raises AvpipeError if it is locked already.

    With `clean`, temporary files that killed processes left in the folder are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            lock_file(file, wait=False)
        except BlockingIOError:
            raise AvpipeError(f"{folder}: another process is doing {what} here; wait for it or stop it") from None
        if clean:
            remove_leftovers(folder)
        yield


def lock_file(file: IO, wait: bool) -> None:
    """Lock an open file until it is closed. Without `wait`, raises BlockingIOError if another process has it.

    On a file system without locks it only warns, once per process.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_no_locks()


@cache
def _warn_of_no_locks() -> None:
    log.warning("this file system has no locks (flock): make sure that no two commands use the same folder")
