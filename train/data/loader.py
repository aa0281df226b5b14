"""Threads that read samples ahead and stack them into batches, which are the same for any number of threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avpipe.train.data.buffer_pool import BATCHES
from avpipe.train.data.shards import DamagedError

Sample = dict[str, np.ndarray | np.generic | int]
"""Field name to value."""
Batch = dict[str, Tensor]
"""Field name to the stacked values of some samples."""
# Batches being filled while one is in use; a loader keeps no other batches in memory.
AHEAD = 2
# Samples per task of a thread: few, so that all threads work on the batch that is needed next.
CHUNK = 8


def stacked(
    batches_of_keys: Iterable[Sequence],
    read: Callable[[Any], Sample],
    workers: int,
    on_damage: Callable[[DamagedError], None] | None = None,
) -> Iterator[Batch]:
    """Yield a batch per list of keys: the samples that `read` returns for them, stacked field by field, in order.

    Threads are used, not processes: decoding and copying release the interpreter's lock, and a batch of 32 MB need not
    be copied between processes. If there is a GPU the tensors are in pinned memory, for asynchronous copies. Damaged
    samples are left out and passed to `on_damage`. Raises what `read` raises; DamagedError only without `on_damage` or
    if no sample of a batch is left.
    """
    empty = _pinned if torch.cuda.is_available() else BATCHES.empty
    for batch in _filled((_Batch(keys, read, empty) for keys in batches_of_keys), workers):
        for _, error in sorted(batch.damaged.items()):
            if on_damage is None:
                raise error
            on_damage(error)
        yield batch.tensors()


def _filled(batches: Iterator[_Batch], workers: int) -> Iterator[_Batch]:
    if not workers:
        for batch in batches:
            batch.fill(0, len(batch.keys))
            yield batch
        return
    pool, pending = ThreadPoolExecutor(workers, "loader"), deque()
    try:
        for batch in batches:
            firsts = range(0, len(batch.keys), CHUNK)
            pending.append((batch, [pool.submit(batch.fill, first, first + CHUNK) for first in firsts]))
            if len(pending) > AHEAD:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:  # at the end, after an error, and when the generator is closed
        pool.shutdown(cancel_futures=True)


def _finished(batch: _Batch, futures: list) -> _Batch:
    for future in futures:
        future.result()
    return batch


class _Batch:
    """The memory of one batch, which threads fill concurrently."""

    def __init__(self, keys: Sequence, read: Callable[[Any], Sample], empty: Callable[[tuple, np.dtype], Tensor]):
        self.keys, self._read, self._empty = keys, read, empty
        self._tensors: Batch = {}
        self._arrays: dict[str, np.ndarray] = {}
        """Views of the same memory."""
        self._lock = threading.Lock()
        self.damaged: dict[int, DamagedError] = {}
        """Errors by index in the batch."""

    def fill(self, first: int, end: int) -> None:
        """Read the samples at the batch indices from `first` to before `end`."""
        for index, key in enumerate(self.keys[first:end], first):
            try:
                sample = self._read(key)
            except DamagedError as error:
                self.damaged[index] = error
                continue
            if not self._arrays:
                self._allocate(sample)
            for name, value in sample.items():
                self._arrays[name][index] = value

    def _allocate(self, sample: Sample) -> None:
        with self._lock:
            if self._arrays:
                return
            values = {name: np.asarray(value) for name, value in sample.items()}
            self._tensors = {
                name: self._empty((len(self.keys), *value.shape), value.dtype) for name, value in values.items()
            }
            self._arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}

    def tensors(self) -> Batch:
        """Return the stacked fields without the damaged samples. Raises DamagedError if no sample is left."""
        if not self.damaged:
            return self._tensors
        if not self._tensors:
            raise self.damaged[0]
        kept = torch.tensor([index for index in range(len(self.keys)) if index not in self.damaged])
        return {name: tensor[kept] for name, tensor in self._tensors.items()}


def _pinned(shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """Return an uninitialised tensor in pinned memory, which torch caches and reuses."""
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)
