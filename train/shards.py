"""Index to samples: shards opened by their index, memory-mapped, any sample in any order."""

import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from braceexpand import UnbalancedBracesError, braceexpand

from pipeline import samples
from pipeline.errors import AvpipeError
from pipeline.layout import check_clip_id
from pipeline.shard import EXTRA, INDEX, read_metadata


@dataclass
class Shards:
    """The samples of one split, numbered from 0 in the order of their index."""

    folder: Path
    metadata: dict
    """Of the index: split, listed, listed_sha256, extract settings with feature digests, plan."""
    clip_ids: list[str]
    labels: list[str | None]
    boxes: list[list[dict]]
    """Usable boxes of each sample: annotator, xmin, ymin, xmax, ymax as fractions of the full frame."""
    sha256: list[str]
    shard_names: list[str]
    shard_of: np.ndarray
    """(N,) number of the shard of each sample."""
    offset: dict[str, np.ndarray]
    """Member to (N,) byte offsets in the shard."""
    size: dict[str, np.ndarray]
    """Member to (N,) sizes in bytes."""
    _maps: dict[int, mmap.mmap] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_maps": {}}  # maps do not travel to workers; each opens its own

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.metadata["split"]

    def read(self, number: int, member: str) -> bytes:
        """Bytes of one member of one sample. Raises AvpipeError if the shards do not have it."""
        if member not in self.offset:
            raise AvpipeError(f"{self.folder} holds no {member}; it has: {', '.join(self.offset)}")
        shard = int(self.shard_of[number])
        if shard not in self._maps:
            with open(self.folder / self.shard_names[shard], "rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = int(self.offset[member][number])
        return self._maps[shard][start : start + int(self.size[member][number])]

    def damaged(self, number: int, member: str, error: Exception) -> AvpipeError:
        """The sentence for a member that cannot be decoded."""
        shard = self.shard_names[self.shard_of[number]]
        return AvpipeError(
            f"{self.folder / shard}: {member} of {self.clip_ids[number]} cannot be read ({error}); "
            f"run `avpipe verify {self.folder}`"
        )


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
    metadata, table = read_metadata(index), pq.read_table(index)
    names = [samples.check_tar_name(shard["name"]) for shard in metadata["shards"]]
    if wanted is not None:
        if unknown := sorted(wanted - set(names)):
            raise AvpipeError(f"{folder / unknown[0]} is not among the {len(names)} shards of {index}")
        table = table.filter([name in wanted for name in table["shard"].to_pylist()])
    members = samples.index_members(table.schema)
    if not members or not {"clip_id", "sha256", *(f.name for f in EXTRA)} <= set(table.column_names):
        raise AvpipeError(f"{index} lacks columns of an index; run `avpipe shard` again")
    if strangers := set(table["shard"].to_pylist()) - set(names):
        raise AvpipeError(f"{index} has samples in {sorted(strangers)[0]!r}, which it does not describe")
    number_of = {name: number for number, name in enumerate(names)}
    shards = Shards(
        folder=folder,
        metadata=metadata,
        clip_ids=[check_clip_id(clip_id, str(index)) for clip_id in table["clip_id"].to_pylist()],
        labels=table["label"].to_pylist(),
        boxes=table["boxes"].to_pylist(),
        sha256=table["sha256"].to_pylist(),
        shard_names=names,
        shard_of=np.array([number_of[name] for name in table["shard"].to_pylist()], np.int32),
        offset={name: table[f"{name}.offset"].to_numpy() for name in members},
        size={name: table[f"{name}.size"].to_numpy() for name in members},
    )
    _check_sizes(shards)
    return shards


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
