"""Single training samples: reading, decoding and the augmentation that runs in threads on the CPU."""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from avpipe.train.data.augment.views import TRAINING_VIEWS
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.loader import Batch, Sample, stacked
from avpipe.train.data.mixing import Mixing
from avpipe.train.data.shards import DamagedError, Shards

# SSL-TIE's masks: the maximum in windows and in bands, and the probability that a clip is masked.
MASK_TIME, MASK_BANDS, MASK_SHARE = 180, 35, 0.8


@dataclass(frozen=True, kw_only=True)
class TrainingSamples:
    """Augmented samples by (epoch, index); augmentation depends only on seed, epoch and index, not on the worker."""

    shards: Shards
    feature: str
    image_px: int
    seed: int
    view: str = "crop"
    """A key of avpipe.train.data.augment.views.TRAINING_VIEWS."""
    views: int = 1
    """Number of views of each frame; if more than one, they are stacked in a leading dimension."""
    masking: bool = False
    """Whether ranges of windows and bands are masked, see `data.inputs.masked`."""
    mixing: Mixing | None = None
    """The audio mixing of the epoch (SSL-TIE), or None."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Return the fields of (epoch, index). Raises DamagedError, naming shard and clip.

        image: uint8 (px, px, 3), or (V, px, px, 3). spec: (1, F, T) as stored. index: that of the sample. colour:
        float32 (7,) or (V, 7), see `data.augment.colour`. mask: int32 (4,), see `data.inputs.masked`. sounds, weight:
        int16 (2, T) and float32, see `Mixing`.
        """
        epoch, index = key
        # Not NumPy's generator: creating one takes 120 µs under load, a tenth of the total time per sample.
        rng = random.Random(self.seed << 96 | epoch << 64 | index)
        view, frame_HW3 = TRAINING_VIEWS[self.view], self.shards.pixels(index)
        sample = {
            "image": self._stacked([view.pixels(frame_HW3, self.image_px, rng) for _ in range(self.views)]),
            "spec": self.shards.feature(index, self.feature),
            "index": index,
        }
        if view.colour:
            sample["colour"] = self._stacked([view.colour(rng) for _ in range(self.views)])
        if self.masking:
            sample["mask"] = draw_mask(sample["spec"].shape, rng)
        if self.mixing:
            sample["sounds"], sample["weight"] = self.mixing.sounds(self.shards, index, self.feature, rng)
        return sample

    def _stacked(self, arrays: list[np.ndarray]) -> np.ndarray:
        return arrays[0] if self.views == 1 else np.stack(arrays)


def draw_mask(shape: tuple[int, int, int], rng: random.Random) -> np.ndarray:
    """Draw int32 (4,) for `data.inputs.masked`: with probability .8 up to 180 windows and up to 35 bands, else none.

    `shape` is (1, F, T). Source: SSL-TIE's data loader (torchaudio's TimeMasking and FrequencyMasking).
    """
    if rng.random() >= MASK_SHARE:
        return np.zeros(4, np.int32)
    drawn = []
    for size, longest in ((shape[2], MASK_TIME), (shape[1], MASK_BANDS)):
        length = rng.random() * longest
        drawn += [rng.random() * max(size - length, 0), length]
    return np.array(drawn).astype(np.int32)


def batches(
    samples: TrainingSamples,
    plan: BatchPlan,
    rank: int,
    steps: Iterable[int],
    workers: int,
    on_damage: Callable[[DamagedError], None] | None = None,
) -> Iterator[Batch]:
    """Yield the batch of this rank for each of `steps`, counted from 0.

    `workers` threads decode ahead (0: in this thread). A sample that cannot be read is passed to `on_damage` and left
    out, which makes the batch shorter; a substitute would occur twice in the epoch. Without `on_damage`, and with more
    than one rank, as all ranks need equal batch sizes, DamagedError is raised.
    """
    keys = ([(plan.epoch(step), int(index)) for index in plan.indices_of(step, rank)] for step in steps)
    yield from stacked(keys, samples.__getitem__, workers, on_damage if plan.world_size == 1 else None)
