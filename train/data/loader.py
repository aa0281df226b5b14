"""Batches: steps planned before training starts, every sample drawn from a global shuffle, the same for any workers."""

from __future__ import annotations

import csv
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.errors import AvpipeError
from pipeline.features import SPECS
from pipeline.samples import FRAME, feature_member
from train.data.frames import decode_frame
from train.data.memory import BATCHES
from train.data.shards import DamagedError, Shards

if TYPE_CHECKING:
    from train.data.inputs import Batch
    from train.data.training_samples import TrainingSamples

FEATURE_TYPES = (np.dtype(np.float16), np.dtype(np.float32))
_INF16, _MINUS_INF16 = 0x7C00, 0xFC00
# Samples whose features tell what those are like that avpipe does not know.
LOOKED_AT = 9
# Batches that are being filled while one is in use: with that one they are all the memory a loader takes.
AHEAD = 2
# Samples that a thread takes at a time: few, so that all threads work on the batch that is wanted next.
PART = 8


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which samples make which batch: a function of these numbers alone, so any step can be the first."""

    numbers: np.ndarray
    """(N,) numbers of the samples to draw from."""
    batch_size: int
    """Samples a step and rank."""
    world_size: int
    epochs: int
    seed: int

    def __post_init__(self):
        if self.steps_per_epoch < 1:
            raise AvpipeError(
                f"{len(self.numbers)} samples do not fill one batch of {self.batch_size} on {self.world_size} rank(s); "
                "use a smaller batch, e.g. --set batch_size=…"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Equal on every rank; the samples left over wait for another epoch's shuffle."""
        return len(self.numbers) // (self.batch_size * self.world_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    def epoch(self, step: int) -> int:
        """Epoch of a step, from 0."""
        return step // self.steps_per_epoch

    def rows(self, step: int, rank: int) -> np.ndarray:
        """(batch_size,) sample numbers of one step on one rank; ranks never share one within an epoch."""
        order = _shuffled(len(self.numbers), self.seed, self.epoch(step))
        first = ((step % self.steps_per_epoch) * self.world_size + rank) * self.batch_size
        return self.numbers[order[first : first + self.batch_size]]


