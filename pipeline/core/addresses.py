"""Files at any address that fsspec knows (s3://, gs://, file://, a plain folder), and their errors as messages."""

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from avpipe.pipeline.core.errors import AvpipeError, first_line, named

COPY_BYTES = 4_000_000
# They have no folders: fsspec would create a bucket instead, even for a misspelt name.
OBJECT_STORES = ("s3:", "s3a:", "gs:", "gcs:", "az:", "abfs:")


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn whatever a file system raises into one message about `address`."""
    try:
        yield
    except AvpipeError:
        raise
    except ImportError as error:
        extra = "pip install 'avpipe[s3]'" if address.startswith("s3") else f"the package it names ({error})"
        raise AvpipeError(f"{address}: support for such addresses is not installed; run: {extra}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # of this machine, whatever the address
            raise
        raise _explanation(address, error) from None
    except Exception as error:  # each storage raises its own errors: no credentials, no connection, no such protocol
        raise _explanation(address, error) from None


def _explanation(address: str, error: Exception) -> AvpipeError:
    if isinstance(error, FileNotFoundError):
        return AvpipeError(f"{address}: there is no such bucket or file ({first_line(error)}); create it first")
    if isinstance(error, PermissionError):
        return AvpipeError(f"{address}: access is denied ({first_line(error)}); check your credentials")
    return AvpipeError(f"{address}: {first_line(error)}; check the address and your credentials")


def is_url(address: str) -> bool:
    """Whether an address is more than a plain path."""
    return "://" in address


def open_address(address: str) -> tuple[Any, str]:
    """Return the fsspec file system of an address and the path in it. Raises AvpipeError for an unknown protocol."""
    import fsspec

    with explained(address):
        return fsspec.core.url_to_fs(address, use_listings_cache=False)


def is_local(fs: Any) -> bool:
    """Whether an fsspec file system is the local one."""
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


class TooLongError(AvpipeError):
    """A remote file that is longer than allowed."""


@contextlib.contextmanager
def local_copy(address: str, limit: int) -> Iterator[Path]:
    """Yield a local path of a file: its own, or a copy's that vanishes afterwards, even if this process is killed.

    Raises FileNotFoundError, and TooLongError for a remote file of more than `limit` bytes.
    """
    if not is_url(address):
        yield Path(address)
        return
    fs, path = open_address(address)
    if is_local(fs):
        yield Path(path)
        return
    with explained(address):
        there = fs.exists(path)
    if not there:
        raise FileNotFoundError(address)
    with tempfile.TemporaryFile(prefix="avpipe-") as copy:  # without a name: a kill leaves nothing
        with explained(address), named(Path(tempfile.gettempdir())):
            _copy(fs, path, copy, limit, address)
        yield Path(f"/proc/self/fd/{copy.fileno()}")


def _copy(fs: Any, path: str, copy: BinaryIO, limit: int, address: str) -> None:
    with fs.open(path, "rb") as file:
        while data := file.read(COPY_BYTES):
            copy.write(data)
            if copy.tell() > limit:
                raise TooLongError(f"{address} has more than {limit:,} bytes, too many; it is not what was sent there")
    copy.flush()


def names_at(address: str) -> set[str]:
    """Return the names of the files directly below an address; empty if it does not exist."""
    if not is_url(address):
        return {path.name for path in Path(address).iterdir()} if Path(address).is_dir() else set()
    fs, path = open_address(address)
    with explained(address):
        if not fs.exists(path):
            return set()
        return {entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False)}
