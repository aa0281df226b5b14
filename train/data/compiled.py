"""Loops compiled by numba, which takes seconds and is therefore cached on disk where that is safe."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numba
from numba import njit

# The cache takes a few megabytes; numba does not catch the error of a full disk.
MIN_FREE_BYTES = 50_000_000


def compiled(function: Callable) -> Callable:
    """Compile a function to machine code that releases the interpreter's lock while it runs."""
    folder, before = cache_folder(), numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or before)
    try:
        return njit(nogil=True, cache=folder is not None, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before


def cache_folder() -> Path | None:
    """Return the cache folder, `$NUMBA_CACHE_DIR` or a subfolder of the user's cache, or None if none is usable.

    numba caches pickles, which can run code when they are loaded, so the folder must be accessible to this user only.
    Containers without a writable home folder have none.
    """
    try:
        configured = os.environ.get("NUMBA_CACHE_DIR")
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(configured or cache_home) / ("" if configured else "avpipe/numba")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, free = folder.lstat(), shutil.disk_usage(folder).free
    except (OSError, RuntimeError):  # RuntimeError if there is no home folder
        return None
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if private and free > MIN_FREE_BYTES and os.access(folder, os.W_OK) else None
