"""Stage 3: the samples of one split in a seeded order as WebDataset tars with one index; bytes depend on content alone.

Shards are written into a hidden folder named after the plan and moved to `shards/<split>` when all is complete, so a
reader never sees half of a split, nor tars of one plan beside the index of another.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from pipeline import samples
from pipeline.cache import Cache
from pipeline.catalogue import ids_sha256
from pipeline.errors import AvpipeError
from pipeline.executors import Executor, allow
from pipeline.index import (
    EXTRA,
    INDEX,
    MEND,
    METADATA_KEY,
    WHAT,
    check_unchanged,
    read_metadata,
    read_rows,
    write_index,
)
from pipeline.layout import Root, check_split_name, file_sha256, published, remove_leftovers
from pipeline.manifest import Manifest
from pipeline.parts import Lost, chunks, run_parts, stage_lock
from pipeline.settings import ExtractSettings, ShardSettings, digest
from pipeline.tables import read_facts, write_parquet

# Beside the shards: without it `datasets.load_dataset` takes the index for the data and the tars for nothing.
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
# A shard of 200 MB may have to go over a slow network.
SHARD_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardJob:
    """One shard: where it goes and the cache rows (with label and boxes) that it holds, in order."""

    path: Path
    cache: Path
    rows: list[dict] = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSummary:
    """What a split has become."""

    split: str
    folder: Path
    listed: int
    """Clips that the split's list names."""
    samples: int
    """Clips that were extracted and are in the shards."""
    shards: int
    bytes: int
    written: int
    """Shards that this run had to write; the others were finished before."""


def order_key(seed: int, clip_id: str) -> str:
    """Sorts clips into a shuffled order that depends on nothing but the seed and the id.

    Clips that arrive later fall in between without moving the others, and clips of one video lie apart.
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
            if other != work:  # an unfinished run over another set of samples: its shards can never be used
                shutil.rmtree(other)
        if final.exists():  # a kill after the swap left what it replaced
            shutil.rmtree(_replaced(final), ignore_errors=True)
        written = 0
        if not _is_published(final, plan_name):
            if not (work / INDEX).exists():
                jobs = _plan_jobs(work, rows, root.cache / extract_settings.name, split, settings)
                written = _write_all(jobs, workers, on_plan, on_shard)
                _write_index(work, metadata | {"plan": plan_name})
            _write_card(work, card)
            _swap(work, final)
        elif not (final / CARD_NAME).exists():  # an older version wrote none
            _write_card(final, card)
    return _summary(final, split, len(listed), written)


def _plan_rows(root: Root, split: str, listed: list[str], extract_settings: ExtractSettings, seed: int) -> list[dict]:
    """Cache rows of the split's clips with label and usable boxes, in the seeded order."""
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
    """Whether `final` holds this plan, its index as it was written and all its tars in full size.

    `verify` looks into the tars, too slow for here.
    """
    index = final / INDEX
    if not index.exists():
        return False
    try:
        metadata = read_metadata(index)
        check_unchanged(metadata, read_rows(index), index)
    except AvpipeError:
        return False  # damaged: it is written again
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
    """Write the shards that are not there yet; returns their number."""
    left = [job for job in jobs if not _fragment(job.path).exists()]
    on_plan(sum(len(job.rows) for job in left))
    for result in run_parts(write_shard, [[job] for job in left], workers):
        if isinstance(result, Lost):
            raise AvpipeError(f"{result.item.path.name} could not be written: {result.detail}; run the stage again")
        on_shard(result)
    return len(left)


def write_shard(jobs: list[ShardJob]) -> int:
    """Run in a worker: copy samples from the cache into one tar; its fragment of the index makes it count."""
    (job,) = jobs
    allow(SHARD_S)
    members = samples.index_members(pa.schema([(name, pa.int64()) for name in job.rows[0]]))
    with published(job.path) as temporary:
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
    shards = [json.loads(read_facts(path, WHAT, MEND)[1][METADATA_KEY]) for path in fragments]
    whole = pa.concat_tables([read_rows(path) for path in fragments])
    write_index(work / INDEX, whole, metadata | {"shards": shards})


def _write_card(folder: Path, text: str) -> None:
    with published(folder / CARD_NAME) as temporary:
        temporary.write_text(text)


def _swap(work: Path, final: Path) -> None:
    """Put the finished folder in the place of an older one. A kill at any line leaves what the next run completes."""
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
