"""Shards at any address that fsspec knows (s3://, gs://, file://, a plain folder): sent out, and fetched for a check.

Beside every file lies `<file>.sha256` in the form of `sha256sum`, written after it: a file that has one with the right
hash, and the right size, was sent as a whole.
"""

import contextlib
import errno
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import samples
from pipeline.errors import AvpipeError, named
from pipeline.index import INDEX, check_unchanged, read_metadata, read_rows
from pipeline.layout import check_apart, file_sha256
from pipeline.shard import CARD_NAME

SIDECAR = ".sha256"
# A row takes some 100 bytes: enough for ten million samples.
MAX_INDEX_BYTES = 1_000_000_000
COPY_BYTES = 4_000_000
# They have no folders; there fsspec would create a bucket, and a misspelt one is a mistake.
OBJECT_STORES = ("s3:", "s3a:", "gs:", "gcs:", "az:", "abfs:")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What a copy to an address did."""

    address: str
    files: int
    """Files that were copied now, without those that were there before."""
    bytes: int
    removed: int
    """Tars of an older set of shards that were removed there."""


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what file systems raise into one sentence about `address`."""
    try:
        yield
    except AvpipeError:
        raise
    except ImportError as error:
        extra = "pip install 'avpipe[s3]'" if address.startswith("s3") else f"the package it names ({error})"
        raise AvpipeError(f"{address}: what reads such addresses is not installed; install it: {extra}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # of this machine, whatever the address
            raise
        raise _explanation(address, error) from None
    except Exception as error:  # each kind of storage raises its own: no credentials, no connection, no such protocol
        raise _explanation(address, error) from None


def _explanation(address: str, error: Exception) -> AvpipeError:
    if isinstance(error, FileNotFoundError):
        return AvpipeError(f"{address}: there is no such bucket or file ({_line(error)}); create it first")
    if isinstance(error, PermissionError):
        return AvpipeError(f"{address}: access is denied ({_line(error)}); check your credentials")
    return AvpipeError(f"{address}: {_line(error)}; check the address and your credentials")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_url(address: str) -> bool:
    """Whether an address is not a plain path."""
    return "://" in address


def open_address(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address and the path in it. Raises AvpipeError where there is none."""
    import fsspec

    with explained(address):
        return fsspec.core.url_to_fs(address, use_listings_cache=False)


def is_local(fs: Any) -> bool:
    """Whether a file system of fsspec is that of this machine."""
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


class TooLongError(AvpipeError):
    """A file at an address that goes on where it should have ended."""


@contextlib.contextmanager
def local_copy(address: str, limit: int) -> Iterator[Path]:
    """A file as a path of this machine: itself, or a copy that is gone afterwards, however this process ends.

    Raises FileNotFoundError, and TooLongError for a file at an address of more than `limit` bytes.
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
    """Names of the files directly below an address; empty where there is nothing."""
    if not is_url(address):
        return {path.name for path in Path(address).iterdir()} if Path(address).is_dir() else set()
    fs, path = open_address(address)
    with explained(address):
        if not fs.exists(path):
            return set()
        return {entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False)}


def send_shards(folder: Path, address: str, on_file: Callable[[int], None] = lambda bytes: None) -> Sent:
    """Copy the finished shards in `folder` to `address`/<split>: the tars, then the index; `on_file` hears each size.

    What is there already in whole is passed by, so that a killed copy goes on where it was. Where anything differs, an
    older index is removed first: a reader never has one beside tars of another set; tars that only the older set had
    are removed too. Raises AvpipeError when the address cannot be written or is where the shards lie, or
    when a tar here is damaged.
    """
    metadata = read_metadata(folder / INDEX)
    check_unchanged(metadata, read_rows(folder / INDEX), folder / INDEX)
    split, address = metadata["split"], f"{address.rstrip('/')}/{metadata['split']}"
    hashes = {samples.check_tar_name(shard["name"]): shard["sha256"] for shard in metadata["shards"]}
    if (folder / CARD_NAME).exists():
        hashes[CARD_NAME] = file_sha256(folder / CARD_NAME)
    sizes = {name: (folder / name).stat().st_size for name in hashes}
    fs, base = open_address(address)
    if is_local(fs):
        check_apart(Path(base), folder, "where the shards themselves are")
    with explained(address):
        if not address.startswith(OBJECT_STORES):
            fs.makedirs(base, exist_ok=True)
        there = names_at(address)
        left = [name for name in hashes if not _is_there(fs, base, folder / name, hashes[name], there)]
        old = [name for name in there - hashes.keys() if re.fullmatch(rf"{split}-[0-9]{{6}}\.tar", name)]
        for name in hashes.keys() - left:
            on_file(sizes[name])
        index_sha256 = file_sha256(folder / INDEX)
        if not left and not old and _is_there(fs, base, folder / INDEX, index_sha256, there):
            return Sent(address=address, files=0, bytes=0, removed=0)
        for name in (INDEX, *old):
            _remove(fs, base, name, there)
        for name in left:
            _send_file(fs, base, folder / name, hashes[name], there)
            on_file(sizes[name])
        _send_file(fs, base, folder / INDEX, index_sha256, there)
    return Sent(address=address, files=len(left) + 1, bytes=sum(sizes[name] for name in left), removed=len(old))


def _send_file(fs: Any, base: str, path: Path, sha256: str, there: set[str]) -> None:
    if file_sha256(path) != sha256:
        raise AvpipeError(f"{path} is damaged; remove its folder and run `avpipe shard` again")
    _remove(fs, base, path.name, there)  # the old hash must never vouch for the first bytes of another file
    fs.put_file(str(path), f"{base}/{path.name}")
    fs.pipe_file(f"{base}/{path.name}{SIDECAR}", _sidecar(path, sha256))


def _sidecar(path: Path, sha256: str) -> bytes:
    return f"{sha256}  {path.name}\n".encode()


def _is_there(fs: Any, base: str, path: Path, sha256: str, there: set[str]) -> bool:
    if not {path.name, path.name + SIDECAR} <= there:
        return False
    same_size = fs.size(f"{base}/{path.name}") == path.stat().st_size
    return same_size and fs.cat_file(f"{base}/{path.name}{SIDECAR}") == _sidecar(path, sha256)


def _remove(fs: Any, base: str, name: str, there: set[str]) -> None:
    for each in (name + SIDECAR, name):
        if each in there:
            fs.rm_file(f"{base}/{each}")
            there.discard(each)
