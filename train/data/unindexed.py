"""Open WebDataset tars that have no index, ours or others', as shards, by reading their headers once.

The members of a sample share a key: their name up to the first dot. Names and contents are untrusted: a key must be a
clip id, members are never written to disk, and meta.json is validated field by field.
"""

import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from avpipe.pipeline.archives.tar import GZIP_MAGIC, members
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import SPLIT_NAME, check_clip_id, ids_sha256
from avpipe.pipeline.core.samples import AUDIO, FRAME, MAX_META_BYTES, META, feature_member
from avpipe.pipeline.features.settings import ExtractSettings, digest
from avpipe.pipeline.features.specs import SPECS
from avpipe.pipeline.shards.index import BOXES_TYPE, INDEX
from avpipe.train.core.distributed import is_first
from avpipe.train.data.shards import Boxes, Shards, check_ends

log = logging.getLogger(__name__)

# Other common names of the frame, also a JPEG.
FRAME_NAMES = ("jpg", "jpeg")
ARRAY_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.npy", re.ASCII)
DEFAULT_SPLIT = "plain"


@dataclass(kw_only=True, slots=True)
class _Sample:
    """What the headers state about a sample."""

    clip_id: str
    tar: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Member name to (offset, size), in bytes."""
    label: str | None = None
    boxes: list[dict] = field(default_factory=list)


def index_tars(folder: Path, wanted: list[str] | None) -> Shards:
    """Open the tars of a folder without an index: all, sorted by name, or the `wanted` ones.

    A sample consists of the members that training can read (frame.jpg or jpg, audio.flac, meta.json, *.npy). Samples
    that lack a member that most others have are left out, and their number is logged. Label and boxes come from
    meta.json, if present. Raises AvpipeError, naming the tar, for one that is missing, compressed, truncated or damaged
    or has a member that is not named `<clip id>.<member>`.
    """
    names = sorted(path.name for path in folder.glob("*.tar")) if wanted is None else list(dict.fromkeys(wanted))
    if not names:
        raise AvpipeError(f"{folder} holds no {INDEX}; give the folder that `avpipe shard` wrote, or tars in it")
    if is_first():
        log.info("%s holds no %s: reading the headers of %s tars", folder, INDEX, f"{len(names):,}")
    found: dict[str, _Sample] = {}
    for tar_index, name in enumerate(names):
        _read_headers(folder / name, tar_index, found)
    common = _common_members(found)
    if FRAME not in common:
        raise AvpipeError(f"{folder}: the samples of its tars hold no {FRAME}, but {', '.join(common) or 'nothing'}")
    kept = [sample for sample in found.values() if sample.spans.keys() >= set(common)]
    shards = _shards(folder, names, list(found), kept, common)
    check_ends(shards, lambda name: (folder / name).stat().st_size)
    shards.metadata["extract"]["features"] = _features(shards)
    if len(kept) < len(found) and is_first():
        log.warning("%s: %s", folder, _left_out(found, common))
    return shards


def _read_headers(path: Path, tar_index: int, found: dict[str, _Sample]) -> None:
    """Add the samples of a tar to `found`; `tar_index` is the tar's index."""
    for tar, header in _members(path):
        name = header.name.removeprefix("./")
        clip_id, _, member = name.partition(".")
        check_clip_id(clip_id, f"{path}: member {header.name[:100]!r}")
        sample = found.setdefault(clip_id, _Sample(clip_id=clip_id, tar=tar_index))
        member = FRAME if member in FRAME_NAMES else member
        if member not in (FRAME, AUDIO, META) and not ARRAY_NAME.fullmatch(member):
            continue
        if not header.isreg() or header.issparse() or header.size < 0:
            raise AvpipeError(f"{path}: member {name} is not a regular file; remove it from the tar")
        if sample.tar != tar_index or member in sample.spans:
            raise AvpipeError(f"{path}: {member} of {clip_id} occurs twice, in this tar or another; remove one of them")
        sample.spans[member] = header.offset_data, header.size
        if member == META:
            sample.label, sample.boxes = _label_and_boxes(path, tar, header)


