"""SSL-TIE's audio mixing: a clip's sound is blended with its nearest neighbour's, increasingly during training."""

import json
import random
from dataclasses import dataclass

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.samples import AUDIO, META, decode_flac
from avpipe.pipeline.features.audio_window import kept_sound, window_around
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import SPECS
from avpipe.train.data.shards import Shards

# Reached at the end of training (paper, section 3.2.1).
PAPER_WEIGHT = 0.65


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The audio mixing of one epoch."""

    neighbours: np.ndarray
    """(N,) int32, index of the sample with the most similar sound; -1 where unknown."""
    weight: float
    """Weight of the neighbour's sound, in [0, 1]: α of the paper, equation 4."""
    share: float
    """Fraction of the clips that are mixed, in [0, 1]."""

    def sounds(self, shards: Shards, index: int, feature: str, rng: random.Random) -> tuple[np.ndarray, np.float32]:
        """Return (int16 (2, T) waveforms of a sample and its neighbour, weight of the neighbour), drawing from `rng`.

        The waveforms cover the window of the feature, which `data.inputs` computes from their blend. If the sound is
        not mixed the weight is 0 and nothing is read. Raises AvpipeError naming shard and clip.
        """
        if rng.random() >= self.share:
            return np.zeros((2, SPECS[feature].samples), np.int16), np.float32(0)
        both = [read_window(shards, n, feature) for n in (index, int(self.neighbours[index]))]
        return np.stack(both), np.float32(self.weight)


def schedule(curriculum: str, epoch: int, epochs: int) -> tuple[float, float]:
    """Return (weight, share) of an epoch, counted from 0.

    "released": weight .01·e and share .1 + .01·e of epoch e (released scripts). "paper": weight from 0 to .65 in equal
    steps, every clip (section 3.2.1). Neither mixes in the first epoch, when there are no audio vectors to compare.
    """
    if curriculum == "none" or epoch == 0:
        return 0.0, 0.0
    if curriculum == "released":
        return min(0.01 * epoch, 1.0), min(0.1 + 0.01 * epoch, 1.0)
    return PAPER_WEIGHT * epoch / (epochs - 1), 1.0


def check_mixing(shards: Shards, indices: np.ndarray, feature: str) -> None:
    """Raise AvpipeError if the sounds of these samples cannot be mixed, before training rather than after an epoch."""
    if len(indices) < 2:
        raise AvpipeError("audio mixing needs at least two clips; use --set mixing=none")
    if missing := sorted({AUDIO, META} - set(shards.offset)):
        raise AvpipeError(f"{shards.folder} holds no {missing[0]}, which audio mixing needs; use --set mixing=none")
    if feature not in SPECS:
        raise AvpipeError(f"this avpipe cannot compute {feature} of mixed sounds; use --set mixing=none")


def read_window(shards: Shards, index: int, feature: str) -> np.ndarray:
    """Return int16 (samples,): the window of audio.flac that a sample's feature was computed from."""
    record, spec = shards.metadata["extract"], SPECS[feature]
    settings = ExtractSettings(features=tuple(record["features"]), clip_s=record["clip_s"])
    try:
        pcm_i16, meta = decode_flac(shards.read(index, AUDIO)), json.loads(shards.read(index, META))
        sound_i16, start_s, centre_s = kept_sound(pcm_i16, meta, settings)
        centre = round((centre_s - start_s) * settings.sample_rate_hz)
        return window_around(sound_i16, spec.samples, centre)[0]
    except (ArithmeticError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise shards.damaged(index, AUDIO, error) from None
