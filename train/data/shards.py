"""Index to samples: shards opened by their index, memory-mapped, any sample in any order."""

import io
import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from braceexpand import UnbalancedBracesError, braceexpand

from pipeline import samples
from pipeline.errors import AvpipeError
from pipeline.index import INDEX, check_unchanged, read_metadata, read_rows
from pipeline.layout import check_clip_id
from pipeline.remote import is_url

if TYPE_CHECKING:
    from train.data.remote_shards import RemoteTars


class DamagedError(AvpipeError):
    """A member of a sample that cannot be decoded."""

    def __init__(self, message: str, clip_id: str, member: str):
        super().__init__(message)
        self.clip_id, self.member = clip_id, member


class Boxes(Sequence):
    """The boxes of each sample, a list of dicts, made when they are asked for: the index keeps them small."""

    def __init__(self, column: pa.ChunkedArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, number: int) -> list[dict]:
        return self._column[int(number)].as_py()


@dataclass
class Shards:
    """The samples of one split, numbered from 0 in the order of their index. Threads may read side by side."""

    folder: Path | str
    """Where the tars lie: a folder, or an address that `store` reads."""
    metadata: dict
    """Of the index: split, listed, listed_sha256, extract settings with feature digests, plan."""
    clip_ids: list[str]
    labels: list[str | None]
    boxes: Sequence[list[dict]]
    """Usable boxes of each sample: annotator, xmin, ymin, xmax, ymax as fractions of the full frame."""
    shard_names: list[str]
    shard_of: np.ndarray
    """(N,) number of the shard of each sample."""
    offset: dict[str, np.ndarray]
    """Member to (N,) byte offsets in the shard."""
    size: dict[str, np.ndarray]
    """Member to (N,) sizes in bytes."""
    store: "RemoteTars | None" = None
    """Reads what is at an address."""
    layouts: dict[str, tuple[tuple[int, ...], np.dtype]] = field(default_factory=dict, repr=False)
    """Shape and type of features that are not avpipe's, by their names, as `train.data.loader` finds them."""
    _maps: dict[int, memoryview] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}  # maps do not travel to workers; each opens its own

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.metadata["split"]

    def view(self, number: int, member: str) -> memoryview:
        """One member of one sample, not yet read from the disk. Raises AvpipeError if the shards do not have it."""
        if member not in self.offset:
            raise AvpipeError(f"{self.folder} holds no {member}; it has: {', '.join(self.offset)}")
        shard = int(self.shard_of[number])
        whole = self._whole(shard)
        if whole is None:
            return self.store.view(self.shard_names[shard], member, partial(self._place, number))
        start, end = self._place(number, member)
        return whole[start:end]

    def _whole(self, shard: int) -> memoryview | None:
        """A tar, mapped; None for one that is not on this machine (yet)."""
        if shard not in self._maps:
            name = self.shard_names[shard]
            found = mapped(Path(self.folder) / name) if self.store is None else self.store.kept(name)
            if found is None:
                return None
            self._maps[shard] = found
        return self._maps[shard]

    def _place(self, number: int, member: str) -> tuple[int, int]:
        """(first byte, byte behind the last) of a member in its tar."""
        start = int(self.offset[member][number])
        return start, start + int(self.size[member][number])

    def read(self, number: int, member: str) -> bytes:
        """Bytes of one member of one sample. Raises AvpipeError if the shards do not have it."""
        return bytes(self.view(number, member))

    def array(self, number: int, member: str) -> np.ndarray:
        """The array of a .npy member, in the shard's own memory: read-only.

        Raises AvpipeError if the shards do not have it, ValueError for what is no array of numbers.
        """
        data = self.view(number, member)
        length = 10 + int.from_bytes(data[8:10], "little")
        shape, transposed, dtype = _npy_header(bytes(data[:length]))
        return np.frombuffer(data, dtype, math.prod(shape), length).reshape(shape, order="F" if transposed else "C")

    def damaged(self, number: int, member: str, error: Exception) -> DamagedError:
        """What to raise for a member that cannot be decoded: a sentence that names shard and clip."""
        shard, clip_id = self.shard_names[self.shard_of[number]], self.clip_ids[number]
        return DamagedError(
            f"{self.folder}/{shard}: {member} of {clip_id} cannot be read ({error}); run `avpipe verify {self.folder}`",
            clip_id,
            member,
        )


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type in the first bytes of a .npy: all samples have the same, and NumPy is slow to read it."""
    file = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not of version 1.0")
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy hands the header to Python's parser, which has many
        raise ValueError(f"its header is none of .npy: {error}") from None
    if dtype.hasobject:
        raise ValueError("not an array of numbers")
    return shape, transposed, dtype


def open_shards(source: str | Path) -> Shards:
    """Open a folder of shards, or some of its tars by a pattern: 'DIR/vggss-{000000..000143}.tar'.

    Tars beside which no index lies are opened by their headers, see `train.data.plain_tars`; for what lies at an
    address see `train.data.remote_shards.open_anywhere`. Raises AvpipeError when there is neither index nor tar, a
    named tar is not in the index, or a tar is gone or too short for its samples.
    """
    place, wanted = named_tars(str(source))
    if is_url(place):
        raise AvpipeError(f"{place}: here shards must lie in a folder, only `avpipe train` reads others; copy them")
    folder = Path(place)
    if not (folder / INDEX).exists():
        from train.data.plain_tars import open_plain  # imported here: it makes Shards

        return open_plain(folder, wanted)
    shards = read_index(folder / INDEX, folder, wanted)
    check_ends(shards, lambda name: (folder / name).stat().st_size if (folder / name).exists() else None)
    return shards


def named_tars(source: str) -> tuple[str, list[str] | None]:
    """(folder or address, names of the tars that a pattern names or None for all). Raises AvpipeError for a bad one."""
    if not source.endswith(".tar"):
        return source, None
    parts = [path.rpartition("/") for path in _expand(source)]
    folders = {folder or slash or "." for folder, slash, _ in parts}
    if len(folders) > 1:
        raise AvpipeError(f"{source}: the tars must lie in one folder; give one of {', '.join(sorted(folders))}")
    return folders.pop(), [name for _, _, name in parts]


def read_index(index: Path, folder: Path | str, wanted: list[str] | None, store: "RemoteTars | None" = None) -> Shards:
    """The samples that an index names, all or those of the `wanted` tars; the tars themselves are not looked at.

    `folder` is where they lie, and what errors name. Raises AvpipeError for what is no index, or lacks a wanted tar.
    """
    place = f"{folder}/{INDEX}"
    metadata = read_metadata(index, place)
    names = [shard["name"] for shard in metadata["shards"]]
    table = read_rows(index, place, without=("sha256",))
    check_unchanged(metadata, table, place)
    members = samples.index_members(table.schema)
    if wanted is not None:
        if unknown := sorted(set(wanted) - set(names)):
            raise AvpipeError(f"{folder}/{unknown[0]} is not among the {len(names)} shards of {place}")
        table = table.filter(pc.is_in(table["shard"], pa.array(wanted)))
    return Shards(
        folder=folder,
        metadata=metadata,
        clip_ids=[check_clip_id(clip_id, place) for clip_id in table["clip_id"].to_pylist()],
        labels=_shared(table["label"].to_pylist()),
        boxes=Boxes(table["boxes"]),
        shard_names=names,
        shard_of=_numbers(table["shard"], names, place),
        offset={name: table[f"{name}.offset"].to_numpy() for name in members},
        size={name: table[f"{name}.size"].to_numpy() for name in members},
        store=store,
    )


def mapped(path: Path) -> memoryview:
    """A file as memory that is read from the disk when it is looked at. Raises OSError."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _shared(texts: list[str | None]) -> list[str | None]:
    """The same texts, equal ones in memory once."""
    one_of = {text: text for text in texts}
    return [one_of[text] for text in texts]


