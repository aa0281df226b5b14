"""Whether the disk can hold what is to come: an estimate before the start, a reserve while it runs."""

import shutil
from pathlib import Path

from pipeline.errors import AvpipeError

# Estimate for a clip where too few lie in the folder to tell: ten seconds of 360p, encoded anew, take 1 to 2 MB.
CLIP_BYTES = 2_000_000
# So many clips tell their mean size well enough.
TELLING_CLIPS = 20
# Left free for the ledger, a whole video in the making, and everybody else on this disk.
RESERVE_BYTES = 1_000_000_000


def existing(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def free_bytes(folder: Path) -> int:
    """Bytes free on the disk where `folder` is or will be."""
    return shutil.disk_usage(existing(folder)).free


def clip_bytes(sizes: list[int]) -> int:
    """Bytes that one more clip will take, judged by the sizes of those fetched so far."""
    return sum(sizes) // len(sizes) if len(sizes) >= TELLING_CLIPS else CLIP_BYTES


def check_estimate(folder: Path, needed: int, free: int) -> None:
    """Raise AvpipeError unless `needed` bytes fit into `free` bytes of `folder` beside the reserve."""
    if needed + RESERVE_BYTES > free:
        raise AvpipeError(
            f"{folder} has {gigabytes(free)} free, but about {gigabytes(needed)} and a reserve of "
            f"{gigabytes(RESERVE_BYTES)} are needed; make room, or take another --root or a smaller --split"
        )


def check_reserve(folder: Path) -> None:
    """Raise AvpipeError when less than the reserve is free."""
    free = free_bytes(folder)
    if free < RESERVE_BYTES:
        raise AvpipeError(
            f"stopped (disk): {folder} has only {gigabytes(free)} free, less than the reserve of "
            f"{gigabytes(RESERVE_BYTES)}; make room, then run the same command again"
        )


def gigabytes(count: int) -> str:
    """Bytes for people, as `1.5 GB`."""
    return f"{count / 1e9:,.1f} GB"
