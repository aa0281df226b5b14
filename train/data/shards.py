"""Random access to the samples of shards by their index, memory-mapped."""

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
# Samples that are read to infer shape and type of a feature that avpipe does not know.
PROBED_SAMPLES = 9


class DamagedError(AvpipeError):
    """A member of a sample that cannot be decoded."""

    def __init__(self, message: str, clip_id: str, member: str):
        super().__init__(message)
        self.clip_id, self.member = clip_id, member


class Boxes(Sequence):
    """The boxes of each sample, as a list of dicts built on access; the Arrow column takes less memory."""

    def __init__(self, column: pa.ChunkedArray):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> list[dict]:
        return self._column[int(index)].as_py()


class TarStore(Protocol):
    """A reader of tars that are not in a local folder."""

    def kept(self, name: str) -> memoryview | None:
        """Return the bytes of a tar that is cached locally, or None."""

    def view(self, name: str, member: str, span_of: Callable[[str], tuple[int, int]]) -> memoryview:
        """Return a member of a sample of any other tar; `span_of` maps the sample's members to (first byte, end)."""


@dataclass
class Shards:
    """The samples of one split, indexed from 0 in the order of the index file. Thread-safe."""

    folder: Path | str
    """The folder of the tars, or the address that `store` reads."""
    metadata: dict
    """Metadata of the index: split, listed, listed_sha256, extract settings with feature digests, plan."""
    clip_ids: list[str]
    labels: list[str | None]
    boxes: Sequence[list[dict]]
    """Usable boxes of each sample: annotator, xmin, ymin, xmax, ymax as fractions of the full frame."""
    shard_names: list[str]
    shard_of: np.ndarray
    """(N,) index into `shard_names` of each sample."""
    offset: dict[str, np.ndarray]
    """Member name to (N,) byte offsets in the shard."""
    size: dict[str, np.ndarray]
    """Member name to (N,) sizes in bytes."""
    store: TarStore | None = None
    """Reader for a remote address."""
    _layouts: dict[str, tuple[tuple[int, ...], np.dtype]] = field(default_factory=dict, repr=False)
    """Name to (shape, type) of features that avpipe does not know."""
    _maps: dict[int, memoryview] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}  # memory maps cannot be pickled; each process opens its own

    @property
    def split(self) -> str:
        """The name of the split."""
        return self.metadata["split"]

    def view(self, index: int, member: str) -> memoryview:
        """Return a member of a sample, memory-mapped if local. Raises AvpipeError if the shards do not have it."""
        if member not in self.offset:
            raise AvpipeError(f"{self.folder} holds no {member}; it has: {', '.join(self.offset)}")
        shard = int(self.shard_of[index])
        tar = self._mapped_tar(shard)
        if tar is None:
            return self.store.view(self.shard_names[shard], member, partial(self._span, index))
        start, end = self._span(index, member)
        return tar[start:end]

    def _mapped_tar(self, shard: int) -> memoryview | None:
        """Return a tar, memory-mapped, or None if it is not (yet) local."""
        if shard not in self._maps:
            name = self.shard_names[shard]
            found = mapped(Path(self.folder) / name) if self.store is None else self.store.kept(name)
            if found is None:
                return None
            self._maps[shard] = found
        return self._maps[shard]

    def _span(self, index: int, member: str) -> tuple[int, int]:
        """Return (first byte, end) of a member in its tar."""
        start = int(self.offset[member][index])
        return start, start + int(self.size[member][index])

    def read(self, index: int, member: str) -> bytes:
        """Return the bytes of a member of a sample. Raises AvpipeError if the shards do not have it."""
        return bytes(self.view(index, member))

    def array(self, index: int, member: str) -> np.ndarray:
        """Return the array of a .npy member without a copy, read-only.

        Raises AvpipeError if the shards do not have it, ValueError if it is not a numeric array.
        """
        data = self.view(index, member)
        length = 10 + int.from_bytes(data[8:10], "little")
        shape, transposed, dtype = _npy_header(bytes(data[:length]))
        return np.frombuffer(data, dtype, math.prod(shape), length).reshape(shape, order="F" if transposed else "C")

    def pixels(self, index: int) -> np.ndarray:
        """Return the frame of a sample, uint8 (H, W, 3) RGB. Raises DamagedError naming shard and clip."""
        try:
            return decode_frame(self.view(index, FRAME))
        except OSError as error:
            raise self.damaged(index, FRAME, error) from None

    def frame(self, index: int) -> Image.Image:
        """Return the frame of a sample as an RGB image. Raises DamagedError naming shard and clip."""
        return Image.fromarray(self.pixels(index))

    def feature(self, index: int, name: str) -> np.ndarray:
        """Return a feature of a sample, (1, F, T) in its stored type, read-only. Raises DamagedError naming the clip.

        Features of avpipe are float16 of a known shape; others must match most of the first samples of the shards.
        """
        member = feature_member(name)
        try:
            feature = self.array(index, member)
            _check_feature(feature, *self._layout(name))
        except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
            raise self.damaged(index, member, error) from None
        return feature[None]

    def _layout(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Return the (shape, type) that all samples of a feature must have in order to be stacked."""
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
        """Return the error for a member that cannot be decoded, naming shard and clip."""
        shard, clip_id = self.shard_names[self.shard_of[index]], self.clip_ids[index]
        return DamagedError(
            f"{self.folder}/{shard}: {member} of {clip_id} cannot be read ({error}); run `avpipe verify {self.folder}`",
            clip_id,
            member,
        )


def _check_feature(feature: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError for an array of another shape or type or with values that are not finite."""
    if feature.shape != shape:
        raise ValueError(f"its shape is {feature.shape}, not {shape}")
    if feature.dtype != dtype or dtype not in FEATURE_TYPES:
        known = "float16 or float32" if dtype not in FEATURE_TYPES else dtype
        raise ValueError(f"its type is {feature.dtype}, not {known}")
    if not (_finite16(feature) if dtype == np.float16 else np.isfinite(feature).all()):
        raise ValueError("it holds values that are not finite")


def _finite16(feature: np.ndarray) -> bool:
    """Return np.isfinite(feature).all() for float16, ten times as fast, from the largest bits of each sign."""
    return feature.view(np.int16).max() < _INF16 and feature.view(np.uint16).max() < _MINUS_INF16


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, Fortran order and type of a .npy header; cached, as parsing is slow and headers repeat."""
    file = io.BytesIO(header)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("it is not version 1.0 of the format")
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy passes the header to Python's parser, which can raise many types
        raise ValueError(f"its .npy header is invalid: {error}") from None
    if dtype.hasobject:
        raise ValueError("it is not a numeric array")
    return shape, transposed, dtype


def read_index(index_path: Path, folder: Path | str, wanted: list[str] | None, store: TarStore | None = None) -> Shards:
    """Return the samples listed in an index file, all or those of the `wanted` tars, without opening the tars.

    `folder` is that of the tars; error messages name it. Raises AvpipeError if the file is not an index or lacks a
    wanted tar.
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
    """Memory-map a file, read-only. Raises OSError."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _interned(strings: list[str | None]) -> list[str | None]:
    """Return the same strings, with equal ones sharing memory."""
    one_of = {text: text for text in strings}
    return [one_of[text] for text in strings]


def _shard_indices(column: pa.ChunkedArray, names: list[str], source: str) -> np.ndarray:
    """Return the int32 index in `names` of each string of a column. Raises AvpipeError for an unknown string."""
    found = pc.index_in(column, pa.array(names, pa.string()))
    if found.null_count:
        unknown = column.filter(pc.is_null(found))[0].as_py()
        raise AvpipeError(f"{source} has samples in {unknown!r}, which it does not describe")
    return found.to_numpy()


def check_ends(shards: Shards, size_of: Callable[[str], int | None]) -> None:
    """Raise AvpipeError if a tar is missing or too short for its samples, which would crash on reading later.

    `size_of` maps the name of a tar to its size in bytes, or None if there is no such tar.
    """
    end = np.max([shards.offset[name] + shards.size[name] for name in shards.offset], axis=0)
    for shard in np.unique(shards.shard_of):
        path, actual = f"{shards.folder}/{shards.shard_names[shard]}", size_of(shards.shard_names[shard])
        if actual is None:
            raise AvpipeError(f"{path} is missing; copy it again, or run `avpipe shard` again")
        needed = int(end[shards.shard_of == shard].max())
        if actual < needed:
            raise AvpipeError(
                f"{path} has {actual} bytes, but its samples need {needed}; copy it again, or run `avpipe shard` again"
            )
