"""Charts of a report: SVG whose colours the page sets, so that they also work in dark mode.

They contain no names of runs or classes: those are untrusted, and the page escapes them.
"""

import io
import re
from zlib import crc32

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from avpipe.train.evaluation import metrics
from avpipe.train.evaluation.evaluate import Score

MARKERS = "os^DvP"
GLYPHS = "●■▲◆▼✚"
"""The characters for MARKERS in the page's legend."""
# Placeholder colours that become variables of the page's style sheet when the SVG is written.
_INK, _RULE = "#00cd00", "#00cd01"
_RUNS = [f"#00ab{number:02x}" for number in range(len(MARKERS))]
_VARIABLES = {_INK: "var(--ink)", _RULE: "var(--rule)"} | {c: f"var(--run-{n})" for n, c in enumerate(_RUNS)}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
}
_SIZE = (4.4, 2.9)
# Points of a training curve: more than a chart of this width can resolve.
_POINTS = 400


def thresholds(scores: list[Score]) -> str:
    """Plot success against cIoU threshold, 0 to 1, a line per run, with floor and ceiling (of the first run)."""
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axis("cIoU threshold", "fraction of clips that reach it")
        fine = np.linspace(0, 1, 101)
        rows = scores[0].scored()
        for column, line in (("floor_ciou", (0, (5, 2))), ("ceiling_ciou", (0, (1, 1.5)))):
            axis.plot(fine, success_shares([row[column] for row in rows], fine), color=_INK, linestyle=line, lw=1.2)
        for number, score in enumerate(scores):
            shares = success_shares([row["ciou"] for row in score.scored()], fine)
            axis.plot(fine, shares, color=_RUNS[number], marker=MARKERS[number], markevery=10, ms=4, lw=1.6)
        axis.axvline(0.5, color=_RULE, lw=1.5, zorder=0.5)
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        return _svg(figure, "Success against cIoU threshold; the numbers are in the table below it")


def success_shares(cious: list[float], at: np.ndarray) -> np.ndarray:
    """Return the fraction of clips, in [0, 1], whose cIoU is at least each value of `at`; NaN is a miss."""
    return np.array([metrics.success(cious, threshold) for threshold in at])


def by_size(groups: list[dict[str, dict]], floor: dict[str, dict], ceiling: dict[str, dict]) -> str:
    """Plot cIoU@0.5 by size of the boxes: a bar per run, floor and ceiling as lines; groups as in `metrics.grouped`."""
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axis("size of the boxes", "cIoU@0.5")
        names = list(floor)
        width = 0.8 / len(groups)
        for number, of_run in enumerate(groups):
            at = np.arange(len(names)) - 0.4 + (number + 0.5) * width
            heights = [of_run.get(name, {}).get("ciou", 0) for name in names]
            axis.bar(at, heights, 0.86 * width, color=_RUNS[number], alpha=0.75)
            axis.plot(at, heights, color=_RUNS[number], marker=MARKERS[number], ms=5, ls="")
        for x, name in enumerate(names):
            axis.hlines(floor[name]["ciou"], x - 0.45, x + 0.45, _INK, linestyles=(0, (5, 2)), lw=1.2)
            axis.hlines(ceiling[name]["ciou"], x - 0.45, x + 0.45, _INK, linestyles=(0, (1, 1.5)), lw=1.2)
        axis.set_xticks(range(len(names)), [f"{name}\n({floor[name]['clips']:,})" for name in names])
        axis.set(ylim=(0, 1.02))
        axis.grid(axis="x", visible=False)
        return _svg(figure, "cIoU@0.5 by size of the boxes; the numbers are in the table below it")


def training(
    steps: np.ndarray, losses: np.ndarray, epochs: np.ndarray, number: int, measured: list[tuple[float, float]]
) -> str:
    """Plot the loss of one run, raw and smoothed, with a line at the end of each epoch. `number` is the run's index.

    `measured` are step and value of the validation: dots on a separate scale on the right.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axis = _axis("step", "loss")
        axis.grid(axis="x", visible=False)
        ends = steps[1:][np.diff(epochs) > 0]
        for end in ends if len(ends) <= 20 else []:
            axis.axvline(end, color=_RULE, lw=0.8, zorder=0.5)
        keep = np.unique(np.linspace(0, len(steps) - 1, min(_POINTS, len(steps))).astype(int))
        axis.plot(steps[keep], losses[keep], color=_RUNS[number], lw=0.8, alpha=0.45)
        axis.plot(steps[keep], _smoothed(losses)[keep], color=_RUNS[number], lw=1.8)
        if measured:
            scale = axis.twinx()
            scale.plot(*zip(*measured, strict=True), color=_INK, marker=MARKERS[number], ms=4, lw=0.8, ls=":")
            scale.grid(visible=False)
            scale.spines["right"].set_visible(True)
            scale.set_ylabel("validation (dotted)")
        description = f"from {losses[0]:.3f} to {losses[-1]:.3f} in {steps[-1]:,} steps"
        return _svg(figure, f"Training loss, {description}")


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a twentieth of the curve, over fewer values at its ends."""
    kernel = np.ones(max(1, len(values) // 20))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _axis(x: str, y: str):
    # Without pyplot, which would keep a reference to the figure and change the caller's backend.
    figure = Figure(figsize=_SIZE, layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y)
    return figure, axis


def _svg(figure: Figure, description: str) -> str:
    """Return the figure as a scalable element with unique ids and `description` as its accessible label."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    own = f"c{crc32(text.encode()):08x}-"  # ids of several charts on one page must differ
    text = re.sub(r'(?<= id=")|(?<=href="#)|(?<=url\(#)', own, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height|version|xmlns\S*)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{description}">{rest}'
