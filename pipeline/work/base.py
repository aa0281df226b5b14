"""What an executor is, and what its workers run: a part, with a heartbeat for each of its items.

A worker announces each item before it begins it, with a deadline. So the parent notices a hang within seconds, and
knows which item a dead worker was working on.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from avpipe.pipeline.core.errors import AvpipeError, user_message

T = TypeVar("T")


class WorkerLostError(Exception):
    """A worker process died without a result; the text says how."""


class Executor(Protocol):
    """A context manager in which parts run. `slot`, from 0 to 2 * at_once - 1, identifies a part until it is done."""

    at_once: int
    """How many parts run at the same time."""

    def __enter__(self) -> "Executor": ...

    def __exit__(self, *_) -> None: ...

    def submit(self, slot: int, function: Callable, part: list, seconds: float) -> Future:
        """Start `function(part)`; each of its items may take `seconds`."""

    def result(self, future: Future) -> Any:
        """Return what a finished part returned, or raise what it raised; WorkerLostError if its worker died."""

    def heartbeats(self) -> dict[int, tuple[int, float]]:
        """For each slot, the index of the item begun last and the seconds it has left (negative: it hangs)."""

    def kill(self, slot: int) -> None:
        """Kill the worker of a slot; its future completes once the process is dead."""


@dataclass
class _Heart:
    """Sends the heartbeats of the part that this worker runs."""

    send: Callable[[int, float], None]
    """Tells the parent which item is being worked on, and how many seconds it may take."""
    seconds: float
    """What one item may take."""
    item: int = 0

    def beat(self, item: int, seconds: float) -> None:
        self.item = item
        self.send(item, seconds)


_heart: _Heart | None = None


def announced(items: Iterable[T]) -> Iterator[T]:
    """Yield the items of a part, each after a heartbeat; outside a worker, just the items."""
    count = 0
    for item in items:
        if _heart is not None:
            _heart.beat(count, _heart.seconds)
        yield item
        count += 1
    if _heart is not None:  # what follows the last item may take as long as all items
        _heart.beat(count, _heart.seconds * max(1, count))


def extend_deadline(seconds: float) -> None:
    """Give the current item `seconds` from now; does nothing outside a worker."""
    if _heart is not None:
        _heart.beat(_heart.item, seconds)


def run_part(function: Callable, part: list, seconds: float, send: Callable[[int, float], None]) -> Any:
    """Run `function(part)` in a worker; `send` gets its heartbeats: the item that begins, the seconds it may take."""
    global _heart
    _heart = _Heart(send, seconds)
    _heart.beat(0, seconds)
    try:
        return function(part)
    except OSError as error:
        sentence = user_message(error)
        if sentence is None:
            raise
        raise AvpipeError(sentence) from None
    finally:
        _heart = None


def default_workers() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def chunks(items: Sequence, size: int) -> list[Sequence]:
    """Split a list into chunks of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
