"""Time and memory of ranking as many clips as SSL-TIE's retrieval test has, each against all others.

    python tests/benchmarks/retrieval.py [--clips 20304] [--channels 512] [--threads 2] [--json FILE]

Three kinds of synthetic embeddings: a cloud around each of 35 categories, many copies of few vectors, so that every
ranking is decided by ties, and vectors that are all but equal, as a network gives before training.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from avpipe.train.evaluation.retrieval_scores import RANKS, chance, exact_units, measures, nearest

CATEGORIES = 35
CHECKED = 50


def make(kind: str, clips: int, channels: int) -> tuple[np.ndarray, list[str]]:
    """Vectors (clips, channels) float32 and labels."""
    draw = np.random.default_rng(0)
    number = np.arange(clips) % CATEGORIES
    noise = draw.standard_normal((clips, channels), dtype=np.float32)
    if kind == "copies":
        vectors = noise[draw.integers(0, 100, clips)]
    elif kind == "all but equal":
        vectors = 1 + 1e-4 * noise
    else:
        vectors = 0.3 * draw.standard_normal((CATEGORIES, channels), dtype=np.float32)[number] + noise
    return vectors, [f"category {n}" for n in number]


def as_brute_force(unit: torch.Tensor, found: torch.Tensor) -> bool:
    """Whether the first rankings are those of NumPy with a stable sort of one row at a time."""
    everything = unit.numpy()
    for number in range(CHECKED):
        cosine = everything @ everything[number]
        cosine[number] = -np.inf
        if (np.argsort(-cosine, kind="stable")[:RANKS] != found[number].numpy()).any():
            return False
    return True


def main() -> None:
    """Make the vectors, rank, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=20_304)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for kind in ("categories", "copies", "all but equal"):
        vectors, labels = make(kind, options.clips, options.channels)
        start, cpu = time.perf_counter(), time.process_time()
        unit = exact_units(vectors)
        found = nearest(unit, unit, RANKS, without_own=True)
        scores = measures(found, labels)
        results.append(
            {
                "embeddings": kind,
                "clips": options.clips,
                "threads": options.threads,
                "seconds": round(time.perf_counter() - start, 1),
                "CPU seconds": round(time.process_time() - cpu, 1),
                "peak MB": int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024,
                "P@5": round(scores["P@5"], 4),
                "chance": round(chance(labels, without_own=True)["P@5"], 4),
                "as brute force": as_brute_force(unit, found),
            }
        )
    table = Table(*results[0])
    for result in results:
        table.add_row(*map(str, result.values()))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
