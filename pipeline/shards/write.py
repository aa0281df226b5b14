"""Stage 3: writes the samples of one split in a seeded order as WebDataset tars with one index.

The bytes depend only on the content.

Shards are written to a hidden folder named after the plan and moved to `shards/<split>` when complete, so a reader
never sees half of a split, nor tars of one plan with the index of another.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write, file_sha256, remove_leftovers
from avpipe.pipeline.core.ids import check_split_name, ids_sha256
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.parquet import read_facts, write_parquet
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings, digest
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.shards.index import (
    EXTRA,
    FIX,
    INDEX,
    METADATA_KEY,
    WHAT,
    check_unchanged,
    read_metadata,
    read_rows,
    write_index,
)
from avpipe.pipeline.work.base import Executor, chunks, extend_deadline
from avpipe.pipeline.work.run import FailedItem, run_parts

# Without it, `datasets.load_dataset` takes the index for the data and ignores the tars.
CARD_NAME = "README.md"
CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: {role}
    path: "*.tar"
---
The split {split}, as `avpipe shard` wrote it: WebDataset tars, and index.parquet with the place of every sample.
"""
# A shard of 200 MB may have to cross a slow network.
SHARD_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard to write: its path, and its cache rows (with label and boxes) in order."""

    path: Path
    cache: Path
    rows: list[dict] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSummary:
    """The result of sharding a split."""

    split: str
    folder: Path
    listed: int
    """Number of clips in the split's list."""
    samples: int
    """Number of clips in the shards."""
    shards: int
    bytes: int
    written: int
    """Number of shards written by this run; the others were already there."""


def order_key(seed: int, clip_id: str) -> str:
    """Return a sort key for a shuffled order that depends only on the seed and the id.

    Clips added later fall in between without reordering the others; clips of one video are spread out.
    """
    return hashlib.sha256(f"{seed}:{clip_id}".encode()).hexdigest()


def shard(
    root: Root,
    split: str,
    extract_settings: ExtractSettings,
    settings: ShardSettings,
    workers: int | Executor,
    on_plan: Callable[[int], None] = lambda samples: None,
    on_shard: Callable[[int], None] = lambda samples: None,
) -> ShardSummary:
    """Write `shards/<split>`: tars `<split>-000000.tar`, … and `index.parquet`.

    Raises AvpipeError when the split is unknown, nothing of it is extracted, or another process shards it.
    """
    check_split_name(split)
    manifest = Manifest.open(root.manifest)
    listed, negatives = manifest.split_ids(split), manifest.negatives(split)
    rows = _plan_rows(root, split, listed, extract_settings, settings.seed)
    metadata = {
        "format": 1,
        "split": split,
        "listed": len(listed),
        "listed_sha256": ids_sha256(listed),
        "extract": extract_settings.record(),
        "shard": asdict(settings),
        **({"negatives": negatives} if negatives else {}),
    }
    plan_name = digest(metadata | {"samples": [(r["clip_id"], r["sha256"], r["label"], r["boxes"]) for r in rows]})
    final, work = root.shards / split, root.shards / f".{split}-{plan_name}"
    card = CARD.format(split=split, role=manifest.split_facts(split)["role"])
    with stage_lock(root.shards / ".locks" / split, f"the shards of {split}"):
        for other in root.shards.glob(f".{split}-????????"):
            if other != work:  # left by an unfinished run over another set of samples
                shutil.rmtree(other)
        if final.exists():  # left by a kill after the swap
            shutil.rmtree(_replaced(final), ignore_errors=True)
        written = 0
        if not _is_published(final, plan_name):
            if not (work / INDEX).exists():
                jobs = _plan_jobs(work, rows, root.cache / extract_settings.name, split, settings)
                written = _write_all(jobs, workers, on_plan, on_shard)
                _write_index(work, metadata | {"plan": plan_name})
            _write_card(work, card)
            _swap(work, final)
        elif not (final / CARD_NAME).exists():  # older versions wrote none
            _write_card(final, card)
    return _summary(final, split, len(listed), written)


def _plan_rows(root: Root, split: str, listed: list[str], extract_settings: ExtractSettings, seed: int) -> list[dict]:
    """Return the cache rows of the split's clips with label and usable boxes, in the seeded order."""
    manifest = Manifest.open(root.manifest)
    wanted = set(listed)
    cached = Cache(root.cache / extract_settings.name).table
    mask = pa.array([clip_id in wanted for clip_id in cached["clip_id"].to_pylist()], pa.bool_())
    rows = cached.filter(mask).to_pylist()
    if not rows:
        raise AvpipeError(f"no clip of {split} is extracted; run `avpipe extract --split {split}` first")
    labels, boxes = manifest.labels(wanted), manifest.usable_boxes(wanted)
    for row in rows:
        row["label"], row["boxes"] = labels[row["clip_id"]], boxes.get(row["clip_id"], [])
    return sorted(rows, key=lambda row: order_key(seed, row["clip_id"]))


