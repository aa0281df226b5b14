"""Shards at a remote address (s3://, gs://, https://, …): some tars are cached locally, the others read in ranges.

Each batch of a global shuffle touches all tars alike, so an LRU cache would fetch a tar for nearly every sample and
evict it before its next use. The cached set is therefore fixed: the first tars of the index that fit into the disk
budget, fetched by a background thread. Samples of other tars, or of tars not yet fetched, are read from the address by
the loader's threads, one request at a time each. Batches do not depend on where the bytes come from.
"""

import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avpipe.pipeline.core.addresses import explained, local_copy, open_address
from avpipe.pipeline.core.disk import RESERVE_BYTES, free_bytes, gigabytes
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.locks import lock_file
from avpipe.pipeline.core.samples import AUDIO
from avpipe.pipeline.features.specs import digest
from avpipe.pipeline.shards.index import INDEX, MAX_INDEX_BYTES, read_metadata
from avpipe.train.core.distributed import is_first
from avpipe.train.data.shards import Shards, check_ends, mapped, read_index

log = logging.getLogger(__name__)

# Pauses before the second, third and fourth attempt, for a busy store or a brief network failure.
PAUSES_S = (0.5, 2.0, 8.0)
# Errors that a retry does not fix.
FINAL_ERRORS = (FileNotFoundError, PermissionError, ImportError)
# Size of a request when a tar is fetched: the most that a broken connection can lose.
CHUNK_BYTES = 16_000_000
# Reading this many unneeded bytes costs less than another request.
GAP_BYTES = 65_536


class _WrongHashError(AvpipeError):
    """A remote tar does not have the hash that the index states."""


@dataclass
class DiskBudget:
    """How much may still be fetched into a folder, shared by all shards that a process opens."""

    folder: Path
    left: int
    """Remaining bytes."""

    @classmethod
    def below(cls, folder: Path, limit_gb: float | None) -> "DiskBudget":
        """Return a budget of `limit_gb` gigabytes (None: half of the free disk space), less the tars already there."""
        present = sum(tar.stat().st_size for tar in folder.rglob("*.tar"))
        limit = (free_bytes(folder) + present) // 2 if limit_gb is None else int(limit_gb * 1e9)
        return cls(folder, limit - present)

    def take(self, size: int) -> bool:
        """Take `size` bytes if they fit, and return whether they did."""
        if size > self.left:
            return False
        self.left -= size
        return True


def open_remote(address: str, wanted: list[str] | None, budget: DiskBudget) -> Shards:
    """Open all shards at an address, or the `wanted` tars. Raises AvpipeError if the index or a tar is missing."""
    folder, expected = _fetch_index(address, budget.folder)
    tars = RemoteTars(address, folder, expected)
    shards = read_index(folder / INDEX, address, wanted, tars)
    names = list(dict.fromkeys(shards.shard_names[shard] for shard in shards.shard_of))
    tars.check_sizes(names)
    check_ends(shards, tars.size)
    to_fetch = [name for name in names if not tars.is_kept(name) and budget.take(tars.size(name))]
    if to_fetch:
        threading.Thread(target=prefetch, args=(tars, to_fetch), name="prefetch", daemon=True).start()
    if is_first():
        kept = [name for name in names if name in to_fetch or tars.is_kept(name)]
        size = gigabytes(sum(map(tars.size, kept)))
        log.info(
            "%s: %d of %d tars (%s) are cached in %s, %d of them still to be fetched; all other samples are read from "
            "the address",
            address,
            len(kept),
            len(names),
            size,
            folder,
            len(to_fetch),
        )
    return shards


def _fetch_index(address: str, root: Path) -> tuple[Path, dict[str, tuple[int, str]]]:
    """Copy the index to a local folder; return (folder, {name: (bytes, sha256)} of its tars)."""
    index_address = f"{address}/{INDEX}"
    try:
        with local_copy(index_address, MAX_INDEX_BYTES) as copy:
            metadata = read_metadata(copy, index_address)
            expected = {shard["name"]: (shard["bytes"], shard["sha256"]) for shard in metadata["shards"]}
            named = digest({"address": address, "plan": metadata["plan"], "shards": metadata["shards"]})
            folder = root / f"{metadata['split']}-{named}"
            with atomic_write(folder / INDEX) as temporary:
                shutil.copyfile(copy, temporary)
    except FileNotFoundError:
        raise AvpipeError(
            f"{address} holds no {INDEX}, which shards at an address need; make it with `avpipe shard --to ADDRESS`"
        ) from None
    return folder, expected


