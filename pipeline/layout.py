"""Where everything lies below `avpipe --root DIR`; ids that become paths are checked, files appear by rename."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AvpipeError, named

# YouTube id and start second, or the number of a Flickr photo. Ids come from strangers' lists and become file names:
# no dot, no slash, no white space can pass.
CLIP_ID = re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}|[0-9]{1,20}", re.ASCII)
SPLIT_NAME = re.compile(r"[a-z0-9_]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Root:
    """The folder that holds one corpus; every stage reads and writes below it and nowhere else."""

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
        """Copies of shards that lie at an address, one folder per address and plan; may be removed at any time."""
        return self.path / "remote"

    def clip_file(self, clip_id: str) -> Path:
        """Path of a downloaded clip; raises AvpipeError for an id that is none."""
        return self.clips / f"{check_clip_id(clip_id)}.mp4"


def check_clip_id(text: str, where: str = "") -> str:
    """Return `text` if it is a clip id, else raise AvpipeError, with `where` (file and line) before the sentence."""
    if CLIP_ID.fullmatch(text):
        return text
    prefix = f"{where}: " if where else ""
    raise AvpipeError(
        f"{prefix}{text!r} is not a clip id (11 characters of a YouTube id, '_', six digits; or a Flickr number); "
        "correct or remove it"
    )


def youtube_id(clip_id: str) -> str | None:
    """The video that a clip is cut from; None for a Flickr clip, which is a video of its own."""
    return None if clip_id.isdigit() else clip_id[:-7]


def video_of(clip_id: str) -> str:
    """What clips of one source share: the video's id, of a Flickr clip its own."""
    return youtube_id(clip_id) or clip_id


def check_split_name(text: str) -> str:
    """Return `text` if it may name a split, and so a folder; else raise AvpipeError."""
    if SPLIT_NAME.fullmatch(text):
        return text
    raise AvpipeError(f"{text!r} is not the name of a split; `avpipe manifest show` lists the names")


def is_within(path: Path, folder: Path) -> bool:
    """Whether `path` is `folder` or lies in it, whatever links and mounts lead there; either may not exist yet."""
    path, folder = path.resolve(), folder.resolve()
    if path.is_relative_to(folder):
        return True
    if not folder.exists():
        return False
    return any(place.exists() and place.samefile(folder) for place in (path, *path.parents))


def check_apart(target: Path, source: Path, what: str) -> None:
    """Raise AvpipeError if what is written to `target` could meet what is read in `source`: `what`, for people."""
    if is_within(target, source) or is_within(source, target):
        raise AvpipeError(f"{target} is {what} ({source}), or one lies in the other; name another place")


def check_outside(target: Path, root: Root) -> None:
    """Raise AvpipeError for a place that is a root in use, or lies in a folder that its stages keep."""
    kept = (root.lists, root.manifest, root.clips, root.cache, root.shards, root.ledger, root.runs, root.remote)
    is_root = is_within(target, root.path) and is_within(root.path, target)
    if any(is_within(target, folder) for folder in kept) or (is_root and root.manifest.exists()):
        raise AvpipeError(f"{target} belongs to the root {root.path}, whose files must stay; name another folder")


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes that name in one step, else it vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(temporary, shown=path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # a name must never point at bytes that a power cut can still take
            temporary.replace(path)
    finally:
        with suppress(OSError):  # of a disk that was unplugged; the error that led here is the one to hear of
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that killed processes left in `folder`; call it only under the stage's lock."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
