"""Clips that somebody else has fetched: a folder or tar archives of mp4 files become `clips/` and its ledger."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.download import Plan, download
from pipeline.errors import AvpipeError
from pipeline.layout import Root
from pipeline.ledger import Outcome
from pipeline.manifest import Manifest, clip_of
from pipeline.sources.source import open_local

NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipImport:
    """What an import of clips has to do, and what it passes by."""

    to_do: int
    finished: int
    """Clips that are there already."""
    not_listed: list[str]
    """Ids in the source that the manifest does not have; empty where there is no manifest."""
    skipped: list[str]
    """Files or members that cannot be clips, each with the reason."""

    def __len__(self) -> int:
        return self.to_do


def import_clips(
    root: Root,
    path: Path,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> ClipImport:
    """Put the clips of `path` into `<root>/clips` as a download does; what is there is not copied again.

    Where the root has a manifest, only its clips are taken. Raises AvpipeError when there is nothing to take, and,
    after keeping what was complete, for an archive that is cut off.
    """
    source = open_local(path)
    ids, not_listed = source.ids(), []
    if (root.manifest / "splits.parquet").exists():
        listed = set(Manifest.open(root.manifest).ids(None))
        not_listed = [clip_id for clip_id in ids if clip_id not in listed]
        ids = [clip_id for clip_id in ids if clip_id in listed]
        if not ids:
            first = ", ".join(not_listed[:NAMED])
            raise AvpipeError(f"none of the {len(not_listed):,} clips in {path} is in the manifest (first: {first})")
    plan = download(root, [clip_of(clip_id) for clip_id in ids], source, on_outcome=on_outcome, on_plan=on_plan)
    return ClipImport(to_do=len(plan), finished=plan.finished, not_listed=not_listed, skipped=source.skipped)
