"""Time and memory of scoring as many maps as VGG-SS has clips under all protocols, with groups and intervals.

    python tests/benchmarks/evaluate.py [--clips 5158] [--size 14] [--json FILE]

The boxes are made up, the maps smooth noise around one of them. The run also checks that what the protocols share does
not change a score: a part of the clips is scored again, one protocol at a time.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
from common import cpu_seconds
from rich.console import Console
from rich.table import Table

from avpipe.train.evaluation import evaluate as ev
from avpipe.train.evaluation.eval_set import EvalSet
from avpipe.train.evaluation.protocols import PROTOCOLS

CHECKED = 100


def make_clips(count: int) -> EvalSet:
    """Clips with one box, every seventh with two; 220 classes."""
    draw = np.random.default_rng(0)
    boxes = []
    for number in range(count):
        corners = draw.uniform(0, 0.6, (1 + (number % 7 == 0), 2))
        ends = np.minimum(corners + draw.uniform(0.1, 0.8, corners.shape), 1)
        named = [(0, *corner, *end) for corner, end in zip(corners.tolist(), ends.tolist(), strict=True)]
        boxes.append([dict(zip(("annotator", *ev.CORNERS), box, strict=True)) for box in named])
    ids, labels = [f"clip_{n:06d}" for n in range(count)], [f"class {n % 220}" for n in range(count)]
    return EvalSet(split="synthetic", listed=count, listed_sha256="", clip_ids=ids, labels=labels, boxes=boxes)


def make_maps(clips: EvalSet, size: int) -> np.ndarray:
    """Maps (N, size, size): cosines around 0 that are higher towards the first box."""
    draw = np.random.default_rng(1)
    x = (np.arange(size) + 0.5) / size
    boxes_N4 = np.array([[some[0][corner] for corner in ev.CORNERS] for some in clips.boxes])
    centre_x, centre_y = (boxes_N4[:, :2] + boxes_N4[:, 2:]).T[..., None] / 2
    distance = np.hypot((x - centre_y)[:, :, None], (x - centre_x)[:, None, :])
    return (0.3 - distance + 0.2 * draw.standard_normal(distance.shape)).astype(np.float32)


def plain_loop(clips: EvalSet, maps: np.ndarray, scores: list[ev.Score]) -> tuple[bool, float]:
    """Whether the first clips get the same scores from each protocol by itself, and the milliseconds of one."""
    begin, same = time.perf_counter(), True
    for score in scores:
        protocol = PROTOCOLS[score.protocol]
        for row, boxes, map_HW in zip(score.rows[:CHECKED], clips.boxes, maps, strict=False):
            gt = protocol.annotate([[box[corner] for corner in ev.CORNERS] for box in boxes])
            same &= protocol.ciou(map_HW, gt) == row["ciou"]
    return same, 1000 * (time.perf_counter() - begin) / CHECKED / len(scores)


def main() -> None:
    """Make the maps, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=5158)
    parser.add_argument("--size", type=int, default=14)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clips = make_clips(options.clips)
    maps = make_maps(clips, options.size)
    start, cpu = time.perf_counter(), cpu_seconds()
    scores = ev.evaluate(clips, lambda frame: iter(maps), ev.choose_protocols("all"))
    scored = time.perf_counter()
    summaries = [score.summary() for score in scores]
    end, cpu = time.perf_counter(), cpu_seconds() - cpu
    same, plain_ms = plain_loop(clips, maps, scores)
    result = {
        "clips": len(maps),
        "protocols": len(scores),
        "seconds": round(end - start, 2),
        "of which groups and intervals": round(end - scored, 2),
        "CPU seconds": round(cpu, 2),
        "ms per clip and protocol": round(1000 * (end - start) / len(maps) / len(scores), 3),
        "the same in a plain loop, cIoU alone": round(plain_ms, 3),
        "peak MB of this process": int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024,
        "each protocol alone gives the same": same,
        "cIoU@0.5 under avpipe": round(summaries[0]["ciou"], 3),
        "its interval": [round(bound, 3) for bound in summaries[0]["interval"]["ciou"]],
    }
    table = Table("", "")
    for name, value in result.items():
        table.add_row(name, str(value))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
