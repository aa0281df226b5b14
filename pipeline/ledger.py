"""What happened to each clip in each stage: Parquet rows with a closed vocabulary of reasons."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.layout import published

REASONS = (
    "removed", "private", "geo_blocked", "age_gate", "bot_check", "rate_limited", "setup", "network", "no_audio",
    "no_video", "too_short", "corrupt", "timeout", "decoder_crash", "disk", "unknown",
)  # fmt: skip
# No retry can win these; for all other reasons another day, address or set-up may.
PERMANENT = frozenset({"removed", "private", "no_audio", "no_video", "too_short", "corrupt"})
TOOL_VERSION = version("avpipe")
# Files a reader has to open; above it the ledger is rewritten as one.
COMPACT_ABOVE = 64

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("stage", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("permanent", pa.bool_()),
        ("detail", pa.string()),
        ("attempts", pa.int32()),
        ("seconds", pa.float64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("tool_version", pa.string()),
    ]
)


@dataclass(kw_only=True, slots=True)
class Outcome:
    """One clip in one stage: done (`reason` None) or failed."""

    clip_id: str
    reason: str | None = None
    """None, or one of REASONS."""
    detail: str = ""
    """The cause in words, for people."""
    attempts: int = 1
    """How often this stage has tried the clip, this time included."""
    seconds: float = 0.0
    """Wall time spent on the clip."""
    bytes: int = 0
    """Size of what was made."""
    sha256: str = ""
    """Hash of what was made, in hexadecimal."""
    finished_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self):
        if self.reason is not None and self.reason not in REASONS:
            raise ValueError(f"{self.reason!r} is not among the ledger's reasons")

    @property
    def done(self) -> bool:
        """Whether the stage has made what it should make of this clip."""
        return self.reason is None

    @property
    def permanent(self) -> bool:
        """Whether a retry is pointless."""
        return self.reason in PERMANENT


class Ledger:
    """The ledger of one stage: a folder of Parquet files of which the last row of a clip counts."""

    def __init__(self, folder: Path, stage: str):
        """`folder` is `<root>/ledger`."""
        self.stage = stage
        self.folder = folder / stage

    def write(self, outcomes: Iterable[Outcome]) -> None:
        """Append outcomes as one new file; nothing if there are none."""
        rows = [self._row(outcome) for outcome in outcomes]
        if rows:
            self._publish(pa.Table.from_pylist(rows, SCHEMA))

    def latest(self) -> dict[str, Outcome]:
        """The last outcome of every clip that the stage has tried; {} where it has not run."""
        table = self._read()
        columns = list(Outcome.__dataclass_fields__)
        rows = table.select(columns).sort_by("finished_at").to_pylist()
        return {row["clip_id"]: Outcome(**row) for row in rows}

    def compact(self) -> None:
        """Rewrite many small files as one; call it only while holding the stage's lock."""
        files = self._files()
        if len(files) > COMPACT_ABOVE:
            self._publish(self._read())
            for file in files:
                file.unlink()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _read(self) -> pa.Table:
        tables = [pq.read_table(file, schema=SCHEMA) for file in self._files()]
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table()

    def _row(self, outcome: Outcome) -> dict:
        status = "done" if outcome.done else "failed"
        return asdict(outcome) | {
            "stage": self.stage,
            "status": status,
            "permanent": outcome.permanent,
            "tool_version": TOOL_VERSION,
        }

    def _publish(self, table: pa.Table) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        with published(self.folder / f"{stamp}-{os.getpid()}.parquet") as temporary:
            pq.write_table(table, temporary)


def count_reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Failures by reason, the most frequent first."""
    return dict(Counter(o.reason for o in outcomes if not o.done).most_common())
