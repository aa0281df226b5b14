"""A contact sheet: frames with their heat maps and boxes, from the best clip to the worst."""

from pathlib import Path

import matplotlib
import numpy as np

from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.core.text import one_line
from avpipe.train.data.frames import visible_region
from avpipe.train.data.shards import Shards
from avpipe.train.evaluation.eval_set import EvalSet
from avpipe.train.evaluation.evaluate import Score
from avpipe.train.evaluation.metrics import peak
from avpipe.train.evaluation.protocols import PROTOCOLS

COLUMNS, ROWS = 6, 4
OPACITY = 0.45


def write_sheet(score: Score, maps: list[np.ndarray], clips: EvalSet, shards: Shards, title: str, path: Path) -> None:
    """Write a PNG of up to 24 clips, evenly spaced over the ranking by cIoU. `maps`: (H, W) per clip, as scored."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    ranking = sorted(score.scored(), key=lambda row: (-row["ciou"], row["clip_id"]))
    ranks = np.unique(np.linspace(0, len(ranking) - 1, min(COLUMNS * ROWS, len(ranking))).round().astype(int))
    position_of = {clip_id: position for position, clip_id in enumerate(clips.sounding().clip_ids)}
    columns = min(COLUMNS, len(ranks))
    rows = -(-len(ranks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 2.75 * rows + 0.8), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, rank in zip(axes.flat, ranks, strict=False):
        row = ranking[rank]
        position = position_of[row["clip_id"]]
        frame = shards.frame(int(clips.indices[position]))
        protocol = PROTOCOLS[score.protocol]
        _draw(axis, frame, protocol.enlarge(maps[position]), protocol.frame, clips.boxes[position], plt)
        label = one_line(row["label"] or row["clip_id"], 60)
        axis.set_title(f"{label}\ncIoU {row['ciou']:.2f}", fontsize=9, parse_math=False)
    figure.suptitle(one_line(title), fontsize=11, parse_math=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    plt.close(figure)


def _draw(axis, frame, map_224: np.ndarray, view: str, boxes: list[dict], plt) -> None:
    """Draw the frame, the map over the region that the network received, the map's maximum, and the boxes."""
    width, height = frame.size
    left, top, region_w, region_h = visible_region(frame, view)
    axis.imshow(frame, extent=(0, width, height, 0))
    extent = (left, left + region_w, top + region_h, top)
    axis.imshow(map_224, cmap="jet", alpha=OPACITY, extent=extent, interpolation="bilinear")
    axis.set(xlim=(0, width), ylim=(height, 0))
    peak_x, peak_y = peak(map_224)
    axis.plot(left + peak_x * region_w, top + peak_y * region_h, "w+", markersize=9, markeredgewidth=1.5)
    for box in boxes:
        corner = box["xmin"] * width, box["ymin"] * height
        size = (box["xmax"] - box["xmin"]) * width, (box["ymax"] - box["ymin"]) * height
        axis.add_patch(plt.Rectangle(corner, *size, fill=False, edgecolor="white", linewidth=1.5))
