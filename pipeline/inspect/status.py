"""Progress of every split in every stage, from the ledgers and the indexes of the shards."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Group
from rich.table import Table
from rich.text import Text

from avpipe.pipeline.core.ledger import PERMANENT, Ledger, last_of_each_clip
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.shards.index import INDEX, read_clip_ids

HOUR_US = 3_600_000_000
EXTRACT = "extract-"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """One split in one stage."""

    split: str | None
    """None: every clip of the manifest."""
    stage: str
    """`download`, `extract <cache>` or `shard`."""
    listed: int
    done: int
    failed: int
    reasons: dict[str, int]
    """Failures by reason, the most frequent first."""
    winnable: int
    """Failed clips that a retry may recover."""
    per_hour: float | None
    """Clips of this stage, of any split, in the last hour in which it worked; None if unknown."""
    last_at: str | None
    """When the stage last finished a clip, ISO 8601 in UTC."""

    @property
    def left(self) -> int:
        """Number of clips not tried yet."""
        return self.listed - self.done - self.failed

    @property
    def hours_left(self) -> float | None:
        """Hours left at that rate; None if it is unknown or nothing is left."""
        return self.left / self.per_hour if self.per_hour and self.left else None

    def record(self) -> dict:
        """Return all fields as plain values."""
        return asdict(self) | {"left": self.left, "hours_left": self.hours_left}


class _Tried:
    """One stage's ledger in columns: how it ended for each clip of the manifest."""

    def __init__(self, root: Root, stage: str, clips: pa.Array):
        rows = Ledger(root.ledger, stage).rows(["clip_id", "reason", "finished_at"])
        self.per_hour, self.last_at = _rate(rows["finished_at"])
        last = rows.take(last_of_each_clip(rows))
        reasons = last["reason"].combine_chunks().dictionary_encode()
        self._reasons = reasons.dictionary.to_pylist()
        # 0 not tried, 1 done, from 2 on the reasons
        codes = np.concatenate([[0], reasons.indices.fill_null(-1).to_numpy() + 2])
        self._codes = codes[pc.index_in(clips, value_set=last["clip_id"]).fill_null(-1).to_numpy() + 1]

    def status(self, split: str | None, stage: str, listed: np.ndarray) -> StageStatus:
        """`listed`: positions of the split's clips among those of the manifest."""
        counts = np.bincount(self._codes[listed], minlength=len(self._reasons) + 2)
        by_count = sorted(zip(counts[2:].tolist(), self._reasons, strict=True), key=lambda pair: (-pair[0], pair[1]))
        reasons = {reason: count for count, reason in by_count if count}
        return StageStatus(
            split=split,
            stage=stage,
            listed=len(listed),
            done=int(counts[1]),
            failed=sum(reasons.values()),
            reasons=reasons,
            winnable=sum(count for reason, count in reasons.items() if reason not in PERMANENT),
            per_hour=self.per_hour,
            last_at=self.last_at,
        )


def _rate(finished_at: pa.ChunkedArray) -> tuple[float | None, str | None]:
    """Return (outcomes per hour in the last hour of activity, time of the last one)."""
    if not len(finished_at):
        return None, None
    times_us = finished_at.cast(pa.int64()).to_numpy()
    last = int(times_us.max())
    recent = times_us[times_us > last - HOUR_US]
    span = last - int(recent.min())
    text = datetime.fromtimestamp(last / 1e6, UTC).isoformat(timespec="seconds")
    # The first one marks the beginning; what came before belongs to another hour.
    return ((len(recent) - 1) * HOUR_US / span if span else None), text


def status(root: Root, split: str | None = None) -> list[StageStatus]:
    """Return every stage of one split, or of the entire manifest followed by each split that was begun.

    Raises AvpipeError if there is no manifest or no such split, or for an unreadable index.
    """
    manifest = Manifest.open(root.manifest)
    names = list(manifest.split_sizes()) if split is None else [split]
    manifest.split_facts(names[0])
    clips = manifest.table("clips", ["clip_id"])["clip_id"].combine_chunks()
    stages = {"download": _Tried(root, "download", clips)}
    caches = sorted(path.name for path in root.ledger.glob(f"{EXTRACT}*") if path.is_dir())
    stages |= {f"extract {name.removeprefix(EXTRACT)}": _Tried(root, name, clips) for name in caches}
    everything, listed_in = np.arange(len(clips)), _listed(root, names, clips)
    found = [] if split is not None else [tried.status(None, stage, everything) for stage, tried in stages.items()]
    for name, listed in listed_in.items():
        rows = [tried.status(name, stage, listed) for stage, tried in stages.items()]
        rows.append(_sharded(root, name, clips.take(listed)))
        if split is not None or any(row.done + row.failed for row in rows):
            found += rows
    return found


def _listed(root: Root, splits: list[str], clips: pa.Array) -> dict[str, np.ndarray]:
    """By split: positions among `clips` of all that it needs, each once."""
    columns = ["split", "clip_id", "audio_clip_id"]
    rows = Manifest(root.manifest).table("splits", columns)
    split = pc.index_in(rows["split"], value_set=pa.array(splits)).to_numpy()
    shown, heard = (pc.index_in(rows[name], value_set=clips).fill_null(-1).to_numpy() for name in columns[1:])
    listed = {}
    for number, name in enumerate(splits):
        needed = np.zeros(len(clips) + 1, bool)
        needed[shown[split == number]] = needed[heard[split == number]] = True
        listed[name] = np.flatnonzero(needed[:-1])  # the last position collects unknown ids
    return listed


def _sharded(root: Root, split: str, listed: pa.Array) -> StageStatus:
    index, done = root.shards / split / INDEX, 0
    if index.exists():
        packed = read_clip_ids(index)
        done = pc.sum(pc.is_in(listed, value_set=packed)).as_py() or 0
    nothing = {"failed": 0, "reasons": {}, "winnable": 0, "per_hour": None, "last_at": None}
    return StageStatus(split=split, stage="shard", listed=len(listed), done=done, **nothing)


def status_table(rows: Sequence[StageStatus]) -> Group:
    """Format the rows, at most 100 columns wide: a table, and below it why clips failed."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("split", overflow="fold")
    table.add_column("stage", overflow="fold")
    for heading in ("done", "failed", "left", "clips/hour", "time left"):
        table.add_column(heading, justify="right", no_wrap=True)
    before = object()
    for row in rows:
        name = row.split or "(every clip)"
        rate = f"{row.per_hour:,.0f}" if row.per_hour else ""
        numbers = (f"{row.done:,}", f"{row.failed:,}", f"{row.left:,}", rate, _duration(row.hours_left))
        table.add_row(name if row.split != before else "", row.stage, *numbers)
        before = row.split
    return Group(table, *(Text(line) for line in _failure_lines(rows)))


def _failure_lines(rows: Sequence[StageStatus]) -> list[str]:
    """Format the failure histogram of the first row: of all clips, unless one split was requested."""
    lines = []
    for row in rows:
        if row.split != rows[0].split or not row.failed:
            continue
        lines += ["", f"{row.stage}: {row.failed:,} failed, a retry may recover {row.winnable:,} (--retry)"]
        most = max(row.reasons.values())
        for reason, count in row.reasons.items():
            chance = "lost for good" if reason in PERMANENT else "worth a retry"
            lines.append(f"  {reason:13} {count:>9,}  {chance}  {'█' * max(1, round(40 * count / most))}")
    return lines


def _duration(hours: float | None) -> str:
    if hours is None:
        return ""
    minutes = round(hours * 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 48 else f"{hours / 24:,.1f} days"