class RemoteTars:
    """The tars of an index: memory-mapped if cached in `folder`, else read from the address. Thread-safe."""

    def __init__(self, address: str, folder: Path, expected: dict[str, tuple[int, str]]):
        """Open the address; `expected` is {name: (bytes, sha256)}. Raises AvpipeError if it is not supported."""
        self.address, self.folder, self._expected = address, folder, expected
        self._fs, self._path = open_address(address)
        self._members: set[str] = set()
        self._last = threading.local()
        self.wrong: dict[str, str] = {}
        """Name of a tar whose hash differs from the index to the message to raise when it is read."""

    def __reduce__(self) -> tuple:
        return RemoteTars, (self.address, self.folder, self._expected)

    def size(self, name: str) -> int | None:
        """Return the size of a tar in bytes as stated by the index, or None if the index does not name it."""
        return self._expected.get(name, (None,))[0]

    def check_sizes(self, names: list[str]) -> None:
        """Raise AvpipeError unless all these tars are at the address, with the sizes stated by the index."""
        found = _with_retries(self.address, lambda: self._fs.sizes([f"{self._path}/{name}" for name in names]))
        for name, actual in zip(names, found, strict=True):
            if actual not in (None, self.size(name)):  # None: the web server does not report sizes
                raise AvpipeError(
                    f"{self.address}/{name} has {actual} bytes, but {self.size(name)} by its index; upload it again"
                )

    def is_kept(self, name: str) -> bool:
        """Return whether a tar is in the folder, fetched by this or any other process."""
        try:
            return (self.folder / name).stat().st_size == self.size(name)
        except FileNotFoundError:
            return False

    def kept(self, name: str) -> memoryview | None:
        """Return the bytes of a tar in the folder, memory-mapped, or None if it is not there."""
        try:
            return mapped(self.folder / name) if self.is_kept(name) else None
        except FileNotFoundError:  # removed in the meantime
            return None

    def view(self, name: str, member: str, span_of: Callable[[str], tuple[int, int]]) -> memoryview:
        """Return a member of a sample from the address; `span_of` maps members to (first byte, end) in the tar.

        The same request also reads nearby members that were needed of other samples, for this thread's next call.
        Raises AvpipeError if the address cannot be read after some retries.
        """
        if member != AUDIO:  # long, and needed for few samples
            self._members.add(member)
        start, end = span_of(member)
        last_name, first, data = getattr(self._last, "chunk", ("", 0, b""))
        if not (name == last_name and first <= start and end <= first + len(data)):
            first, stop = self._shared_span(span_of, member)
            data = self.read(name, first, stop)
            self._last.chunk = name, first, data
        return memoryview(data)[start - first : end - first]

    def _shared_span(self, span_of: Callable[[str], tuple[int, int]], member: str) -> tuple[int, int]:
        spans = [span_of(name) for name in {*self._members, member}]
        first, stop = min(first for first, _ in spans), max(stop for _, stop in spans)
        gaps = stop - first - sum(stop - first for first, stop in spans)
        return (first, stop) if gaps <= GAP_BYTES else span_of(member)

    def read(self, name: str, start: int, end: int) -> bytes:
        """Return a byte range of a remote tar. Raises AvpipeError if it cannot be read or the tar's hash is wrong."""
        if name in self.wrong:
            raise AvpipeError(self.wrong[name])
        address = f"{self.address}/{name}"
        data = _with_retries(address, lambda: self._fs.cat_file(f"{self._path}/{name}", start=start, end=end))
        if len(data) != end - start:
            raise AvpipeError(
                f"{address} returned {len(data)} bytes instead of {end - start}; either the file was changed or its "
                "server does not support range requests: copy the shards to a folder"
            )
        return data

    def fetch(self, name: str) -> None:
        """Copy a tar into the folder, where it appears once it is complete and its hash matches the index.

        Raises AvpipeError if the address cannot be read or the disk is full, _WrongHashError if the hash differs.
        """
        size, sha256 = self._expected[name]
        if free_bytes(self.folder) < size + RESERVE_BYTES:
            raise AvpipeError(f"{self.folder} has less than {gigabytes(size + RESERVE_BYTES)} free; free some space")
        found = hashlib.sha256()
        with atomic_write(self.folder / name) as temporary:
            with open(temporary, "wb") as file:
                for start in range(0, size, CHUNK_BYTES):
                    chunk = self.read(name, start, min(start + CHUNK_BYTES, size))
                    found.update(chunk)
                    file.write(chunk)
            if found.hexdigest() != sha256:
                raise _WrongHashError(
                    f"{self.address}/{name} is damaged or was changed: SHA-256 {found.hexdigest()}, but {sha256} in "
                    f"the index; run `avpipe verify {self.address}`"
                )


def prefetch(tars: RemoteTars, names: list[str]) -> None:
    """Fetch the tars that are missing, in a background thread and in one process at a time per folder.

    The first error is reported once and stops the prefetch; a wrong hash is raised on reading a sample instead.
    """
    try:
        with open(tars.folder / ".lock", "w") as lock:
            lock_file(lock, wait=True)
            for leftover in tars.folder.glob(".*.tar.*.tmp"):  # left by killed processes
                leftover.unlink(missing_ok=True)
            for name in names:
                try:
                    if not tars.is_kept(name):
                        tars.fetch(name)
                except _WrongHashError as error:
                    tars.wrong[name] = str(error)
    except (AvpipeError, OSError) as error:
        log.warning("no more tars are fetched, samples are still read from the address: %s", error)


def _with_retries(address: str, call: Callable[[], Any]) -> Any:
    """Return the result of `call`, with retries. Raises AvpipeError naming the address."""
    with explained(address):
        for pause_s in PAUSES_S:
            try:
                return call()
            except FINAL_ERRORS:
                raise
            except Exception:  # every storage backend raises its own types
                time.sleep(pause_s)
        return call()
