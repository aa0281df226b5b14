"""Batches: steps planned before training starts, every sample drawn from a global shuffle, the same for any workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import AvpipeError
from pipeline.samples import FRAME, decode_npy, feature_member
from train.frames import TRAINING_VIEWS, open_frame
from train.shards import Shards

if TYPE_CHECKING:
    from train.mixing import Mixing


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


@dataclass(frozen=True, kw_only=True)
class TrainingSamples(Dataset):
    """Decodes single samples; the augmentation of a sample depends on seed, epoch and sample, not on who loads it."""

    shards: Shards
    feature: str
    image_px: int
    seed: int
    view: str = "crop"
    """A key of train.frames.TRAINING_VIEWS."""
    views: int = 1
    """Views of each frame; with more than one they are stacked before the pixels."""
    masking: bool = False
    """Whether stretches of time and of bands are put to the lowest value, see `mask_feature`."""
    mixing: Mixing | None = None
    """Which sounds are blended with another's (SSL-TIE)."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int] | AvpipeError:
        """(uint8 (px, px, 3) frame, or (V, px, px, 3); (1, F, T) feature; sample number) of (epoch, sample number).

        An AvpipeError is returned, not raised: a raised one would reach the user as a worker's traceback.
        """
        epoch, number = key
        rng = np.random.default_rng([self.seed, epoch, number])
        try:
            frame = read_frame(self.shards, number)
            made = [TRAINING_VIEWS[self.view](frame, self.image_px, rng) for _ in range(self.views)]
            if self.mixing:
                feature = self.mixing.feature(self.shards, number, self.feature, rng)
            else:
                feature = read_feature(self.shards, number, self.feature)
            if self.masking:
                feature = mask_feature(feature, rng)
            return (made[0] if self.views == 1 else np.stack(made)), feature, number
        except AvpipeError as error:
            return error


# SSL-TIE's masks: the longest in windows and in bands, and how often a clip gets both.
MASK_TIME, MASK_BANDS, MASK_SHARE = 180, 35, 0.8


def mask_feature(feature_1FT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With probability .8 a stretch of up to 180 windows and one of up to 35 bands at the feature's lowest value.

    `tie-mel` has its floor in the 28 bands that are always empty; the released code masks power before the decibels,
    which gives that floor, too. Source: SSL-TIE's data loader (torchaudio's TimeMasking and FrequencyMasking).
    """
    if rng.random() >= MASK_SHARE:
        return feature_1FT
    masked = feature_1FT.copy()
    for axis, longest in ((2, MASK_TIME), (1, MASK_BANDS)):
        length = rng.random() * longest
        first = int(rng.random() * max(masked.shape[axis] - length, 0))
        place = [slice(None)] * 3
        place[axis] = slice(first, first + int(length))
        masked[tuple(place)] = feature_1FT.min()
    return masked


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
    samples: TrainingSamples, plan: BatchPlan, rank: int, steps: range, workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(uint8 (B, px, px, 3), (B, 1, F, T), sample numbers int64 (B,)) for each of the steps, counted from 0.

    `workers` processes decode ahead (0: in this process). Raises AvpipeError for a sample that cannot be read.
    """
    keys = ([(plan.epoch(step), int(row)) for row in plan.rows(step, rank)] for step in steps)
    loader = DataLoader(
        samples,
        batch_sampler=_Keys(keys),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # else it takes a number from the generator that losses draw from
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


def collate(items: list[tuple]) -> tuple[Tensor, ...] | AvpipeError:
    """Stack samples, part by part; the first error among them stands for the batch."""
    for item in items:
        if isinstance(item, AvpipeError):
            return item
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*items, strict=True))
