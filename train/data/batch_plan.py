"""The batches of a training, planned before it starts from a global shuffle of the samples."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Which samples form which batch: a pure function of these fields, so that training can resume at any step."""

    indices: np.ndarray
    """(N,) indices of the samples to draw from."""
    batch_size: int
    """Samples per step and rank."""
    world_size: int
    epochs: int
    seed: int

    def __post_init__(self):
        if self.steps_per_epoch < 1:
            raise AvpipeError(
                f"{len(self.indices)} samples do not fill one batch of {self.batch_size} on {self.world_size} rank(s); "
                "use a smaller batch, e.g. --set batch_size=…"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch, the same on every rank; left-over samples are dropped until the next epoch's shuffle."""
        return len(self.indices) // (self.batch_size * self.world_size)

    @property
    def steps(self) -> int:
        """Steps of the training."""
        return self.steps_per_epoch * self.epochs

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, both counted from 0."""
        return step // self.steps_per_epoch

    def indices_of(self, step: int, rank: int) -> np.ndarray:
        """Return the sample indices (batch_size,) of a step on a rank; no sample occurs twice within an epoch."""
        order = _shuffled(len(self.indices), self.seed, self.epoch(step))
        first = ((step % self.steps_per_epoch) * self.world_size + rank) * self.batch_size
        return self.indices[order[first : first + self.batch_size]]


@lru_cache(maxsize=2)
def _shuffled(samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(samples)
