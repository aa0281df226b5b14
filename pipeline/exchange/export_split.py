"""What an export reads, a split's cached samples in list order, and the folder that it writes atomically."""

import csv
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError, named
from avpipe.pipeline.core.ledger import Ledger
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.manifest.tables import Manifest

# Rows read at a time; bounds the memory and the number of open cache parts.
ROWS_AT_A_TIME = 256
MISSING = "missing.csv"


@dataclass(frozen=True)
class ExportSplit:
    """One split of a root, the input of all writers."""

    root: Root
    split: str
    settings: ExtractSettings

    @property
    def role(self) -> str:
        """`train` or `test`."""
        return Manifest.open(self.root.manifest).split_facts(self.split)["role"]

    @cached_property
    def listed(self) -> list[str]:
        """Ids of all clips that the split needs, in list order."""
        return Manifest.open(self.root.manifest).split_ids(self.split)

    @cached_property
    def rows(self) -> pa.Table:
        """Cache rows of the extracted clips, in list order. Raises AvpipeError if there are none."""
        table = Cache(self.root.cache / self.settings.name).table
        place = {clip_id: row for row, clip_id in enumerate(table["clip_id"].to_pylist())}
        order = [place[clip_id] for clip_id in self.listed if clip_id in place]
        if not order:
            raise AvpipeError(f"no clip of {self.split} is extracted; run `avpipe extract --split {self.split}` first")
        return table.take(order)

    @cached_property
    def exported(self) -> list[str]:
        """Ids of the clips in the cache, in list order."""
        return self.rows["clip_id"].to_pylist()

    def samples(self) -> Iterator[tuple[dict, dict[str, bytes]]]:
        """Yield (cache row, {member: bytes}) of every clip in `exported`; at most 256 samples are in memory."""
        cache = Cache(self.root.cache / self.settings.name)
        members = samples.index_members(self.rows.schema)
        for start in range(0, len(self.rows), ROWS_AT_A_TIME):
            some = self.rows.slice(start, ROWS_AT_A_TIME).to_pylist()
            yield from zip(some, cache.read(some, members), strict=True)

    def write_missing(self, folder: Path) -> int:
        """Write `missing.csv`: every listed clip that is not exported, with the stage that failed and the reason.

        Stage and reason are empty for a clip that was never tried. Returns the number of clips.
        """
        there = set(self.exported)
        missing = [clip_id for clip_id in self.listed if clip_id not in there]
        stages = [f"extract-{self.settings.name}", "download"]
        tried = {stage: Ledger(self.root.ledger, stage).latest() for stage in stages} if missing else {}
        with open(folder / MISSING, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["clip_id", "stage", "reason"])
            for clip_id in missing:
                failures = ((s, o.reason) for s in tried if (o := tried[s].get(clip_id)) and not o.done)
                stage, reason = next(failures, ("", ""))
                writer.writerow([clip_id, stage.partition("-")[0], reason])
        return len(missing)


@contextmanager
def atomic_dir(out: Path) -> Iterator[Path]:
    """Yield a folder next to `out`; on success it is renamed to `out`, otherwise it is deleted.

    Raises AvpipeError if `out` exists and is not an empty folder, or while another process writes it.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir())):
        raise AvpipeError(f"{out} already exists and is not an empty folder; remove it or name another")
    work = out.with_name(f".{out.name}.partial")
    with stage_lock(work, f"an export to {out}"):
        for path in work.iterdir():  # left by a killed export
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ".lock":
                path.unlink()
        try:
            with named(work, shown=out):
                yield work
                (work / ".lock").unlink()
                os.sync()  # a final name must never point at bytes that a power cut can lose; one call for all files
                work.replace(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
