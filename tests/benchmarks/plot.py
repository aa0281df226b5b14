"""One picture of what the benchmarks found: a panel each, avpipe in colour, all others grey.

    python tests/benchmarks/plot.py bench/ [--out bench/bench.png]

Reads extract.json, load.json, step.json, evaluate.json and shard-write.json; a benchmark that was not run has no panel.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

OURS, OTHERS, INK = "#0b6e99", "#b4b8bd", "#222222"
# Inches of a bar with its share of the gap, and of title and axis of a panel.
BAR_IN, HEAD_IN, WIDTH_IN = 0.27, 1.1, 10.0


@dataclass(frozen=True)
class Panel:
    """The bars of one benchmark, top first: (label, value, text at its end, whether it is avpipe)."""

    title: str
    unit: str
    bars: list[tuple[str, float, str, bool]]


def extract(found: dict) -> Panel:
    """Ratios of CPU time."""
    first = next(iter(found["ratio"]))
    bars = [
        (way, ratio["all"], f"{ratio['all']:.2f}×  ({found['cpu_ms'][way]:.0f} ms a clip)", way == "avpipe")
        for way, ratio in found["ratio"].items()
    ]
    return Panel(f"Extraction of {len(found['clips'])} clips", f"times as fast as {first}, CPU time on one core", bars)


def load(found: dict) -> Panel:
    """Samples a second and core."""
    bars = [
        (way, row["per_s_core"], f"{row['per_s_core']:,}  ({row['ratio']:.2f}×)", way.startswith("avpipe"))
        for way, row in found["ways"].items()
    ]
    unit = f"samples a second and core, {found['cores']} cores; × against {next(iter(found['ways']))}"
    return Panel("Loading", unit, bars)


def step(found: dict) -> Panel:
    """Samples a second of the training step, three bars a method."""
    bars = []
    for name, row in found["methods"].items():
        loading, resident, plain = (row[f"{way}_per_s"] for way in ("loading", "resident", "plain"))
        bars += [
            (f"{name}: with loading", loading, f"{loading:,.1f}  ({row['share_percent']:.0f} % of resident)", True),
            (f"{name}: data resident", resident, f"{resident:,.1f}", True),
            (f"{name}: plain float32 loop", plain, f"{plain:,.1f}", False),
        ]
    unit = f"samples a second, {found['device']}, {found['precision']}, {found['px']} px, batches of {found['batch']}"
    return Panel("Training step", unit, bars)


def evaluate(found: dict) -> Panel:
    """Seconds of scoring."""
    statistics = found["of which groups and intervals"]
    scoring = found["seconds"] - statistics
    bars = [("maps under all protocols", scoring, f"{scoring:.1f} s", True)]
    bars += [("groups and intervals", statistics, f"{statistics:.1f} s", True)]
    return Panel(f"Evaluation of {found['clips']:,} maps", f"seconds, {found['protocols']} protocols", bars)


def shard_write(found: dict) -> Panel:
    """Samples a second into tars."""
    bars = [
        (way, row["per_s"], f"{row['per_s']:,}  ({row['MB_per_s']:,} MB/s)", way == "avpipe")
        for way, row in found["ways"].items()
    ]
    return Panel("Writing shards", "samples a second, one process on one core", bars)


BENCHMARKS: dict[str, Callable[[dict], Panel]] = {
    "extract": extract,
    "load": load,
    "step": step,
    "evaluate": evaluate,
    "shard-write": shard_write,
}


def draw(panels: list[Panel]) -> Figure:
    """The panels below each other, each as high as its bars need."""
    heights = [HEAD_IN + BAR_IN * len(panel.bars) for panel in panels]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.14, w_pad=0.14)
    axes = figure.subplots(len(panels), height_ratios=heights, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        labels, values, texts, ours = zip(*panel.bars, strict=True)
        places = range(len(labels), 0, -1)
        bars = axis.barh(places, values, color=[OURS if own else OTHERS for own in ours], height=0.72)
        axis.bar_label(bars, texts, padding=4, fontsize=9, color=INK)
        axis.set_yticks(places, labels, fontsize=9)
        axis.set_ylim(0.4, len(labels) + 0.6)
        axis.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", color=INK)
        axis.set_xlabel(panel.unit, fontsize=9, loc="left")
        axis.set_xlim(0, 1.35 * max(values))  # room for the texts
        axis.tick_params(axis="x", labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Read what there is, draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="[default: bench.png in the folder]")
    options = parser.parse_args()
    there = {name: options.folder / f"{name}.json" for name in BENCHMARKS}
    panels = [BENCHMARKS[name](json.loads(path.read_text())) for name, path in there.items() if path.exists()]
    if not panels:
        parser.error(f"{options.folder} holds no result of a benchmark; run `make bench`")
    out = options.out or options.folder / "bench.png"
    draw(panels).savefig(out, dpi=120, facecolor="white")
    print(out)


if __name__ == "__main__":
    main()
