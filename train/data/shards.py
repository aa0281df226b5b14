"""Index to samples: shards opened by their index, memory-mapped, any sample in any order."""

import io
import math
import mmap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import check_clip_id
from avpipe.pipeline.core.samples import FRAME, feature_member, index_members
from avpipe.pipeline.features.specs import SPECS
from avpipe.pipeline.shards.index import INDEX, check_unchanged, read_metadata, read_rows
from avpipe.train.data.frames import decode_frame

FEATURE_TYPES = (np.dtype(np.float16), np.dtype(np.float32))
_INF16, _MINUS_INF16 = 0x7C00, 0xFC00
# Samples whose features tell what those are like that avpipe does not know.
PROBED_SAMPLES = 9


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

    def __getitem__(self, index: int) -> list[dict]:
        return self._column[int(index)].as_py()


class TarStore(Protocol):
    """Reads the tars of shards that lie elsewhere than in a folder."""

    def kept(self, name: str) -> memoryview | None:
        """The bytes of a tar that is on this machine, else None."""

    def view(self, name: str, member: str, span_of: Callable[[str], tuple[int, int]]) -> memoryview:
        """A member of a sample of any other tar; `place` gives first byte and end of each of the sample's members."""


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
    store: TarStore | None = None
    """Reads what is at an address."""
    _layouts: dict[str, tuple[tuple[int, ...], np.dtype]] = field(default_factory=dict, repr=False)
    """Shape and type of features that are not avpipe's, by their names."""
    _maps: dict[int, memoryview] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}  # maps do not travel to workers; each opens its own

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.metadata["split"]

    def view(self, index: int, member: str) -> memoryview:
        """One member of one sample, not yet read from the disk. Raises AvpipeError if the shards do not have it."""
        if member not in self.offset:
            raise AvpipeError(f"{self.folder} holds no {member}; it has: {', '.join(self.offset)}")
        shard = int(self.shard_of[index])
        tar = self._mapped_tar(shard)
        if tar is None:
            return self.store.view(self.shard_names[shard], member, partial(self._span, index))
        start, end = self._span(index, member)
        return tar[start:end]

    def _mapped_tar(self, shard: int) -> memoryview | None:
        """A tar, mapped; None for one that is not on this machine (yet)."""
        if shard not in self._maps:
            name = self.shard_names[shard]
            found = mapped(Path(self.folder) / name) if self.store is None else self.store.kept(name)
            if found is None:
                return None
            self._maps[shard] = found
        return self._maps[shard]

    def _span(self, index: int, member: str) -> tuple[int, int]:
        """(first byte, byte behind the last) of a member in its tar."""
        start = int(self.offset[member][index])
        return start, start + int(self.size[member][index])

    def read(self, index: int, member: str) -> bytes:
        """Bytes of one member of one sample. Raises AvpipeError if the shards do not have it."""
        return bytes(self.view(index, member))

    def array(self, index: int, member: str) -> np.ndarray:
        """The array of a .npy member, in the shard's own memory: read-only.

        Raises AvpipeError if the shards do not have it, ValueError for what is no array of numbers.
        """
        data = self.view(index, member)
        length = 10 + int.from_bytes(data[8:10], "little")
        shape, transposed, dtype = _npy_header(bytes(data[:length]))
        return np.frombuffer(data, dtype, math.prod(shape), length).reshape(shape, order="F" if transposed else "C")

    def pixels(self, index: int) -> np.ndarray:
        """The frame of a sample, uint8 (H, W, 3) RGB. Raises DamagedError naming shard and clip."""
        try:
            return decode_frame(self.view(index, FRAME))
        except OSError as error:
            raise self.damaged(index, FRAME, error) from None

    def frame(self, index: int) -> Image.Image:
        """The frame of a sample as an RGB image. Raises DamagedError naming shard and clip."""
        return Image.fromarray(self.pixels(index))

    def feature(self, index: int, name: str) -> np.ndarray:
        """A feature of a sample, (1, F, T) in the type it is stored in, read-only. Raises DamagedError naming the clip.

        Features that avpipe makes are float16 of one shape; others must be like most of the shards' first samples.
        """
        member = feature_member(name)
        try:
            feature = self.array(index, member)
            _check_feature(feature, *self._layout(name))
        except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
            raise self.damaged(index, member, error) from None
        return feature[None]

    def _layout(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """(shape, type) that all samples of a feature must have, else they make no batch."""
        if name in SPECS:
            return SPECS[name].shape, np.dtype(np.float16)
        if name not in self._layouts:
            layouts = Counter()
            for index in range(min(PROBED_SAMPLES, len(self))):
                try:
                    feature = self.array(index, feature_member(name))
                except (ArithmeticError, MemoryError, TypeError, ValueError):
                    continue
                layouts[feature.shape, feature.dtype] += 1
            self._layouts[name] = layouts.most_common(1)[0][0] if layouts else ((0,), np.dtype(np.float32))
        return self._layouts[name]

    def damaged(self, index: int, member: str, error: Exception) -> DamagedError:
        """What to raise for a member that cannot be decoded: a sentence that names shard and clip."""
        shard, clip_id = self.shard_names[self.shard_of[index]], self.clip_ids[index]
        return DamagedError(
            f"{self.folder}/{shard}: {member} of {clip_id} cannot be read ({error}); run `avpipe verify {self.folder}`",
            clip_id,
            member,
        )


def _check_feature(feature: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError for an array that is not of this shape and type, or holds what is no finite number."""
    if feature.shape != shape:
        raise ValueError(f"its shape is {feature.shape}, not {shape}")
    if feature.dtype != dtype or dtype not in FEATURE_TYPES:
        known = "float16 or float32" if dtype not in FEATURE_TYPES else dtype
        raise ValueError(f"its type is {feature.dtype}, not {known}")
    if not (_finite16(feature) if dtype == np.float16 else np.isfinite(feature).all()):
        raise ValueError("it holds values that are no finite numbers")


def _finite16(feature: np.ndarray) -> bool:
    """As np.isfinite(…).all() of float16, in a tenth of the time: the largest bits of either sign tell."""
    return feature.view(np.int16).max() < _INF16 and feature.view(np.uint16).max() < _MINUS_INF16


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


def read_index(index_path: Path, folder: Path | str, wanted: list[str] | None, store: TarStore | None = None) -> Shards:
    """The samples that an index names, all or those of the `wanted` tars; the tars themselves are not looked at.

    `folder` is where they lie, and what errors name. Raises AvpipeError for what is no index, or lacks a wanted tar.
    """
    source = f"{folder}/{INDEX}"
    metadata = read_metadata(index_path, source)
    names = [shard["name"] for shard in metadata["shards"]]
    table = read_rows(index_path, source, without=("sha256",))
    check_unchanged(metadata, table, source)
    members = index_members(table.schema)
    if wanted is not None:
        if unknown := sorted(set(wanted) - set(names)):
            raise AvpipeError(f"{folder}/{unknown[0]} is not among the {len(names)} shards of {source}")
        table = table.filter(pc.is_in(table["shard"], pa.array(wanted)))
    return Shards(
        folder=folder,
        metadata=metadata,
        clip_ids=[check_clip_id(clip_id, source) for clip_id in table["clip_id"].to_pylist()],
        labels=_interned(table["label"].to_pylist()),
        boxes=Boxes(table["boxes"]),
        shard_names=names,
        shard_of=_shard_indices(table["shard"], names, source),
        offset={name: table[f"{name}.offset"].to_numpy() for name in members},
        size={name: table[f"{name}.size"].to_numpy() for name in members},
        store=store,
    )


def mapped(path: Path) -> memoryview:
    """A file as memory that is read from the disk when it is looked at. Raises OSError."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _interned(strings: list[str | None]) -> list[str | None]:
    """The same texts, equal ones in memory once."""
    one_of = {text: text for text in strings}
    return [one_of[text] for text in strings]


def _shard_indices(column: pa.ChunkedArray, names: list[str], source: str) -> np.ndarray:
    """int32 places in `names` of a column's texts."""
    found = pc.index_in(column, pa.array(names, pa.string()))
    if found.null_count:
        unknown = column.filter(pc.is_null(found))[0].as_py()
        raise AvpipeError(f"{source} has samples in {unknown!r}, which it does not describe")
    return found.to_numpy()


def check_ends(shards: Shards, size_of: Callable[[str], int | None]) -> None:
    """Every used tar is there and reaches as far as its samples do; else a sentence now instead of a crash later.

    `size_of` gives the bytes of the tar of a name, or None where there is none.
    """
    end = np.max([shards.offset[name] + shards.size[name] for name in shards.offset], axis=0)
    for shard in np.unique(shards.shard_of):
        path, actual = f"{shards.folder}/{shards.shard_names[shard]}", size_of(shards.shard_names[shard])
        if actual is None:
            raise AvpipeError(f"{path} is missing; copy it again, or run `avpipe shard` again")
        needed = int(end[shards.shard_of == shard].max())
        if actual < needed:
            raise AvpipeError(f"{path} has {actual} bytes where its samples need {needed}; copy or make it again")
