"""Disk space: an estimate before a download starts, a reserve while it runs."""

import shutil
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError

# Size of a clip while too few are downloaded to estimate it: ten seconds of re-encoded 360p take 1 to 2 MB.
CLIP_BYTES = 2_000_000
# Enough clips to estimate the mean size.
TELLING_CLIPS = 20
# Left free for the ledger, a full video in progress, and other users of the disk.
RESERVE_BYTES = 1_000_000_000


def existing(folder: Path) -> Path:
    """Return `folder`, or its nearest existing parent."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of `folder`, which may not exist yet."""
    return shutil.disk_usage(existing(folder)).free


def clip_bytes(sizes: list[int]) -> int:
    """Estimate the bytes of one more clip from the sizes of those fetched so far."""
    return sum(sizes) // len(sizes) if len(sizes) >= TELLING_CLIPS else CLIP_BYTES


def check_estimate(folder: Path, needed: int, free: int) -> None:
    """Raise AvpipeError unless `needed` bytes and the reserve fit into the `free` bytes of `folder`."""
    if needed + RESERVE_BYTES > free:
        raise AvpipeError(
            f"{folder} has {gigabytes(free)} free, but about {gigabytes(needed)} and a reserve of "
            f"{gigabytes(RESERVE_BYTES)} are needed; free some space, or choose another --root or a smaller --split"
        )


def check_reserve(folder: Path) -> None:
    """Raise AvpipeError if less than the reserve is free."""
    free = free_bytes(folder)
    if free < RESERVE_BYTES:
        raise AvpipeError(
            f"stopped (disk): {folder} has only {gigabytes(free)} free, less than the reserve of "
            f"{gigabytes(RESERVE_BYTES)}; free some space, then rerun the command"
        )


def gigabytes(count: int) -> str:
    """Format bytes as `1.5 GB`."""
    return f"{count / 1e9:,.1f} GB"
