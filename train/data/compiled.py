"""Loops that numba compiles, kept on the disk from run to run where that is safe: compiling them takes seconds."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numba
from numba import njit

# What is kept takes a few megabytes; numba lets an error of a full disk through.
MIN_FREE_BYTES = 50_000_000


def compiled(function: Callable) -> Callable:
    """The function in machine code, without the interpreter's lock while it runs."""
    folder, before = cache_folder(), numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder or before)
    try:
        return njit(nogil=True, cache=folder is not None, error_model="numpy")(function)
    finally:
        numba.config.CACHE_DIR = before


def cache_folder() -> Path | None:
    """Where machine code is kept, `$NUMBA_CACHE_DIR` or a folder of avpipe's in the user's cache; None: nowhere.

    numba keeps it as pickles, which run code when they are read: the folder must be of this user alone. Containers
    without a writable home have none.
    """
    try:
        configured = os.environ.get("NUMBA_CACHE_DIR")
        cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(configured or cache_home) / ("" if configured else "avpipe/numba")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, free = folder.lstat(), shutil.disk_usage(folder).free
    except (OSError, RuntimeError):  # the latter where nobody knows where home is
        return None
    private = status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if private and free > MIN_FREE_BYTES and os.access(folder, os.W_OK) else None
