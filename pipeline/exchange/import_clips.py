"""Imports existing videos: a folder or archives become `clips/` and its ledger."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ledger import Outcome
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.download.archive_source import ArchiveSource
from avpipe.pipeline.download.source import open_local
from avpipe.pipeline.download.stage import Plan, download
from avpipe.pipeline.manifest.tables import Manifest, clip_of

NAMED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipImport:
    """What an import of clips has to do and what it skips."""

    seen: int
    """Number of files or members: to_do, finished, not_listed and skipped together."""
    to_do: int
    finished: int
    """Clips already in the folder."""
    not_listed: list[str]
    """Ids in the source that are not in the manifest; empty without a manifest."""
    skipped: list[str]
    """Files or members that cannot be clips, each with the reason."""
    damage: list[str]
    """A message for each archive that is damaged or truncated."""

    def __len__(self) -> int:
        return self.to_do


def import_clips(
    root: Root,
    path: Path,
    on_outcome: Callable[[list[Outcome]], None] = lambda outcomes: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
) -> ClipImport:
    """Put the clips of `path` into `<root>/clips` as a download would; existing ones are not copied again.

    If the root has a manifest, only its clips are imported. Raises AvpipeError if there is nothing to import.
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
