"""Errors that a user can fix, as one message: what is wrong, where, and what to do. All others are bugs."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Error number: what it means, and what to do about it.
_OF_THE_SYSTEM = {
    errno.ENOSPC: ("no space is left on the disk", "free some space and rerun the command"),
    errno.EDQUOT: ("your quota on this disk is used up", "free some space and rerun the command"),
    errno.EROFS: ("the file system is read-only", "make it writable, or name another folder"),
    errno.EACCES: ("permission is denied", "change the permissions, or name another path"),
    errno.EPERM: ("this is not permitted", "change the permissions, or name another path"),
    errno.EMFILE: ("too many files are open", "raise the limit, e.g. `ulimit -n 65536`, and rerun the command"),
    errno.ENFILE: ("this machine has too many files open", "end other programs and rerun the command"),
    errno.ENAMETOOLONG: ("the name is too long", "use a shorter one"),
    errno.ENOTDIR: ("a part of this path is a file where a folder is needed", "correct the path"),
    errno.EISDIR: ("this is a folder where a file is needed", "correct the path"),
    errno.EEXIST: ("something else is there already", "remove it or name another path"),
    errno.ENOTEMPTY: ("the folder is not empty", "remove what is in it or name another path"),
    errno.ENOENT: ("there is no such file or folder", "correct the path, or make it again"),
    errno.ELOOP: ("its symbolic links form a loop", "correct the links"),
    errno.EFBIG: ("a file may not become this large here", "raise the limit, or name a folder on another disk"),
    errno.EIO: ("the disk fails", "look into the system's log, and copy what is on it elsewhere"),
    errno.ESTALE: ("the network file system lost it", "mount it again and rerun the command"),
    errno.ENOTCONN: ("the file system is no longer connected", "mount it again and rerun the command"),
    errno.EPIPE: ("the reader of this output has ended", "let it read to the end"),
    errno.EAGAIN: ("the system has no more processes or threads to give", "use fewer --workers, or raise `ulimit -u`"),
    errno.ENOMEM: ("out of memory", "use fewer --workers, or a machine with more"),
}
_OTHERWISE = "fix that and rerun the command"
# C libraries only give a string: HDF5 writes `errno = 28`, Arrow `[errno 28]`.
_ERRNO_IN_TEXT = re.compile(r"\berrno(?: =)? (\d+)\b")


class AvpipeError(Exception):
    """A request that cannot be carried out; the command line prints its message and exits with `exit_code`."""

    exit_code = 1


def user_message(error: BaseException) -> str | None:
    """Return the message for an error caused by the input or the machine; None for a bug of avpipe."""
    if isinstance(error, AvpipeError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory; use fewer --workers, smaller batches, or a machine with more"
    if type(error).__name__ == "OutOfMemoryError":  # torch's; torch must not be imported here
        return "the device is out of memory; use smaller batches (--set batch_size=…), or end other programs"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{error.object!a} has a name that is no UTF-8, which some formats cannot hold; rename it"
    number = _errno(error) if isinstance(error, OSError) else None
    if number is None:
        return None
    what, advice = _OF_THE_SYSTEM.get(number, (os.strerror(number).lower(), _OTHERWISE))
    places = dict.fromkeys(_text(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{': '.join([*places, what])}; {advice}"


def _errno(error: OSError) -> int | None:
    if error.errno:
        return error.errno
    found = _ERRNO_IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def _text(name: str | bytes | int | os.PathLike) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else f"file number {name}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def named(path: Path, shown: Path | None = None) -> Iterator[None]:
    """Within the block, add `path` (or `shown`) to an OSError without a file name, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename) == str(path)):
            error.filename = str(shown or path)
        raise