def _members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield (open tar, header) of each member except folders; contents are skipped by seeking."""
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
    except OSError as error:
        raise AvpipeError(f"{path} cannot be opened: {error.strerror}; copy it again") from None
    if compressed:
        raise AvpipeError(f"{path} is compressed, which rules out random access to samples; decompress it")
    for _, tar, header in members(path):
        if not header.isdir():
            yield tar, header


def _label_and_boxes(path: Path, tar: tarfile.TarFile, header: tarfile.TarInfo) -> tuple[str | None, list[dict]]:
    """Return (label, boxes) of a meta.json; (None, []) if it has none."""
    try:
        if header.size > MAX_META_BYTES:
            raise ValueError(f"it has {header.size:,} bytes")
        meta = json.loads(tar.extractfile(header).read())
        label, boxes = meta.get("label"), meta.get("boxes") or []
        column = pa.array([boxes], BOXES_TYPE).flatten()
        if column.null_count or any(corner.null_count for corner in column.flatten()):
            raise ValueError("a box lacks a corner or its annotator")
        if not isinstance(label, str | None):
            raise ValueError("its label is not a string")
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, tarfile.TarError) as error:
        raise AvpipeError(f"{path}: {header.name} cannot be used ({error}); correct it or leave it out") from None
    return label, column.to_pylist()


def _common_members(found: dict[str, _Sample]) -> list[str]:
    """Return, sorted, the most frequent set of members, so that one odd sample does not make all others incomplete."""
    sets = Counter(frozenset(sample.spans) for sample in found.values())
    return sorted(sets.most_common(1)[0][0]) if sets else []


def _shards(folder: Path, names: list[str], listed: list[str], kept: list[_Sample], common: list[str]) -> Shards:
    """Build Shards from the `kept` samples; `listed` are the ids of all samples, including those left out."""
    tars = [{"name": name, "bytes": (folder / name).stat().st_size} for name in names]
    metadata = {
        "split": folder.resolve().name if SPLIT_NAME.fullmatch(folder.resolve().name) else DEFAULT_SPLIT,
        "listed": len(listed),
        "listed_sha256": ids_sha256(listed),
        "extract": {"clip_s": ExtractSettings().clip_s, "features": {}},
        "plan": digest({"shards": tars, "members": common}),
        "shards": tars,
    }
    return Shards(
        folder=folder,
        metadata=metadata,
        clip_ids=[sample.clip_id for sample in kept],
        labels=[sample.label for sample in kept],
        boxes=Boxes(pa.chunked_array([[sample.boxes for sample in kept]], BOXES_TYPE)),
        shard_names=names,
        shard_of=np.array([sample.tar for sample in kept], np.int32),
        offset={name: np.array([sample.spans[name][0] for sample in kept]) for name in common},
        size={name: np.array([sample.spans[name][1] for sample in kept]) for name in common},
    )


def _features(shards: Shards) -> dict[str, str]:
    """Return digests of the features whose name avpipe knows and whose shape matches in the first sample."""
    digests = {}
    for name, spec in SPECS.items():
        member = feature_member(name)
        if member not in shards.offset:
            continue
        try:
            shape = shards.array(0, member).shape
        except ValueError as error:
            path = f"{shards.folder}/{shards.shard_names[shards.shard_of[0]]}"
            raise AvpipeError(
                f"{path}: {member} of {shards.clip_ids[0]} is not an array ({error}); correct it"
            ) from None
        if shape == spec.shape:
            digests[name] = spec.digest
    return digests


def _left_out(found: dict[str, _Sample], common: list[str]) -> str:
    incomplete = [sample for sample in found.values() if not sample.spans.keys() >= set(common)]
    example = incomplete[0].clip_id, next(name for name in common if name not in incomplete[0].spans)
    return (
        f"{len(incomplete):,} of {len(found):,} samples are left out, as they lack what most have, "
        f"e.g. {example[0]} its {example[1]}"
    )
