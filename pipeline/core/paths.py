"""Where everything is below `avpipe --root DIR`, and checks that keep commands out of each other's folders."""

from dataclasses import dataclass
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import check_clip_id


@dataclass(frozen=True)
class Root:
    """The folder of one corpus; every stage reads and writes only below it."""

    path: Path

    @property
    def lists(self) -> Path:
        """Official lists, as fetched."""
        return self.path / "lists"

    @property
    def manifest(self) -> Path:
        """clips.parquet, boxes.parquet, splits.parquet."""
        return self.path / "manifest"

    @property
    def clips(self) -> Path:
        """Downloaded clips, `<clip_id>.mp4`."""
        return self.path / "clips"

    @property
    def cache(self) -> Path:
        """Extracted samples, one folder per extraction settings."""
        return self.path / "cache"

    @property
    def shards(self) -> Path:
        """WebDataset shards, one folder per split."""
        return self.path / "shards"

    @property
    def ledger(self) -> Path:
        """What happened to each clip, one folder per stage."""
        return self.path / "ledger"

    @property
    def runs(self) -> Path:
        """Trained models and their evaluations, one folder per run."""
        return self.path / "runs"

    @property
    def remote(self) -> Path:
        """Local copies of remote shards, one folder per address and plan; may be removed at any time."""
        return self.path / "remote"

    def clip_file(self, clip_id: str) -> Path:
        """Path of a downloaded clip; raises AvpipeError for an invalid id."""
        return self.clips / f"{check_clip_id(clip_id)}.mp4"


def is_within(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or inside it, through any links and mounts; neither has to exist yet."""
    path, folder = path.resolve(), folder.resolve()
    if path.is_relative_to(folder):
        return True
    if not folder.exists():
        return False
    return any(place.exists() and place.samefile(folder) for place in (path, *path.parents))


def check_apart(target: Path, source: Path, what: str) -> None:
    """Raise AvpipeError if `target`, written to, overlaps `source`, read from; `what` describes the source."""
    if is_within(target, source) or is_within(source, target):
        raise AvpipeError(f"{target} is {what} ({source}), or one is inside the other; name another folder")


def check_outside(target: Path, root: Root) -> None:
    """Raise AvpipeError if `target` is a root in use or inside a folder that its stages keep."""
    kept = (root.lists, root.manifest, root.clips, root.cache, root.shards, root.ledger, root.runs, root.remote)
    is_root = is_within(target, root.path) and is_within(root.path, target)
    if any(is_within(target, folder) for folder in kept) or (is_root and root.manifest.exists()):
        raise AvpipeError(f"{target} belongs to the root {root.path}, whose files must stay; name another folder")
