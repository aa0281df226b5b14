"""How every stage resumes: work is split into parts, and a part is finished once its file has its final name.

Parts run in worker processes. If a worker dies or hangs (decoders are native code, memory runs out), the item that it
was working on is retried once in a part of its own, and only this item can fail.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from avpipe.pipeline.work.base import Executor, WorkerLostError
from avpipe.pipeline.work.local import LocalProcesses

# Reading a clip takes 0.05 to 1 s, so an item that takes longer hangs. It costs this time twice.
SECONDS_PER_ITEM = 20.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedItem:
    """An item whose worker died (`decoder_crash`) or hung (`timeout`)."""

    item: Any
    reason: str
    detail: str


def run_parts(function: Callable, parts: list[list], workers: int | Executor) -> Iterator[Any]:
    """Yield `function(part)` for every part as it finishes, in any order, and a FailedItem for each item that fails.

    `workers` is a number of local processes, or another executor. `function` must be importable by name, write its
    results itself, and go through its part by `announced`. Exceptions that it raises end the run.
    """
    executor = LocalProcesses(max(1, min(workers, len(parts)))) if isinstance(workers, int) else workers
    waiting, running = deque((part, 0) for part in parts), {}
    with executor:
        free = list(range(2 * executor.at_once))
        while waiting or running:
            while waiting and free:
                slot, (part, losses) = free.pop(), waiting.popleft()
                running[executor.submit(slot, function, part, SECONDS_PER_ITEM)] = slot, part, losses
            done = wait(running, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED).done
            heartbeats = executor.heartbeats()
            yield from _collect(executor, done, heartbeats, running, waiting, free)
            for slot, *_ in running.values():
                if slot in heartbeats and heartbeats[slot][1] < 0:
                    executor.kill(slot)


def _collect(
    executor: Executor,
    done: set[Future],
    heartbeats: dict[int, tuple[int, float]],
    running: dict[Future, tuple[int, list, int]],
    waiting: deque[tuple[list, int]],
    free: list[int],
) -> Iterator[Any]:
    """Yield the results of finished parts; split those whose worker died and put them in front of the queue.

    Each part is queued with the number of workers that died over its single item; the second death fails the item.
    """
    for future in done:
        slot, part, losses = running.pop(future)
        free.append(slot)
        try:
            result = executor.result(future)
        except WorkerLostError as error:
            item, seconds_left = heartbeats.get(slot, (-1, 0.0))
            if len(part) > 1 or losses == 0:
                waiting.extendleft(_split(part, item))
                continue
            hung = seconds_left < 0
            detail = "no heartbeat before its deadline" if hung else str(error)
            result = FailedItem(item=part[0], reason="timeout" if hung else "decoder_crash", detail=detail)
        yield result


def _split(part: list, item: int) -> list[tuple[list, int]]:
    """Split a part into the current item and the others, or into halves if none is to blame; each with its deaths."""
    if len(part) == 1:
        return [(part, 1)]
    if 0 <= item < len(part):
        return [(part[:item] + part[item + 1 :], 0), ([part[item]], 1)]
    half = len(part) // 2
    return [(part[half:], 0), (part[:half], 0)]
