"""What the attacks on the trainer's files share: broken bytes, odd values, limits of time and memory, the program."""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from thin import patch_networks


def broken(good: bytes, rng: random.Random) -> bytes:
    """Bits are flipped, most of them near the begin, or the end is gone."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 5, 50))):
        data[rng.choice((rng.randrange(len(data)), rng.randrange(min(64, len(data)))))] ^= 1 << rng.randrange(8)
    return bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))]) or b"x"


def odd_entry(content: dict, values: tuple, rng: random.Random, other: str = "other") -> None:
    """One value, however deep, becomes another one, or is missing, or is one too many."""
    place = content
    while True:
        key = rng.choice(list(place) or [""])
        if not (isinstance(place.get(key), dict) and place[key] and rng.random() < 0.7):
            break
        place = place[key]
    if rng.random() < 0.2:
        place.pop(key, None)
    else:
        place[rng.choice((key, key, key, other))] = rng.choice(values)


@contextmanager
def watched(faults: list[str], what: str, slow_s: float) -> Iterator[None]:
    """Whatever is raised within the block, and what takes long, is a fault."""
    begin = time.monotonic()
    try:
        yield
    except BaseException as error:
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        faults.append(f"{what}: {where} {error!r:.300}")
    if time.monotonic() - begin > slow_s:
        faults.append(f"{what}: took {time.monotonic() - begin:.0f} s")


@contextmanager
def little_memory(faults: list[str], most_bytes: int) -> Iterator[None]:
    """The process must not come to hold that much more than before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if taken > most_bytes:
        faults.append(f"it took {taken / 1e9:.1f} GB")


def run(attack: Callable[[Path, int, int], tuple[Counter, list[str]]], what: str, folder: str | None = None) -> int:
    """An attack as a program, on a temporary folder or on the one that it is given under this name."""
    parser = argparse.ArgumentParser(description=what)
    if folder:
        parser.add_argument(folder, type=Path)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    patch_networks(pytest.MonkeyPatch())
    with tempfile.TemporaryDirectory() as temporary:
        counts, faults = attack(getattr(given, folder or "", Path(temporary)), given.rounds, given.seed)
    print(f"{what}, {given.rounds} rounds: {dict(counts)}; {len(faults)} faults", *faults, sep="\n")
    return bool(faults)
