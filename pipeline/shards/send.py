"""Copies of shards at any address that fsspec knows.

Each file is followed by `<file>.sha256` in the format of `sha256sum`: a file with the right hash and size was sent
completely.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.addresses import OBJECT_STORES, explained, is_local, names_at, open_address
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import file_sha256
from avpipe.pipeline.core.paths import check_apart
from avpipe.pipeline.shards.index import INDEX, check_unchanged, read_metadata, read_rows
from avpipe.pipeline.shards.write import CARD_NAME

SIDECAR = ".sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What a copy to an address did."""

    address: str
    files: int
    """Number of files copied now, not counting those already there."""
    bytes: int
    removed: int
    """Number of tars of an older set of shards removed there."""


def send_shards(folder: Path, address: str, on_file: Callable[[int], None] = lambda bytes: None) -> Sent:
    """Copy the finished shards in `folder` to `address`/<split>: the tars, then the index; `on_file` gets each size.

    Complete files are skipped, so that a killed copy resumes. If anything differs, an older index is removed first, so
    that a reader never combines it with tars of another set; tars of the older set are removed too. Raises AvpipeError
    when the address cannot be written or is the folder of the shards, or when a local tar is damaged.
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
    _remove(fs, base, path.name, there)  # the old hash must never vouch for part of another file
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
