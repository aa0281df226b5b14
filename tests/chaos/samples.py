"""Members of a sample of other types, sizes and forms than avpipe makes: left out by name, in training and evaluation.

    python tests/chaos/samples.py SHARDS --rounds 400 --seed 0

SHARDS is a folder of shards with frames, sound and `logspec`.
"""

import collections
import io
import json
import random
import struct
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import hostile
import numpy as np
import soundfile as sf
import torch
from hostile import broken
from PIL import Image

from avpipe.pipeline.features.specs import SPECS
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.mixing import read_window
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import DamagedError, Shards
from avpipe.train.data.training_samples import TrainingSamples, batches
from avpipe.train.evaluation.eval_set import clips_of_shards
from avpipe.train.evaluation.predict import network_maps
from avpipe.train.models.baselines import random_init
from avpipe.train.reports.html.gallery import sound_uri

FEATURE, MEMBER, PX = "logspec", "logspec.npy", 32
SLOW_S, LARGE_BYTES = 10.0, 1_500_000_000
TYPES = ("f8", "g", "u1", "u2", "u8", "i4", ">f2", ">f4", "c16", "?", "M8[s]", "S3", "U2", "V7", "f4,i2", "m8[ns]")


class Changed(Shards):
    """Shards of which one member of one sample has other bytes."""

    def view(self, number: int, member: str) -> memoryview:
        """As of shards."""
        if (number, member) == self.place:
            return memoryview(self.data)
        return super().view(number, member)


def npy(good: bytes, rng: random.Random) -> bytes:
    """An array of another type, shape, order or version."""
    spec, buffer = SPECS[FEATURE], io.BytesIO()
    kind = rng.randrange(6)
    if kind == 0:
        np.save(buffer, np.zeros(spec.shape, np.dtype(rng.choice(TYPES))))
    elif kind == 1:
        np.save(buffer, np.zeros(rng.choice(((0,), (), (1, *spec.shape), spec.shape[::-1], (10**7,))), np.float16))
    elif kind == 2:
        np.save(buffer, np.full(spec.shape, rng.choice((np.nan, np.inf, -np.inf)), np.float16))
    elif kind == 3:
        np.save(buffer, np.asfortranarray(np.ones(spec.shape, np.float16)))
    elif kind == 4:
        shape = rng.choice(("(999999999999, 9)", "(-1, 9)", f"({10**30},)", "((1,),)", "None", "(1e3,)", "(257, 300"))
        head = f"{{'descr': '{rng.choice(('<f2', '|O', '<V0', 'x'))}', 'fortran_order': False, 'shape': {shape}, }}\n"
        buffer.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + bytes(100))
    else:
        return broken(good, rng)
    return buffer.getvalue()


def jpeg(good: bytes, rng: random.Random) -> bytes:
    """A picture of another size, mode or kind."""
    kind, buffer = rng.randrange(4), io.BytesIO()
    if kind == 0:
        size = rng.choice(((1, 1), (1, 65000), (65000, 1), (2, 3), (7000, 5000), (64, 1)))
        Image.new(rng.choice(("RGB", "L", "CMYK")), size).save(buffer, "JPEG")
    elif kind == 1:
        at = next(n for n in range(2, len(good)) if good[n] == 0xFF and good[n + 1] in (0xC0, 0xC2)) + 5
        return good[:at] + struct.pack(">HH", rng.randrange(65536), rng.randrange(65536)) + good[at + 4 :]
    elif kind == 2:
        Image.new("RGB", (9, 9)).save(buffer, rng.choice(("PNG", "BMP", "GIF")))
    else:
        return broken(good, rng)
    return buffer.getvalue()


def flac(good: bytes, rng: random.Random) -> bytes:
    """A sound of other channels or length, or whose header claims days."""
    kind, buffer = rng.randrange(4), io.BytesIO()
    if kind == 0:
        sf.write(buffer, np.zeros((50, rng.choice((1, 2, 8))), np.int16), 16_000, format="FLAC")
    elif kind == 1:
        return good[:21] + bytes([good[21] | 0x0F]) + b"\xff\xff\xff\xff" + good[26:]
    elif kind == 2:
        sf.write(buffer, np.zeros(rng.choice((0, 1, 40_000_000)), np.int16), 16_000, format="FLAC")
    else:
        return broken(good, rng)
    return buffer.getvalue()


def meta(good: bytes, rng: random.Random) -> bytes:
    """meta.json with a value of another type, or none at all."""
    odd = rng.choice((None, True, "1", [], {}, -5, 1e300, 10**400, float("nan"), float("inf")))
    if rng.random() < 0.3:
        return rng.choice(
            (b"", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, json.dumps(odd).encode(), broken(good, rng))
        )
    content = json.loads(good)
    content[rng.choice(sorted(content))] = odd
    return json.dumps(content).encode()


KINDS = {MEMBER: npy, "frame.jpg": jpeg, "audio.flac": flac, "meta.json": meta}


def trained(shards: Shards, damaged: list) -> dict[int, torch.Tensor]:
    """What a training reads of the first eight samples, by their numbers."""
    samples = TrainingSamples(shards=shards, feature=FEATURE, image_px=PX, seed=0)
    plan = BatchPlan(indices=np.arange(8), batch_size=8, world_size=1, epochs=1, seed=0)
    (batch,) = batches(samples, plan, 0, range(1), 2, damaged.append)
    return {int(n): batch["spec"][place] for place, n in enumerate(batch["index"])}


def attack(folder: Path, rounds: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """(how the members were answered, faults as sentences)."""
    rng, counts, faults = random.Random(seed), collections.Counter(), []
    with hostile.little_memory(faults, LARGE_BYTES):
        whole = open_shards(folder)
        expected, network = trained(whole, []), random_init()[1]
        for count in range(rounds):
            member, number = sorted(KINDS)[count % len(KINDS)], rng.randrange(8)
            shards = Changed(**{field.name: getattr(whole, field.name) for field in fields(Shards)})
            shards.place, shards.data = (number, member), KINDS[member](whole.read(number, member), rng)
            what = f"{count} {member}"
            with hostile.watched(faults, what, SLOW_S):
                counts[f"{member}: {read_all(shards, network, expected, what, faults)}"] += 1
    return counts, faults


def read_all(shards: Changed, network: torch.nn.Module, expected: dict, what: str, faults: list[str]) -> str:
    """Read the changed shards in every way; returns whether the changed sample was left out or read."""
    (number, member), damaged, lost = shards.place, [], {}
    found, clips = trained(shards, damaged), clips_of_shards(shards)
    some = clips.at([place for place, n in enumerate(clips.indices) if n < 8])
    maps = list(network_maps(network, shards, some, FEATURE, PX, 0, lost)("crop"))
    for read in (partial(read_window, shards, number, FEATURE), partial(sound_uri, shards, number)):
        try:
            read()
        except DamagedError as error:
            damaged.append(error)
    if {error.clip_id for error in damaged} - {shards.clip_ids[number]} or not np.isfinite(maps).all():
        faults.append(f"{what}: another clip was named, or a map is not finite")
    if any(not torch.equal(found[n], expected[n]) for n in range(8) if n != number):
        faults.append(f"{what}: another sample came out otherwise")
    if member in (MEMBER, "frame.jpg") and (number in found) == bool(lost):
        faults.append(f"{what}: training and evaluation do not agree")
    return "left out" if damaged else "read"


if __name__ == "__main__":
    sys.exit(hostile.run(attack, "hostile samples", "shards"))
