"""Index to samples: shards opened by their index, memory-mapped, any sample in any order."""

import io
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from braceexpand import UnbalancedBracesError, braceexpand

from pipeline import samples
from pipeline.errors import AvpipeError
from pipeline.layout import check_clip_id
from pipeline.shard import EXTRA, INDEX, read_metadata


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

    folder: Path
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
        if shard not in self._maps:
            with open(self.folder / self.shard_names[shard], "rb") as file:
                self._maps[shard] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        start = int(self.offset[member][number])
        return self._maps[shard][start : start + int(self.size[member][number])]

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
            f"{self.folder / shard}: {member} of {clip_id} cannot be read ({error}); run `avpipe verify {self.folder}`",
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
    """Open a folder that `avpipe shard` wrote, or some of its tars by a pattern: 'DIR/vggss-{000000..000143}.tar'.

    Raises AvpipeError when there is no index, a named tar is not in it, or a tar is gone or too short for its samples.
    """
    text = str(source)
    if text.endswith(".tar"):
        paths = [Path(path) for path in _expand(text)]
        folder, wanted = paths[0].parent, {path.name for path in paths}
    else:
        folder, wanted = Path(text), None
    index = folder / INDEX
    if not index.exists():
        raise AvpipeError(f"{folder} holds no {INDEX}; give the folder that `avpipe shard` wrote, or tars in it")
    metadata, schema = read_metadata(index), pq.read_schema(index)
    names = [samples.check_tar_name(shard["name"]) for shard in metadata["shards"]]
    members = samples.index_members(schema)
    if not members or not {"clip_id", *(f.name for f in EXTRA)} <= set(schema.names):
        raise AvpipeError(f"{index} lacks columns of an index; run `avpipe shard` again")
    table = pq.read_table(index, columns=[name for name in schema.names if name != "sha256"])
    if wanted is not None:
        if unknown := sorted(wanted - set(names)):
            raise AvpipeError(f"{folder / unknown[0]} is not among the {len(names)} shards of {index}")
        table = table.filter(pc.is_in(table["shard"], pa.array(sorted(wanted))))
    shards = Shards(
        folder=folder,
        metadata=metadata,
        clip_ids=[check_clip_id(clip_id, str(index)) for clip_id in table["clip_id"].to_pylist()],
        labels=_shared(table["label"].to_pylist()),
        boxes=Boxes(table["boxes"]),
        shard_names=names,
        shard_of=_numbers(table["shard"], names, index),
        offset={name: table[f"{name}.offset"].to_numpy() for name in members},
        size={name: table[f"{name}.size"].to_numpy() for name in members},
    )
    _check_sizes(shards)
    return shards


def _shared(texts: list[str | None]) -> list[str | None]:
    """The same texts, equal ones in memory once."""
    one_of = {text: text for text in texts}
    return [one_of[text] for text in texts]


def _numbers(column: pa.ChunkedArray, names: list[str], index: Path) -> np.ndarray:
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


def _check_sizes(shards: Shards) -> None:
    """Every used tar is there and reaches as far as its samples do; else a sentence now instead of a crash later."""
    if min(int(array.min()) for by_member in (shards.offset, shards.size) for array in by_member.values()) < 0:
        raise AvpipeError(f"{shards.folder / INDEX} names negative offsets; it is not avpipe's")
    end = np.max([shards.offset[name] + shards.size[name] for name in shards.offset], axis=0)
    for number in np.unique(shards.shard_of):
        path = shards.folder / shards.shard_names[number]
        if not path.exists():
            raise AvpipeError(f"{path} is missing; copy it again, or run `avpipe shard` again")
        needed, actual = int(end[shards.shard_of == number].max()), path.stat().st_size
        if actual < needed:
            raise AvpipeError(f"{path} has {actual} bytes where its samples need {needed}; copy or make it again")