@lru_cache(maxsize=2)
def _shuffled(samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(samples)


def read_pixels(shards: Shards, number: int) -> np.ndarray:
    """The frame of a sample, uint8 (H, W, 3) RGB. Raises DamagedError naming shard and clip."""
    try:
        return decode_frame(shards.view(number, FRAME))
    except OSError as error:
        raise shards.damaged(number, FRAME, error) from None


def read_frame(shards: Shards, number: int) -> Image.Image:
    """The frame of a sample as an RGB image. Raises DamagedError naming shard and clip."""
    return Image.fromarray(read_pixels(shards, number))


def read_feature(shards: Shards, number: int, name: str) -> np.ndarray:
    """A feature of a sample, (1, F, T) in the type it is stored in, read-only. Raises DamagedError naming the clip.

    Features that avpipe makes are float16 of one shape; others must be like most of the shards' first samples.
    """
    member = feature_member(name)
    try:
        feature = shards.array(number, member)
        _check_feature(feature, *_layout(shards, name))
    except (ArithmeticError, MemoryError, TypeError, ValueError) as error:
        raise shards.damaged(number, member, error) from None
    return feature[None]


def _layout(shards: Shards, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) that all samples of a feature must have, else they make no batch."""
    if name in SPECS:
        return SPECS[name].shape, np.dtype(np.float16)
    if name not in shards.layouts:
        seen = Counter()
        for number in range(min(LOOKED_AT, len(shards))):
            try:
                feature = shards.array(number, feature_member(name))
            except (ArithmeticError, MemoryError, TypeError, ValueError):
                continue
            seen[feature.shape, feature.dtype] += 1
        shards.layouts[name] = seen.most_common(1)[0][0] if seen else ((0,), np.dtype(np.float32))
    return shards.layouts[name]


def _check_feature(feature: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError for an array that is not of this shape and type, or holds what is no finite number."""
    if feature.shape != shape:
        raise ValueError(f"its shape is {feature.shape}, not {shape}")
    if feature.dtype != dtype or dtype not in FEATURE_TYPES:
        known = "float16 or float32" if dtype not in FEATURE_TYPES else dtype
        raise ValueError(f"its type is {feature.dtype}, not {known}")
    if not (_finite16(feature) if dtype == np.float16 else np.isfinite(feature).all()):
        raise ValueError("it holds values that are no finite numbers")


def _finite16(feature: np.ndarray) -> bool:
    """As np.isfinite(…).all() of float16, in a tenth of the time: the largest bits of either sign tell."""
    return feature.view(np.int16).max() < _INF16 and feature.view(np.uint16).max() < _MINUS_INF16


def batches(
    samples: TrainingSamples,
    plan: BatchPlan,
    rank: int,
    steps: Iterable[int],
    workers: int,
    on_damage: Callable[[DamagedError], None] | None = None,
) -> Iterator[Batch]:
    """The stacked parts of the samples, by their names, for each of the steps, counted from 0.

    `workers` threads decode ahead (0: in this thread). With `on_damage` a sample that cannot be read is reported to it
    and left out: the batch is one shorter, as no other sample can take the place of one and be there only once. Without
    it, and with more ranks than one, whose batches must have one size, DamagedError is raised.
    """
    keys = ([(plan.epoch(step), int(row)) for row in plan.rows(step, rank)] for step in steps)
    for parts in stacked(keys, samples.__getitem__, workers, on_damage if plan.world_size == 1 else None):
        yield dict(zip(samples.parts, parts, strict=True))


def stacked(
    batches_of_keys: Iterable[Sequence],
    read: Callable[[Any], tuple],
    workers: int,
    on_damage: Callable[[DamagedError], None] | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """For each list of keys what `read` returns for them, stacked part by part, in order.

    Threads, not processes: decoding and copying release the interpreter's lock, and a batch of 32 MB need not travel.
    The tensors are in pinned memory where there is a GPU, so that copies to it need not be waited for. Raises what
    `read` raises; DamagedError only without `on_damage`, or where nothing of a batch is left.
    """
    room = _pinned if torch.cuda.is_available() else BATCHES.room
    for batch in _filled((_Batch(keys, read, room) for keys in batches_of_keys), workers):
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
            firsts = range(0, len(batch.keys), PART)
            pending.append((batch, [pool.submit(batch.fill, first, first + PART) for first in firsts]))
            if len(pending) > AHEAD:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:  # at the end, after an error, and when nobody asks for more
        pool.shutdown(cancel_futures=True)


def _finished(batch: _Batch, parts: list) -> _Batch:
    for part in parts:
        part.result()
    return batch


class _Batch:
    """The memory of one batch, which threads fill side by side."""

    def __init__(self, keys: Sequence, read: Callable[[Any], tuple], room: Callable[[tuple, np.dtype], Tensor]):
        self.keys, self._read, self._room = keys, read, room
        self._tensors: tuple[Tensor, ...] | None = None
        self._arrays: tuple[np.ndarray, ...] = ()
        """The same memory."""
        self._lock = threading.Lock()
        self.damaged: dict[int, DamagedError] = {}
        """By the place in the batch."""

    def fill(self, first: int, end: int) -> None:
        """Read the samples from the `first` place to before `end`."""
        for place, key in enumerate(self.keys[first:end], first):
            try:
                sample = self._read(key)
            except DamagedError as error:
                self.damaged[place] = error
                continue
            if not self._arrays:
                self._make_room(sample)
            for array, part in zip(self._arrays, sample, strict=True):
                array[place] = part

    def _make_room(self, sample: tuple) -> None:
        with self._lock:
            if self._arrays:
                return
            parts = [np.asarray(part) for part in sample]
            self._tensors = tuple(self._room((len(self.keys), *part.shape), part.dtype) for part in parts)
            self._arrays = tuple(tensor.numpy() for tensor in self._tensors)

    def tensors(self) -> tuple[Tensor, ...]:
        """The stacked parts, without the places that are damaged."""
        if not self.damaged:
            return self._tensors
        if self._tensors is None:
            raise self.damaged[0]
        kept = torch.tensor([place for place in range(len(self.keys)) if place not in self.damaged])
        return tuple(tensor[kept] for tensor in self._tensors)


def _pinned(shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    """An uninitialised tensor that a GPU can copy by itself; torch uses such memory again."""
    return torch.empty(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True)


class Skipped:
    """The damaged samples that a run goes on without: each is named once, on standard error and in a file."""

    def __init__(self, path: Path):
        self._path = path
        self._seen: set[tuple[str, str]] = set()
        if path.exists():  # of the same run, before it was stopped
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                self._seen = {(row[0], row[1]) for row in list(csv.reader(file))[1:] if len(row) == 3}

    def __len__(self) -> int:
        return len(self._seen)

    def __str__(self) -> str:
        """What the progress line adds."""
        return f" · {len(self)} damaged samples left out" if self._seen else ""

    def __call__(self, error: DamagedError) -> None:
        """Take note of one."""
        if (error.clip_id, error.member) in self._seen:
            return
        with open(self._path, "a", newline="") as file:
            header = [] if self._seen else [("clip_id", "member", "reason")]
            csv.writer(file).writerows([*header, (error.clip_id, error.member, error)])
        self._seen.add((error.clip_id, error.member))
        print(f"avpipe: left out: {error}", file=sys.stderr, flush=True)
