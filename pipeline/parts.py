"""The resume rule of every stage: work is cut into parts, and a part is finished when its file has its name.

Parts run in worker processes. A worker that dies or hangs (decoders are native code, memory runs out) costs the part it
held; the item that it had in hand is tried once more, alone, and only this item fails.
"""

import errno
import fcntl
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from pipeline.errors import AvpipeError
from pipeline.executors import Executor, WorkerLostError
from pipeline.layout import remove_leftovers
from pipeline.local_processes import LocalProcesses

# An item that takes longer hangs: reading a clip takes 0.05 to 1 s. One that hangs costs this twice.
SECONDS_PER_ITEM = 20.0
LOOK_EVERY_S = 0.5
# What Lustre, NFS and FUSE say where `flock` is not to be had.
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL})


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """An item whose worker died (`decoder_crash`) or hung (`timeout`)."""

    item: Any
    reason: str
    detail: str


@contextmanager
def stage_lock(folder: Path, what: str, clean: bool = False) -> Iterator[None]:
    """Hold `folder` for one process; the kernel lets go of it however the process ends. Raises AvpipeError if held.

    With `clean` the temporary files that killed processes left in the folder are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            lock_file(file, wait=False)
        except BlockingIOError:
            raise AvpipeError(f"{folder}: another process is doing {what} here; wait for it or stop it") from None
        if clean:
            remove_leftovers(folder)
        yield


def lock_file(file: IO, wait: bool) -> None:
    """Lock an open file until it is closed. Raises BlockingIOError without `wait`, while another process has it.

    On a file system that knows no locks it only warns, once a process.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_no_locks()


@cache
def _warn_of_no_locks() -> None:
    print(
        "avpipe: this file system knows no locks (flock): take care that no two commands work in one folder",
        file=sys.stderr,
        flush=True,
    )


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def chunks(items: Sequence, size: int) -> list[Sequence]:
    """Cut a list into runs of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def run_parts(function: Callable, parts: list[list], workers: int | Executor) -> Iterator[Any]:
    """Yield `function(part)` for every part as it finishes, in any order, and a Lost for an item that cannot be done.

    `workers` is a number of processes of this machine, or another place to run. `function` must be importable by name,
    go through its part once, and publish what it makes by itself. Exceptions that it raises end the run.
    """
    executor = LocalProcesses(max(1, min(workers, len(parts)))) if isinstance(workers, int) else workers
    waiting, running = deque((part, 0) for part in parts), {}
    with executor:
        free = list(range(2 * executor.at_once))
        while waiting or running:
            while waiting and free:
                place, (part, losses) = free.pop(), waiting.popleft()
                running[executor.submit(place, function, part, SECONDS_PER_ITEM)] = place, part, losses
            done = wait(running, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED).done
            signs = executor.signs()
            yield from _collect(executor, done, signs, running, waiting, free)
            for place, *_ in running.values():
                if place in signs and signs[place][1] < 0:
                    executor.kill(place)


def _collect(
    executor: Executor,
    done: set[Future],
    signs: dict[int, tuple[int, float]],
    running: dict[Future, tuple[int, list, int]],
    waiting: deque[tuple[list, int]],
    free: list[int],
) -> Iterator[Any]:
    """Results of the parts that are done; those whose worker was lost come first in what is waiting, taken apart.

    With each part goes how many workers were lost with its one item in hand: the second one settles it.
    """
    for future in done:
        place, part, losses = running.pop(future)
        free.append(place)
        try:
            result = executor.result(future)
        except WorkerLostError as error:
            item, seconds_left = signs.get(place, (-1, 0.0))
            if len(part) > 1 or losses == 0:
                waiting.extendleft(_apart(part, item))
                continue
            hung = seconds_left < 0
            detail = "no sign of life in the time that it may take" if hung else str(error)
            result = Lost(item=part[0], reason="timeout" if hung else "decoder_crash", detail=detail)
        yield result


def _apart(part: list, item: int) -> list[tuple[list, int]]:
    """The item that was in hand alone, and the others; halves where none can be blamed. Each with its losses."""
    if len(part) == 1:
        return [(part, 1)]
    if 0 <= item < len(part):
        return [(part[:item] + part[item + 1 :], 0), ([part[item]], 1)]
    half = len(part) // 2
    return [(part[half:], 0), (part[:half], 0)]
