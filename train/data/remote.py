"""Shards at an address (s3://, gs://, https://, …): some tars are kept on this machine, of the others parts are read.

Each batch of a global shuffle touches all tars alike. A cache that drops what was used longest ago would fetch a whole
tar for nearly every sample, and drop it before its next one is wanted. So what is kept is fixed: the first tars of the
index that there is room for, fetched by one thread in the background. A sample of any other tar, or of one that has not
come yet, is read from the address by the thread that wants it: as many at a time as the loader has threads. Its bytes
are the same wherever they come from, and so are the batches.
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

# Before the second, third and fourth try: a store that is busy, or a line that is gone for a moment.
PAUSES_S = (0.5, 2.0, 8.0)
# Asking again does not help.
FINAL_ERRORS = (FileNotFoundError, PermissionError, ImportError)
# Of a tar that is fetched: what is lost by one broken connection.
CHUNK_BYTES = 16_000_000
# So much that nobody asked for costs less than another request.
GAP_BYTES = 65_536


class _WrongHashError(AvpipeError):
    """A tar at the address that is not the one of the index."""


@dataclass
class DiskBudget:
    """How much may still be fetched into one folder, by all shards that a process opens."""

    folder: Path
    left: int
    """Bytes."""

    @classmethod
    def below(cls, folder: Path, limit_gb: float | None) -> "DiskBudget":
        """Room for `limit_gb` gigabytes (None: half of the disk that is free), less the tars that lie there already."""
        present = sum(tar.stat().st_size for tar in folder.rglob("*.tar"))
        limit = (free_bytes(folder) + present) // 2 if limit_gb is None else int(limit_gb * 1e9)
        return cls(folder, limit - present)

    def take(self, size: int) -> bool:
        """Whether `size` bytes fit in; they are taken then."""
        if size > self.left:
            return False
        self.left -= size
        return True


def open_remote(address: str, wanted: list[str] | None, budget: DiskBudget) -> Shards:
    """Open the shards at an address, all or the `wanted` tars. Raises AvpipeError where there is no index, or a tar."""
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
    """(folder for the copies, which now holds the index; {name: (bytes, sha256)} of its tars)."""
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
    """The tars of one index: those that are kept in `folder` as maps, of the others parts. For threads side by side."""

    def __init__(self, address: str, folder: Path, expected: dict[str, tuple[int, str]]):
        """`facts`: {name: (bytes, sha256)}. Raises AvpipeError for an address that nothing here can read."""
        self.address, self.folder, self._expected = address, folder, expected
        self._fs, self._path = open_address(address)
        self._members: set[str] = set()
        self._last = threading.local()
        self.wrong: dict[str, str] = {}
        """Tar to what to raise when it is read: those whose hash is not the index's."""

    def __reduce__(self) -> tuple:
        return RemoteTars, (self.address, self.folder, self._expected)

    def size(self, name: str) -> int | None:
        """Bytes of a tar, as the index has it; None for one that it does not name."""
        return self._expected.get(name, (None,))[0]

    def check_sizes(self, names: list[str]) -> None:
        """Raise AvpipeError unless the tars at the address are there, in the sizes that the index has."""
        found = _with_retries(self.address, lambda: self._fs.sizes([f"{self._path}/{name}" for name in names]))
        for name, actual in zip(names, found, strict=True):
            if actual not in (None, self.size(name)):  # None: a web server that does not say
                raise AvpipeError(
                    f"{self.address}/{name} has {actual} bytes, {self.size(name)} by its index; send the shards again"
                )

    def is_kept(self, name: str) -> bool:
        """Whether a tar lies in the folder, by whatever process it was fetched."""
        try:
            return (self.folder / name).stat().st_size == self.size(name)
        except FileNotFoundError:
            return False

    def kept(self, name: str) -> memoryview | None:
        """The bytes of a tar that lies in the folder, else None."""
        try:
            return mapped(self.folder / name) if self.is_kept(name) else None
        except FileNotFoundError:  # it has just been removed
            return None

    def view(self, name: str, member: str, span_of: Callable[[str], tuple[int, int]]) -> memoryview:
        """A member of a sample of a tar that is not kept; `place` gives first byte and end of each of its members.

        Members that were asked for of other samples come in the same request where they lie near, for this thread's
        next call. Raises AvpipeError when the address cannot be read, after some tries.
        """
        if member != AUDIO:  # long, and what reads it does so of few samples
            self._members.add(member)
        start, end = span_of(member)
        last_name, first, data = getattr(self._last, "chunk", ("", 0, b""))
        if not (name == last_name and first <= start and end <= first + len(data)):
            first, last = self._shared_span(span_of, member)
            data = self.read(name, first, last)
            self._last.chunk = name, first, data
        return memoryview(data)[start - first : end - first]

    def _shared_span(self, span_of: Callable[[str], tuple[int, int]], member: str) -> tuple[int, int]:
        spans = [span_of(name) for name in {*self._members, member}]
        first, last = min(first for first, _ in spans), max(last for _, last in spans)
        gaps = last - first - sum(last - first for first, last in spans)
        return (first, last) if gaps <= GAP_BYTES else span_of(member)

    def read(self, name: str, start: int, end: int) -> bytes:
        """Bytes of a tar at the address. Raises AvpipeError when they cannot be had, or are known to be wrong."""
        if name in self.wrong:
            raise AvpipeError(self.wrong[name])
        address = f"{self.address}/{name}"
        data = _with_retries(address, lambda: self._fs.cat_file(f"{self._path}/{name}", start=start, end=end))
        if len(data) != end - start:
            raise AvpipeError(
                f"{address} gave {len(data)} bytes where {end - start} were asked for; it was changed, or its server "
                "knows no ranges: copy the shards here"
            )
        return data

    def fetch(self, name: str) -> None:
        """Copy a tar into the folder; it appears there when it is whole and its hash is the index's.

        Raises AvpipeError when the address cannot be read or the disk is full, _WrongHashError for another hash.
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
                    f"{self.address}/{name} is damaged or was changed: SHA-256 {found.hexdigest()}, {sha256} by its "
                    f"index; run `avpipe verify {self.address}`"
                )


def prefetch(tars: RemoteTars, names: list[str]) -> None:
    """Run in a thread: fetch the tars that are not there, one process at a time for each folder.

    What goes wrong is said once and ends it; only a wrong hash is for those who read the samples to raise.
    """
    try:
        with open(tars.folder / ".lock", "w") as lock:
            lock_file(lock, wait=True)
            for leftover in tars.folder.glob(".*.tar.*.tmp"):  # of processes that were killed
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
    """What `call` returns, after some tries. Raises AvpipeError naming the address."""
    with explained(address):
        for pause_s in PAUSES_S:
            try:
                return call()
            except FINAL_ERRORS:
                raise
            except Exception:  # each kind of storage raises its own
                time.sleep(pause_s)
        return call()