def _is_published(final: Path, plan_name: str) -> bool:
    """Whether `final` holds this plan, with an intact index and all tars in full size.

    The contents of the tars are left to `verify`, which takes longer.
    """
    index = final / INDEX
    if not index.exists():
        return False
    try:
        metadata = read_metadata(index)
        check_unchanged(metadata, read_rows(index), index)
    except AvpipeError:
        return False  # damaged: write it again
    tars = {final / shard["name"]: shard["bytes"] for shard in metadata["shards"]}
    whole = all(tar.exists() and tar.stat().st_size == size for tar, size in tars.items())
    return whole and metadata["plan"] == plan_name


def _plan_jobs(work: Path, rows: list[dict], cache: Path, split: str, settings: ShardSettings) -> list[ShardJob]:
    work.mkdir(parents=True, exist_ok=True)
    remove_leftovers(work)
    return [
        ShardJob(path=work / f"{split}-{number:06d}.tar", cache=cache, rows=part)
        for number, part in enumerate(chunks(rows, settings.samples_per_shard))
    ]


def _write_all(jobs: list[ShardJob], workers: int | Executor, on_plan: Callable, on_shard: Callable) -> int:
    """Write the missing shards; return how many."""
    left = [job for job in jobs if not _fragment(job.path).exists()]
    on_plan(sum(len(job.rows) for job in left))
    for result in run_parts(write_shard, [[job] for job in left], workers):
        if isinstance(result, FailedItem):
            raise AvpipeError(f"{result.item.path.name} could not be written: {result.detail}; run the stage again")
        on_shard(result)
    return len(left)


def write_shard(jobs: list[ShardJob]) -> int:
    """Copy samples from the cache into one tar, then write its fragment of the index; runs in a worker."""
    (job,) = jobs
    extend_deadline(SHARD_S)
    members = samples.index_members(pa.schema([(name, pa.int64()) for name in job.rows[0]]))
    with atomic_write(job.path) as temporary:
        with samples.TarWriter(temporary) as writer:
            for row, sample in zip(job.rows, Cache(job.cache).read(job.rows, members), strict=True):
                facts = json.loads(sample[samples.META]) | {"label": row["label"], "boxes": row["boxes"]}
                index_row = writer.add(row["clip_id"], sample | {samples.META: samples.encode_json(facts)})
                index_row |= {"shard": job.path.name, "label": row["label"], "boxes": row["boxes"]}
        size, sha256 = temporary.stat().st_size, file_sha256(temporary)
    table = pa.Table.from_pylist(writer.rows, samples.index_schema(members, EXTRA))
    record = {"name": job.path.name, "samples": len(writer.rows), "bytes": size, "sha256": sha256}
    write_parquet(table.replace_schema_metadata({METADATA_KEY: json.dumps(record)}), _fragment(job.path))
    return len(writer.rows)


def _fragment(tar: Path) -> Path:
    return tar.with_suffix(".part.parquet")


def _write_index(work: Path, metadata: dict) -> None:
    """Join the fragments into `index.parquet`."""
    fragments = sorted(work.glob("*.part.parquet"))
    shards = [json.loads(read_facts(path, WHAT, FIX)[1][METADATA_KEY]) for path in fragments]
    whole = pa.concat_tables([read_rows(path) for path in fragments])
    write_index(work / INDEX, whole, metadata | {"shards": shards})


def _write_card(folder: Path, text: str) -> None:
    with atomic_write(folder / CARD_NAME) as temporary:
        temporary.write_text(text)


def _swap(work: Path, final: Path) -> None:
    """Replace an older folder with the finished one. After a kill at any line the next run completes it."""
    for fragment in work.glob("*.part.parquet"):
        fragment.unlink()
    old = _replaced(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    work.replace(final)
    shutil.rmtree(old, ignore_errors=True)


def _replaced(final: Path) -> Path:
    return final.with_name(f".{final.name}.old.tmp")


def _summary(folder: Path, split: str, listed: int, written: int) -> ShardSummary:
    shards = read_metadata(folder / INDEX)["shards"]
    return ShardSummary(
        split=split,
        folder=folder,
        listed=listed,
        samples=sum(s["samples"] for s in shards),
        shards=len(shards),
        bytes=sum(s["bytes"] for s in shards),
        written=written,
    )
