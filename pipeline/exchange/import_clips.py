"""Clips that somebody else has fetched: a folder or archives of videos become `clips/` and its ledger."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.download import Plan, download
from pipeline.errors import AvpipeError
from pipeline.layout import Root
from pipeline.ledger import Outcome
from pipeline.manifest import Manifest, clip_of
from pipeline.sources.archives import ArchiveSource
from pipeline.sources.source import open_local

NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipImport:
    """What an import of clips has to do, and what it passes by."""

    seen: int
    """Files or members: to_do, finished, not_listed and skipped together."""
    to_do: int
    finished: int
    """Clips that are there already."""
    not_listed: list[str]
    """Ids in the source that the manifest does not have; empty where there is no manifest."""
    skipped: list[str]
    """Files or members that cannot be clips, each with the reason."""
    damage: list[str]
    """A sentence for each archive that is damaged or cut off."""

    def __len__(self) -> int:
        return self.to_do


def import_clips(
    root: Root,
    path: Path,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> ClipImport:
    """Put the clips of `path` into `<root>/clips` as a download does; what is there is not copied again.

    Where the root has a manifest, only its clips are taken. Raises AvpipeError when there is nothing to take.
    """
    source = open_local(path)
    listed = set(Manifest.open(root.manifest).ids(None)) if (root.manifest / "splits.parquet").exists() else None
    hooks = {"on_outcome": on_outcome, "on_plan": on_plan}
    if isinstance(source, ArchiveSource):
        clips = None if listed is None else [clip_of(clip_id) for clip_id in sorted(listed)]
        plan = download(root, clips, source, **hooks)
        ids = list(source.seen)
    else:
        ids = source.ids()
        clips = [clip_of(clip_id) for clip_id in ids if listed is None or clip_id in listed]
        if not clips:
            first = ", ".join(ids[:NAMED])
            raise AvpipeError(f"none of the {len(ids):,} clips in {path} is in the manifest (first: {first})")
        plan = download(root, clips, source, **hooks)
    not_listed = [] if listed is None else [clip_id for clip_id in ids if clip_id not in listed]
    return ClipImport(
        seen=len(ids) + len(source.skipped),
        to_do=len(plan),
        finished=len(ids) - len(not_listed) - len(plan),
        not_listed=not_listed,
        skipped=source.skipped,
        damage=source.damage if isinstance(source, ArchiveSource) else [],
    )
