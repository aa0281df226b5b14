"""Checkpoints with flipped bits, cut, packed, and of wrong types: a sentence for each, or the very weights of before.

python tests/chaos/checkpoint.py --rounds 400 --seed 0
"""

import collections
import copy
import io
import math
import random
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import hostile
import numpy as np
import torch

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.methods import METHODS
from avpipe.train.models.author_checkpoints import load_published_checkpoint
from avpipe.train.models.checkpoint import LAST, load_checkpoint, network_of, save_checkpoint
from avpipe.train.models.load import trained_model
from avpipe.train.models.recipes import get_recipe

SLOW_S, LARGE_BYTES = 20.0, (1 << 30) + (1 << 28)
ODD = (
    *(None, True, -1, 2**70, 1e308, math.nan, "", "x" * 100_000, "\x1b[31m$x$", b"\0", [], {}, (), [[]] * 3, {1: {}}),
    *(torch.zeros(0), torch.zeros(3, dtype=torch.complex64), torch.zeros(2, device="meta")),
    *(torch.zeros(1).expand(10**9),),
    *(torch.eye(3).to_sparse(), torch.tensor(math.nan), {"a": torch.zeros(1)}, np.float64(1), np.zeros(4)),
)


def made(folder: Path) -> tuple[bytes, dict]:
    """(bytes of a checkpoint of ours, its state) of a thin network."""
    recipe = get_recipe("lvs-small", ["image_px=32", "spec_pool=8"])
    torch.manual_seed(0)
    network = METHODS[recipe.method].network(recipe.options)
    metadata = {"extract": {"features": {"logspec": "0123"}}, "listed_sha256": "ab", "plan": {"seed": 0}}
    shards = SimpleNamespace(metadata=metadata, split="made", clip_ids=["abcdefghijk_000000"] * 9, __len__=None)
    shards = type("Made", (SimpleNamespace,), {"__len__": lambda self: 9})(**vars(shards))
    state = {"step": 3, "epochs_done": 1, "network": network.state_dict(), "optimizer": {}, "scaler": {}}
    state |= {"rng": torch.get_rng_state(), "best": {"epoch": 1, "measure": "m", "value": 0.5}, "stopped_early": False}
    save_checkpoint(folder / LAST, state, recipe, shards, None)
    return (folder / LAST).read_bytes(), load_checkpoint(folder / LAST)


def flipped(whole: bytes, state: dict, rng: random.Random) -> bytes:
    """Some bits are others: anywhere, or at the ends, where an archive says what it is."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 8, 100))):
        place = rng.choice((rng.randrange(len(data)), rng.randrange(2000), -rng.randrange(1, 2000)))
        data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


def unsealed(whole: bytes, state: dict, rng: random.Random) -> bytes:
    """As an older version wrote it, with a flipped bit in the tensors."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = bytearray(buffer.getvalue())
    data[rng.randrange(len(data) // 10, len(data) * 9 // 10)] ^= 1 << rng.randrange(8)
    return bytes(data)


def cut(whole: bytes, state: dict, rng: random.Random) -> bytes:
    """A part of it is gone, is zeros, or is there twice."""
    first, last = sorted(rng.sample(range(len(whole)), 2))
    return rng.choice((whole[:first], whole[:first] + whole[last:], whole[:last] + whole[first:])) or b"x"


def packed(whole: bytes, state: dict, rng: random.Random) -> bytes:
    """Its members compressed, one of them a gigabyte of nothing, or twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        if rng.random() < 0.2:
            new.writestr("archive/data/999", bytes(1 << 28))
    return buffer.getvalue()


def odd(whole: bytes, state: dict, rng: random.Random) -> bytes:
    """One value is of another type, or is missing, or is one too many."""
    state = copy.deepcopy(state)
    hostile.odd_entry(state, ODD, rng)
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    return buffer.getvalue()


def foreign(whole: bytes, state: dict, rng: random.Random) -> bytes:
    """No checkpoint of ours: other objects, other wrappings, other files."""
    weights = state["network"]
    content = rng.choice(
        (*ODD, weights, {"state_dict": weights}, {"model": {f"module.{k}": v for k, v in weights.items()}, "best": 1})
    )
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(2000))
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.5)
    return buffer.getvalue()


KINDS = (flipped, unsealed, cut, packed, odd, foreign)


def attack(folder: Path, rounds: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """(how the checkpoints were answered, faults as sentences)."""
    rng, counts, faults = random.Random(seed), collections.Counter(), []
    with hostile.little_memory(faults, LARGE_BYTES):
        whole, state = made(folder)
        path = folder / "attacked" / LAST
        path.parent.mkdir()
        for number in range(rounds):
            kind = KINDS[number % len(KINDS)]
            path.write_bytes(kind(whole, state, rng))
            for read in (trained_model, load_published_checkpoint):
                what = f"{number} {kind.__name__}"
                with hostile.watched(faults, what, SLOW_S):
                    try:
                        read(path, *((rng.choice(("lvs", "ez-vsl", "sspl")),) if read is not trained_model else ()))
                    except AvpipeError as error:
                        counts[f"{kind.__name__}: refused"] += read is trained_model
                        if not str(error).isprintable() or len(str(error)) > 1500:
                            faults.append(f"{what}: a long or odd sentence: {str(error)[:300]!r}")
                    else:
                        counts[f"{kind.__name__}: read"] += 1
                        if kind in (flipped, unsealed, cut, packed) and not same(path, state):
                            faults.append(f"{what}: other weights were imported silence")
    return counts, faults


def same(path: Path, state: dict) -> bool:
    """Whether a file gives the network of before."""
    weights = network_of(load_checkpoint(path)).state_dict()
    return all(torch.equal(value, weights[name]) for name, value in state["network"].items())


if __name__ == "__main__":
    sys.exit(hostile.run(attack, "hostile checkpoints"))
