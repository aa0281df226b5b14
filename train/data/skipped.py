"""A record of the damaged samples that a run left out."""

import csv
import logging
from pathlib import Path

from avpipe.train.data.shards import DamagedError

log = logging.getLogger(__name__)


class Skipped:
    """Damaged samples that a run leaves out, each reported once, in the log and in a CSV file."""

    def __init__(self, path: Path):
        self._path = path
        self._recorded: set[tuple[str, str]] = set()
        if path.exists():  # from this run before it was interrupted
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                self._recorded = {(row[0], row[1]) for row in list(csv.reader(file))[1:] if len(row) == 3}

    def __len__(self) -> int:
        return len(self._recorded)

    def __str__(self) -> str:
        """Return the suffix of the progress line."""
        return f" · {len(self)} damaged samples left out" if self._recorded else ""

    def __call__(self, error: DamagedError) -> None:
        """Record a damaged sample, unless it has been recorded before."""
        if (error.clip_id, error.member) in self._recorded:
            return
        with open(self._path, "a", newline="") as file:
            header = [] if self._recorded else [("clip_id", "member", "reason")]
            csv.writer(file).writerows([*header, (error.clip_id, error.member, error)])
        self._recorded.add((error.clip_id, error.member))
        log.warning("left out: %s", error)
