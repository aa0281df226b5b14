"""SSL-TIE's audio mixing: a clip's sound is blended with the one most like it, more and more as training goes on.

Shapes: N samples of the shards, B batch, C channels of an audio vector.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.errors import AvpipeError
from pipeline.features import SPECS
from pipeline.samples import AUDIO, META, decode_flac
from pipeline.settings import ExtractSettings
from pipeline.window import kept_sound, window_around
from train.data.loader import read_feature, stacked
from train.data.shards import Shards

# Weight that the paper reaches at the end (section 3.2.1), and among how many others the released code looks.
PAPER_WEIGHT, RELEASED_CANDIDATES = 0.65, 4000
EMBED_BATCH = 64
# Rows of a block of the matrix of cosines: with 200,000 others 800 MB of float32.
BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """What is mixed in one epoch."""

    neighbours: np.ndarray
    """(N,) int32, number of the sample whose sound is most like each one's."""
    weight: float
    """Of the neighbour's sound, in [0, 1]: α of the paper, equation 4."""
    share: float
    """Of the clips that are mixed, in [0, 1]."""

    def sounds(self, shards: Shards, number: int, name: str, rng: random.Random) -> tuple[np.ndarray, np.float32]:
        """(int16 (2, T) waveforms of a sample and its neighbour, weight of the latter) as `rng` has it.

        They are of the window that the feature is made of; `train.data.inputs` makes it of their blend. The weight is
        0, and nothing is read, where the sound stays as it is. Raises AvpipeError naming shard and clip.
        """
        if rng.random() >= self.share:
            return np.zeros((2, SPECS[name].samples), np.int16), np.float32(0)
        both = [read_window(shards, n, name) for n in (number, int(self.neighbours[number]))]
        return np.stack(both), np.float32(self.weight)


def schedule(curriculum: str, epoch: int, epochs: int) -> tuple[float, float]:
    """(weight, share) of an epoch, from 0.

    "released": weight .01·e and share .1 + .01·e of epoch e (released scripts). "paper": weight from 0 to .65 in equal
    steps, every clip (section 3.2.1). Both mix nothing in the first epoch, when nothing is known of the sounds.
    """
    if curriculum == "none" or epoch == 0:
        return 0.0, 0.0
    if curriculum == "released":
        return min(0.01 * epoch, 1.0), min(0.1 + 0.01 * epoch, 1.0)
    return PAPER_WEIGHT * epoch / (epochs - 1), 1.0


def check_mixing(shards: Shards, numbers: np.ndarray, name: str) -> None:
    """Raise AvpipeError where the sounds of these samples cannot be mixed: known before the first epoch, not after."""
    if len(numbers) < 2:
        raise AvpipeError("audio mixing needs at least two clips; use --set mixing=none")
    if missing := sorted({AUDIO, META} - set(shards.offset)):
        raise AvpipeError(f"{shards.folder} holds no {missing[0]}, which audio mixing needs; use --set mixing=none")
    if name not in SPECS:
        raise AvpipeError(f"this avpipe cannot make {name} of mixed sounds; use --set mixing=none")


def read_window(shards: Shards, number: int, name: str) -> np.ndarray:
    """(samples,) int16: the sound that a sample's feature was made of, out of its audio.flac."""
    record, spec = shards.metadata["extract"], SPECS[name]
    settings = ExtractSettings(features=tuple(record["features"]), clip_s=record["clip_s"])
    try:
        pcm_i16, meta = decode_flac(shards.read(number, AUDIO)), json.loads(shards.read(number, META))
        sound_i16, start_s, centre_s = kept_sound(pcm_i16, meta, settings)
        centre = round((centre_s - start_s) * settings.sample_rate_hz)
        return window_around(sound_i16, spec.samples, centre)[0]
    except (ArithmeticError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise shards.damaged(number, AUDIO, error) from None


def neighbour_table(
    fabric: Fabric, network: nn.Module, shards: Shards, numbers: np.ndarray, feature: str, curriculum: str, seed: int
) -> np.ndarray:
    """(N,) int32: of each sample of `numbers` the one with the nearest audio vector by cosine, never itself; else -1.

    "paper" looks among all of `numbers`, "released" among 4,000 that are drawn anew each time, as published. Every rank
    embeds and compares its share of the samples and returns the whole table.
    """
    mine = _shares(numbers, fabric.world_size)[fabric.global_rank]
    vectors_BC = _audio_vectors(fabric, network, shards, mine, feature)
    candidates, known_MC = numbers, _of_all_ranks(fabric, vectors_BC)[: len(numbers)]
    if curriculum == "released" and len(numbers) > RELEASED_CANDIDATES:
        drawn = np.sort(np.random.default_rng(seed).choice(len(numbers), RELEASED_CANDIDATES, replace=False))
        candidates, known_MC = numbers[drawn], known_MC[torch.from_numpy(drawn).to(known_MC.device)]
    own = torch.from_numpy(mine).to(fabric.device)
    place_B = nearest(vectors_BC, own, known_MC, torch.from_numpy(candidates).to(fabric.device))
    found = candidates[_of_all_ranks(fabric, place_B)[: len(numbers)].cpu().numpy()]
    table = np.full(len(shards), -1, np.int32)
    table[numbers] = found
    return table


def nearest(vectors_BC: Tensor, own_B: Tensor, known_MC: Tensor, candidates_M: Tensor) -> Tensor:
    """(B,) place among M known unit vectors of the largest product with each of B, those of the same sample left out.

    In blocks, so that the matrix of all products is never in memory; of equal ones the first.
    """
    places = []
    for block_BC, block_B in zip(vectors_BC.split(BLOCK), own_B.split(BLOCK), strict=True):
        cosine_BM = block_BC @ known_MC.T
        cosine_BM[block_B[:, None] == candidates_M] = -2
        places.append(cosine_BM.argmax(dim=1))
    return torch.cat(places)


def _shares(numbers: np.ndarray, world_size: int) -> Sequence[np.ndarray]:
    """Equal parts, one a rank, in order; the last one is filled up with its last samples again."""
    size = -(-len(numbers) // world_size)
    padded = np.concatenate([numbers, np.repeat(numbers[-1:], size * world_size - len(numbers))])
    return np.split(padded, world_size)


def _of_all_ranks(fabric: Fabric, values: Tensor) -> Tensor:
    return values if fabric.world_size == 1 else fabric.all_gather(values).flatten(0, 1)


def _audio_vectors(fabric: Fabric, network: nn.Module, shards: Shards, numbers: np.ndarray, feature: str) -> Tensor:
    """(B, C) of unit length, in evaluation mode, of the features as they are in the shards."""
    vectors, dtype = [], next(network.parameters()).dtype
    parts = np.split(numbers, range(EMBED_BATCH, len(numbers), EMBED_BATCH))
    for (spec_B1FT,) in stacked(parts, lambda number: (read_feature(shards, int(number), feature),), workers=1):
        with fabric.autocast():
            vectors.append(network.embed_audio(fabric.to_device(spec_B1FT).to(dtype)))
    return torch.cat(vectors)
