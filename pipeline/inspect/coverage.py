"""How much of a split is downloaded, extracted and sharded, and the distribution of its labels."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from avpipe.pipeline.core.ledger import Ledger
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.shards.index import INDEX, read_clip_ids


def coverage(root: Root, clip_ids: list[str]) -> dict:
    """Count how many of these clips each stage has done.

    Returns plain values for JSON: clips (distinct), downloaded, failed (downloads by reason, the most frequent first),
    extracted (by cache folder), sharded (by shard folder; a clip may be in the shards of several splits).
    Raises AvpipeError for an index that cannot be read.
    """
    wanted = set(clip_ids)
    listed = pa.array(sorted(wanted), pa.string())
    last = Ledger(root.ledger, "download").last_rows(["clip_id", "reason"])
    reasons = last.filter(pc.is_in(last["clip_id"], value_set=listed))["reason"]
    failed = Counter(reasons.drop_null().to_pylist())
    return {
        "clips": len(wanted),
        "downloaded": reasons.null_count,
        "failed": dict(failed.most_common()),
        "extracted": {folder.name: _count(Cache(folder).indexes(), listed) for folder in _folders(root.cache)},
        "sharded": {
            folder.name: _count([folder / INDEX], listed)
            for folder in _folders(root.shards)
            if (folder / INDEX).exists()
        },
    }


def _folders(parent: Path) -> list[Path]:
    """Return the folders in `parent` except hidden ones, which contain unfinished work and locks."""
    found = parent.iterdir() if parent.exists() else ()
    return sorted(path for path in found if path.is_dir() and not path.name.startswith("."))


def _count(indexes: list[Path], listed: pa.Array) -> int:
    """Count the distinct clips of `listed` in the indexes."""
    present = [read_clip_ids(path) for path in indexes]
    if not present:
        return 0
    indexed = pa.chunked_array([chunk for column in present for chunk in column.chunks], pa.string())
    return pc.sum(pc.is_in(listed, value_set=indexed)).as_py() or 0


def histogram(labels: Iterable[str | None]) -> list[tuple[str | None, int]]:
    """Return (label, count) pairs, the most frequent first, ties by name; last (None, count) if some have no label."""
    counts = Counter(labels)
    unlabelled = counts.pop(None, 0)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ordered + ([(None, unlabelled)] if unlabelled else [])
