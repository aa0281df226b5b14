"""The resume rule of every stage: work is cut into parts, and a part is finished when its file has its name.

Parts run in worker processes. A worker that dies or hangs (decoders are native code) costs the part it held; that part
is halved until the guilty clip stands alone, and only this clip fails.
"""

import fcntl
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, TimeoutError, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from pipeline.errors import AvpipeError

# A worker that needs longer is stuck: reading a clip takes 0.05 to 1 s.
START_S, SECONDS_PER_ITEM = 60.0, 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """An item whose worker died (`decoder_crash`) or hung (`timeout`)."""

    item: Any
    reason: str
    detail: str


@contextmanager
def stage_lock(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` for one process; the kernel lets go of it however the process ends. Raises AvpipeError if held."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AvpipeError(f"{folder}: another process is doing {what} here; wait for it or stop it") from None
        yield


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def chunks(items: list, size: int) -> list[list]:
    """Cut a list into runs of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def run_parts(function: Callable, parts: list[list], workers: int) -> Iterator[Any]:
    """Yield `function(part)` for every part as it finishes, in any order, and a Lost for an item that cannot be done.

    `function` must be importable by name and publish what it makes by itself. AvpipeErrors that it raises end the run.
    """
    waiting = list(reversed(parts))
    # Never fork: decoders and NumPy hold threads and locks that a forked child would inherit half-way.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPool(max_workers=max(1, min(workers, len(parts))), context=context)
    try:
        running: dict[Future, list] = {}
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                part = waiting.pop()
                limit_s = START_S + SECONDS_PER_ITEM * len(part)
                running[pool.schedule(function, args=[part], timeout=limit_s)] = part
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(future)
                try:
                    yield future.result()
                except (ProcessExpired, TimeoutError) as error:
                    if len(part) > 1:
                        half = len(part) // 2
                        waiting += [part[half:], part[:half]]
                    else:
                        yield _lost(part[0], error)
    finally:
        pool.stop()
        pool.join()


def _lost(item: Any, error: Exception) -> Lost:
    if isinstance(error, TimeoutError):
        return Lost(item=item, reason="timeout", detail=f"no result within {START_S + SECONDS_PER_ITEM:.0f} s")
    return Lost(item=item, reason="decoder_crash", detail=f"the worker process died (exit code {error.exitcode})")
