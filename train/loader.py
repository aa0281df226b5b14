"""Batches: steps planned before training starts, every sample drawn from a global shuffle, the same for any workers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import AvpipeError
from pipeline.samples import FRAME, decode_npy, feature_member
from train.frames import open_frame, training_view
from train.shards import Shards


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which samples make which batch: a function of these numbers alone, so any step can be the first."""

    samples: int
    batch_size: int
    """Samples a step and rank."""
    world_size: int
    epochs: int
    seed: int

    def __post_init__(self):
        if self.steps_per_epoch < 1:
            raise AvpipeError(
                f"{self.samples} samples do not fill one batch of {self.batch_size} on {self.world_size} rank(s); "
                "use a smaller batch, e.g. --set batch_size=…"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Equal on every rank; the samples left over wait for another epoch's shuffle."""
        return self.samples // (self.batch_size * self.world_size)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    def epoch(self, step: int) -> int:
        """Epoch of a step, from 0."""
        return step // self.steps_per_epoch

    def rows(self, step: int, rank: int) -> np.ndarray:
        """(batch_size,) sample numbers of one step on one rank; ranks never share one within an epoch."""
        order = _shuffled(self.samples, self.seed, self.epoch(step))
        first = ((step % self.steps_per_epoch) * self.world_size + rank) * self.batch_size
        return order[first : first + self.batch_size]


@lru_cache(maxsize=2)
def _shuffled(samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(samples)


@dataclass(frozen=True, kw_only=True)
class TrainingSamples(Dataset):
    """Decodes single samples; the augmentation of a sample depends on seed, epoch and sample, not on who loads it."""

    shards: Shards
    feature: str
    image_px: int
    seed: int

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | AvpipeError:
        """(uint8 (px, px, 3) frame, (1, F, T) feature) of (epoch, sample number).

        An AvpipeError is returned, not raised: a raised one would reach the user as a worker's traceback.
        """
        epoch, number = key
        rng = np.random.default_rng([self.seed, epoch, number])
        try:
            view = training_view(read_frame(self.shards, number), self.image_px, rng)
            return view, read_feature(self.shards, number, self.feature)
        except AvpipeError as error:
            return error


def read_frame(shards: Shards, number: int):
    """The frame of a sample as an RGB image. Raises AvpipeError naming shard and clip."""
    try:
        return open_frame(shards.read(number, FRAME))
    except OSError as error:
        raise shards.damaged(number, FRAME, error) from None


def read_feature(shards: Shards, number: int, name: str) -> np.ndarray:
    """A feature of a sample, (1, F, T) in the type it is stored in. Raises AvpipeError naming shard and clip."""
    member = feature_member(name)
    try:
        return decode_npy(shards.read(number, member))[None]
    except (ValueError, EOFError) as error:
        raise shards.damaged(number, member, error) from None


def batches(
    samples: TrainingSamples, plan: BatchPlan, rank: int, first_step: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(uint8 (B, px, px, 3), (B, 1, F, T)) for every step from `first_step` to the end of the training.

    `workers` processes decode ahead (0: in this process). Raises AvpipeError for a sample that cannot be read.
    """
    keys = ([(plan.epoch(step), int(row)) for row in plan.rows(step, rank)] for step in range(first_step, plan.steps))
    loader = DataLoader(
        samples,
        batch_sampler=_Keys(keys),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, AvpipeError):
            raise batch
        yield batch


class _Keys:
    """An iterable over prepared lists of keys; DataLoader asks for an object, not a generator."""

    def __init__(self, keys: Iterator[list]):
        self._keys = keys

    def __iter__(self) -> Iterator[list]:
        return self._keys


def collate(items: list) -> tuple[Tensor, Tensor] | AvpipeError:
    """Stack samples; the first error among them stands for the batch."""
    for item in items:
        if isinstance(item, AvpipeError):
            return item
    views, features = zip(*items, strict=True)
    return torch.from_numpy(np.stack(views)), torch.from_numpy(np.stack(features))
