"""What happened to each clip in each stage: Parquet rows with a closed vocabulary of reasons."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.layout import remove_leftovers
from pipeline.tables import read_facts, read_parquet, write_parquet

REASONS = (
    "removed", "private", "geo_blocked", "age_gate", "bot_check", "rate_limited", "setup", "network", "no_audio",
    "no_video", "too_short", "corrupt", "timeout", "decoder_crash", "disk", "unknown",
)  # fmt: skip
# No retry can win these; for all other reasons another day, address or set-up may.
PERMANENT = frozenset({"removed", "private", "no_audio", "no_video", "too_short", "corrupt"})
TOOL_VERSION = version("avpipe")
# Files a reader has to open; above it the ledger is rewritten as one.
COMPACT_ABOVE = 64
# Ends the name of a compacted file, whose metadata name the files that it replaces: a reader passes those by.
COMPACTED, REPLACES = "-compacted", b"replaces"
WHAT, MEND = "a file of the ledger", "remove it: its clips are looked at again"

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
        ("source", pa.string()),
    ]
)
# Columns that files of older versions lack.
LATER = frozenset({"source"})


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
    source: str | None = None
    """Where a clip was asked for; None for other stages and in rows of older versions."""
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
        rows = self.last_rows(list(Outcome.__dataclass_fields__)).to_pylist()
        return {row["clip_id"]: Outcome(**row) for row in rows}

    def latest_values(self, *columns: str) -> dict[str, tuple]:
        """These columns of the last outcome of every clip, by clip id; far quicker than `latest`."""
        table = self.last_rows(["clip_id", *columns])
        clip_ids, *values = (table[name].to_pylist() for name in ("clip_id", *columns))
        return dict(zip(clip_ids, zip(*values, strict=True), strict=True))

    def last_rows(self, columns: list[str]) -> pa.Table:
        """These columns of the last outcome of every clip, in no order; of two of one moment the later written counts.

        No other column is read, and no row becomes an object: 200,000 clips take a tenth of a second.
        """
        table = self.rows(list(dict.fromkeys(["clip_id", "finished_at", *columns])))
        return table.select(columns).take(last_of_each_clip(table))

    def rows(self, columns: list[str]) -> pa.Table:
        """These columns of every outcome, oldest files first."""
        tables = self._tables(columns)
        return pa.concat_tables(tables.values()) if tables else SCHEMA.empty_table().select(columns)

    def compact(self) -> None:
        """Rewrite many small files as one; call it only while holding the stage's lock."""
        remove_leftovers(self.folder)
        for name in self._replaced(self._files()):  # by a compaction that was killed
            (self.folder / name).unlink(missing_ok=True)
        tables = self._tables(SCHEMA.names)
        if len(tables) > COMPACT_ABOVE:
            replaced = json.dumps([file.name for file in tables])
            whole = pa.concat_tables(tables.values()).replace_schema_metadata({REPLACES: replaced})
            self._publish(whole, COMPACTED)
            for file in tables:
                file.unlink()

    def _tables(self, columns: list[str]) -> dict[Path, pa.Table]:
        """The files that count, read. While others write and compact: no row is missing, and none there twice."""
        tables: dict[Path, pa.Table] = {}
        while True:
            files = self._files()
            # One by one: of files this small, the reader of a whole folder makes half as much again.
            with suppress(FileNotFoundError):  # it has just been compacted; look again
                for file in files:
                    if file not in tables:
                        tables[file] = self._read(file, columns)
                replaced = self._replaced(files)
                if files == self._files():
                    return {file: tables[file] for file in files if file.name not in replaced}

    def _read(self, file: Path, columns: list[str]) -> pa.Table:
        return read_parquet(file, pa.schema([SCHEMA.field(name) for name in columns]), WHAT, MEND, later=LATER)

    def _replaced(self, files: list[Path]) -> set[str]:
        """Names of the files whose rows stand in a compacted one."""
        compacted = [read_facts(file, WHAT, MEND)[1] for file in files if file.stem.endswith(COMPACTED)]
        return {name for facts in compacted for name in json.loads(facts.get(REPLACES, b"[]"))}

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _row(self, outcome: Outcome) -> dict:
        status = "done" if outcome.done else "failed"
        return asdict(outcome) | {
            "stage": self.stage,
            "status": status,
            "permanent": outcome.permanent,
            "tool_version": TOOL_VERSION,
        }

    def _publish(self, table: pa.Table, ending: str = "") -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        write_parquet(table, self.folder / f"{stamp}-{os.getpid()}{ending}.parquet")


def last_of_each_clip(rows: pa.Table) -> np.ndarray:
    """Positions in `Ledger.rows` (with clip_id and finished_at) of the outcomes that count, one a clip."""
    codes = rows["clip_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(rows["finished_at"].cast(pa.int64()).to_numpy(), kind="stable")
    last = np.zeros(codes.max(initial=-1) + 1, np.int64)
    last[codes[order]] = order  # of several assignments to one place the last one stays
    return last


def count_reasons(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Failures by reason, the most frequent first."""
    return dict(Counter(o.reason for o in outcomes if not o.done).most_common())
