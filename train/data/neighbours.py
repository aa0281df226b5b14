"""The nearest neighbour of each sound by the network's audio vectors, which SSL-TIE mixes it with.

Shapes: N samples of the shards, M candidates, B batch, C channels of an audio vector.
"""

from collections.abc import Sequence

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from avpipe.train.data.loader import stacked
from avpipe.train.data.shards import Shards

# Number of candidates in the released code.
RELEASED_CANDIDATES = 4000
EMBED_BATCH = 64
# Rows per block of the cosine matrix: with 200,000 candidates a block has 800 MB of float32.
BLOCK = 1024


def neighbour_table(
    fabric: Fabric, network: nn.Module, shards: Shards, indices: np.ndarray, feature: str, curriculum: str, seed: int
) -> np.ndarray:
    """Return int32 (N,): for each sample of `indices` the other one with the nearest audio vector by cosine, else -1.

    With the curriculum "paper" all of `indices` are candidates, with "released" 4,000 that are drawn anew each time, as
    published. Every rank embeds and compares its share of the samples and returns the complete table.
    """
    mine = _shares(indices, fabric.world_size)[fabric.global_rank]
    vectors_BC = _audio_vectors(fabric, network, shards, mine, feature)
    candidates, known_MC = indices, _of_all_ranks(fabric, vectors_BC)[: len(indices)]
    if curriculum == "released" and len(indices) > RELEASED_CANDIDATES:
        drawn = np.sort(np.random.default_rng(seed).choice(len(indices), RELEASED_CANDIDATES, replace=False))
        candidates, known_MC = indices[drawn], known_MC[torch.from_numpy(drawn).to(known_MC.device)]
    own = torch.from_numpy(mine).to(fabric.device)
    position_B = nearest(vectors_BC, own, known_MC, torch.from_numpy(candidates).to(fabric.device))
    found = candidates[_of_all_ranks(fabric, position_B)[: len(indices)].cpu().numpy()]
    table = np.full(len(shards), -1, np.int32)
    table[indices] = found
    return table


def nearest(vectors_BC: Tensor, own_B: Tensor, known_MC: Tensor, candidates_M: Tensor) -> Tensor:
    """Return (B,): the index among the M known unit vectors with the largest dot product, excluding the same sample.

    Computed in blocks, so that the full matrix is never in memory; of equal products the first wins.
    """
    positions = []
    for block_BC, block_B in zip(vectors_BC.split(BLOCK), own_B.split(BLOCK), strict=True):
        cosine_BM = block_BC @ known_MC.T
        cosine_BM[block_B[:, None] == candidates_M] = -2
        positions.append(cosine_BM.argmax(dim=1))
    return torch.cat(positions)


def _shares(indices: np.ndarray, world_size: int) -> Sequence[np.ndarray]:
    """Split into equal shares, one per rank, in order; the last is padded by repeating the last sample."""
    size = -(-len(indices) // world_size)
    padded = np.concatenate([indices, np.repeat(indices[-1:], size * world_size - len(indices))])
    return np.split(padded, world_size)


def _of_all_ranks(fabric: Fabric, values: Tensor) -> Tensor:
    return values if fabric.world_size == 1 else fabric.all_gather(values).flatten(0, 1)


def _audio_vectors(fabric: Fabric, network: nn.Module, shards: Shards, indices: np.ndarray, feature: str) -> Tensor:
    """Return (B, C) audio vectors of unit length, from the stored features, computed in evaluation mode."""
    vectors, dtype = [], next(network.parameters()).dtype
    chunks = np.split(indices, range(EMBED_BATCH, len(indices), EMBED_BATCH))
    for batch in stacked(chunks, lambda index: {"spec": shards.feature(int(index), feature)}, workers=1):
        with fabric.autocast():
            vectors.append(network.embed_audio(fabric.to_device(batch["spec"]).to(dtype)))
    return torch.cat(vectors)