def _numbers(column: pa.ChunkedArray, names: list[str], index: str) -> np.ndarray:
    """int32 places in `names` of a column's texts."""
    found = pc.index_in(column, pa.array(names, pa.string()))
    if found.null_count:
        stranger = column.filter(pc.is_null(found))[0].as_py()
        raise AvpipeError(f"{index} has samples in {stranger!r}, which it does not describe")
    return found.to_numpy()


def _expand(text: str) -> list[str]:
    try:
        return list(braceexpand(text))
    except UnbalancedBracesError:
        raise AvpipeError(f"{text}: the braces do not match; write e.g. DIR/vggss-{{000000..000143}}.tar") from None


def check_ends(shards: Shards, size_of: Callable[[str], int | None]) -> None:
    """Every used tar is there and reaches as far as its samples do; else a sentence now instead of a crash later.

    `size_of` gives the bytes of the tar of a name, or None where there is none.
    """
    end = np.max([shards.offset[name] + shards.size[name] for name in shards.offset], axis=0)
    for number in np.unique(shards.shard_of):
        path, actual = f"{shards.folder}/{shards.shard_names[number]}", size_of(shards.shard_names[number])
        if actual is None:
            raise AvpipeError(f"{path} is missing; copy it again, or run `avpipe shard` again")
        needed = int(end[shards.shard_of == number].max())
        if actual < needed:
            raise AvpipeError(f"{path} has {actual} bytes where its samples need {needed}; copy or make it again")
