"""Named protocols: how a similarity map becomes a binary prediction, boxes an annotation, and both a cIoU.

A protocol is a row of `PROTOCOLS`, put together from the small functions above it; the published ones repeat what the
evaluators of their repositories compute, flaws included, so that old numbers can be compared with new ones.

Shapes: H, W rows and columns of a similarity map of any size; n one of the two; K boxes. The grid on which everything
is compared has 224x224 pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import AvpipeError
from train import metrics
from train.metrics import GRID, HALF, Annotation

Grid = NDArray[np.float32]
Mask = NDArray[np.bool_]

# --- resize: weights (n, 224) that turn n samples of one axis into 224 ------------------------------------------------


def _linear(position: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return weights (size, 224) of linear interpolation at 224 positions, counted in samples from the first centre."""
    return np.maximum(0, 1 - np.abs(position.clip(0, size - 1) - np.arange(size)[:, None]))


@cache
def half_pixel_linear(size: int) -> NDArray[np.float64]:
    """Return the weights (size, 224) of linear enlargement where samples are areas: the outer edges coincide.

    As OpenCV's INTER_LINEAR and torch's bilinear mode with align_corners=False. Shared: do not write to it.
    """
    return _linear((np.arange(GRID) + 0.5) * size / GRID - 0.5, size)


@cache
def aligned_linear(size: int) -> NDArray[np.float64]:
    """Return the weights (size, 224) of linear enlargement where samples are points: the outer centres coincide.

    As torch's bilinear mode with align_corners=True. Shared: do not write to it.
    """
    return _linear(np.arange(GRID) * (size - 1) / (GRID - 1), size)


# --- scale: map (224, 224) to map (224, 224) --------------------------------------------------------------------------


def min_max(x: Grid) -> Grid:
    """Return the map (224, 224) stretched to [0, 1]; a constant map comes back as it is."""
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else x


def negated_min_max(x: Grid) -> Grid:
    """Return one minus the stretched negative of a map (224, 224): [0, 1], but a constant c comes back as 1 + c."""
    return 1 - min_max(-x)


# --- binarise: scaled map (224, 224) to mask (224, 224) ---------------------------------------------------------------


def _middle(x: Grid) -> np.float32:
    """Return the value at place 25,088, counted from 0, of the 50,176 sorted values: the larger of the two medians."""
    return np.partition(x, HALF, axis=None)[HALF]


def above_middle(x: Grid) -> Mask:
    """Return the pixels above the middle value, and those at 1 or more: 25,087 unless values are tied.

    The published code writes ones over what is above the threshold, then zeros over what is below one, so a pixel that
    already was one stays: a map with more than half of its pixels at the maximum keeps them all, a constant map is all
    foreground from 0 up and all background below 0.
    """
    return (x > _middle(x)) | (x >= 1)


def from_middle(x: Grid) -> Mask:
    """Return the pixels at or above the middle value: 25,088 unless values are tied, all of a constant map."""
    return x >= _middle(x)


def exact_half(x: Grid) -> Mask:
    """Return exactly the 25,088 largest pixels; of those tied at the limit, the first in row-major order."""
    limit = _middle(x)
    mask = x > limit
    tied = np.flatnonzero(x == limit)
    mask.flat[tied[: HALF - np.count_nonzero(mask)]] = True
    return mask


# --- union: boxes (K, 4) as fractions of the frame to the share of each pixel (224, 224) that they cover --------------


def _paint(grid: Grid, boxes_K4: NDArray[np.float64]) -> Grid:
    """Add 1 to the grid for every box that covers a pixel once its corners are truncated; a box with NaN adds nothing.

    As in a Python slice, a negative corner counts from the far edge.
    """
    # Two frames away is as far out as any corner can be told apart from; beyond it, int would overflow.
    corners = boxes_K4[~np.isnan(boxes_K4).any(axis=1)].clip(-2, 2) * GRID
    for xmin, ymin, xmax, ymax in corners.astype(int):
        grid[ymin:ymax, xmin:xmax] += 1
    return grid


def truncated_union(boxes_K4: NDArray[np.float64]) -> Grid:
    """Return 1 where a box covers a pixel after it was cut to the frame and its corners truncated to pixels, else 0.

    LVS cuts only negative corners and lets slicing stop at the far edge, EZ-VSL cuts on both sides: the same pixels.
    """
    return np.minimum(_paint(_blank(), boxes_K4.clip(0, 1)), 1)


def exact_union(boxes_K4: NDArray[np.float64]) -> Grid:
    """Return the share, in [0, 1], of each pixel's area that lies inside the union of the boxes, cut to the frame.

    The edges of all boxes cut the frame into a few cells, each wholly inside or outside the union; a pixel's share is
    the area it has in common with the cells inside.
    """
    # Rounded to a billionth of a pixel: an edge meant to lie on the pixel grid then lies on it, and does not touch a
    # row of pixels by the last bit of a float, which would spare them from counting as false positives.
    corners = np.round(boxes_K4.clip(0, 1) * GRID, 9)
    xmin, ymin, xmax, ymax = corners[(corners[:, :2] < corners[:, 2:]).all(axis=1)].T
    if not xmin.size:
        return _blank()
    x_edges, y_edges = np.unique([xmin, xmax]), np.unique([ymin, ymax])
    x_in_box = (x_edges[:-1, None] >= xmin) & (x_edges[1:, None] <= xmax)
    y_in_box = (y_edges[:-1, None] >= ymin) & (y_edges[1:, None] <= ymax)
    cell_inside = (y_in_box[:, None] & x_in_box).any(axis=-1)
    return (_common_length(y_edges) @ cell_inside @ _common_length(x_edges).T).astype(np.float32)


def _common_length(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of each of 224 unit intervals each interval between two edges covers: (224, edges - 1)."""
    pixel = np.arange(GRID)[:, None]
    return np.maximum(np.minimum(pixel + 1, edges[1:]) - np.maximum(pixel, edges[:-1]), 0)


def _blank() -> Grid:
    return np.zeros((GRID, GRID), dtype=np.float32)


# --- votes: boxes (K, 4) and who drew each (K,) to the consensus (224, 224), two votes being all ----------------------


def box_votes(boxes_K4: NDArray[np.float64], annotators_K: NDArray) -> Grid:
    """Return half the number of boxes over each pixel, at most 1, whoever drew them.

    As published: an annotator who drew two overlapping boxes votes twice, and negative corners are not cut.
    """
    return np.minimum(_paint(_blank(), boxes_K4) / 2, 1)


def annotator_votes(boxes_K4: NDArray[np.float64], annotators_K: NDArray) -> Grid:
    """Return half the number of annotators whose boxes cover each pixel, at most 1; a part of a pixel is that part."""
    unions = [exact_union(boxes_K4[annotators_K == annotator]) for annotator in np.unique(annotators_K)]
    return np.minimum(sum(unions, start=_blank()) / 2, 1)


# --- covered: boxes (K, 4) and weights (224, 224) to the share of each pixel that is inside any box -------------------


def touched(boxes_K4: NDArray[np.float64], weight: Grid) -> Grid:
    """Return 1 where there is any weight, else 0: the published [G = 0] turned round."""
    return (weight > 0).astype(np.float32)


def exact_cover(boxes_K4: NDArray[np.float64], weight: Grid) -> Grid:
    """Return the share of each pixel's area inside the union of all boxes."""
    return exact_union(boxes_K4)


# --- protocols --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A named recipe from similarity map and boxes to cIoU."""

    name: str
    """The name on the command line and in result files."""
    source: str
    """Where the recipe is from, in one sentence."""
    frame: Literal["crop", "squash"]
    """What the network sees: the centre crop of the frame, or the whole frame squashed to a square."""
    pixels: int
    """How many of the 50,176 pixels a map without ties predicts; what `metrics.ceiling` needs."""
    boxless: Literal["miss", "apart"]
    """A clip without a usable box counts as a miss, or is left out of every mean and counted apart."""
    weights: Callable[[int], NDArray[np.float64]]
    """Resize: weights (n, 224) of one axis of n samples."""
    scale: Callable[[Grid], Grid]
    """Scaling of the enlarged map."""
    binarise: Callable[[Grid], Mask]
    """Threshold and comparison of the scaled map."""
    union: Callable[[NDArray[np.float64]], Grid]
    """Annotation by boxes (K, 4) that stand for one opinion (VGG-SS)."""
    votes: Callable[[NDArray[np.float64], NDArray], Grid]
    """Annotation by boxes (K, 4) of several annotators (K,) (Flickr-SoundNet)."""
    covered: Callable[[NDArray[np.float64], Grid], Grid]
    """What part of a pixel is no false positive when predicted, by boxes (K, 4) and weights (224, 224)."""

    def enlarge(self, map_HW: NDArray[np.floating]) -> Grid:
        """Return a similarity map of any size and range as a float32 map (224, 224); one of that size keeps its values.

        Raises AvpipeError if the map holds NaN or infinity: a network that gives those has no prediction to score.
        """
        if not np.isfinite(map_HW).all():
            raise AvpipeError("a similarity map holds NaN or infinity: its checkpoint is damaged or training diverged")
        rows, columns = map_HW.shape
        if (rows, columns) == (GRID, GRID):
            return map_HW.astype(np.float32)
        # Without its minimum a constant map is all zeros and stays constant to the last bit. In double, then rounded,
        # so do the tied rows of other maps, and ties fall by position on every machine alike.
        low = float(map_HW.min())
        above_low = map_HW.astype(np.float64) - low
        # einsum, not BLAS: products as small as these cost BLAS more to spread over threads than to compute.
        tall = np.einsum("hi,hw->iw", self.weights(rows), above_low)
        return (np.einsum("iw,wj->ij", tall, self.weights(columns)) + low).astype(np.float32)

    def predict(self, map_HW: NDArray[np.floating]) -> Mask:
        """Return the pixels (224, 224) that a similarity map of any size and range calls sounding.

        Raises AvpipeError if the map holds NaN or infinity.
        """
        return self.binarise(self.scale(self.enlarge(map_HW)))

    def annotate(self, boxes_K4: ArrayLike, annotators_K: ArrayLike | None = None) -> Annotation:
        """Return the annotation (224, 224) that boxes make.

        `boxes_K4` are xmin, ymin, xmax, ymax as fractions of the full frame; they may reach beyond it. Boxes without
        area, inverted or with NaN add nothing, and K may be 0. A protocol that crops the frame does not move the boxes
        with it: the published evaluators do not either.

        Without annotators (VGG-SS) the union of the boxes counts fully. `annotators_K` (Flickr-SoundNet) holds the name
        or number of each box's annotator; what one of them saw counts half, what two saw counts fully.
        """
        boxes_K4 = np.asarray(boxes_K4, dtype=np.float64).reshape(-1, 4)
        if annotators_K is None:
            weight = self.union(boxes_K4)
        else:
            weight = self.votes(boxes_K4, np.asarray(annotators_K))
        return Annotation(weight, self.covered(boxes_K4, weight))

    def ciou(self, map_HW: NDArray[np.floating], gt: Annotation) -> float:
        """Return the cIoU, in [0, 1], of a similarity map of any size and range on an annotation (224, 224).

        NaN if the annotation is empty and nothing is predicted. Raises AvpipeError if the map holds NaN or infinity.
        """
        return metrics.ciou(self.predict(map_HW), gt)


_ROWS = (
    Protocol(
        name="lvs",
        source="Chen et al., Localizing Visual Sounds the Hard Way (CVPR 2021): test.py, commit 8fe8cbb.",
        frame="crop",
        pixels=HALF - 1,
        boxless="miss",
        weights=half_pixel_linear,
        scale=negated_min_max,
        binarise=above_middle,
        union=truncated_union,
        votes=box_votes,
        covered=touched,
    ),
    Protocol(
        name="ez-vsl",
        source="Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022): test.py, commit 95ff5bf.",
        frame="squash",
        pixels=HALF,
        boxless="miss",
        weights=aligned_linear,
        scale=min_max,
        binarise=from_middle,
        union=truncated_union,
        votes=box_votes,
        covered=touched,
    ),
    Protocol(
        name="avpipe",
        source="avpipe's own: the whole frame, exactly half of the pixels, exact areas of the boxes.",
        frame="squash",
        pixels=HALF,
        boxless="apart",
        weights=half_pixel_linear,
        scale=min_max,
        binarise=exact_half,
        union=exact_union,
        votes=annotator_votes,
        covered=exact_cover,
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ROWS}
DEFAULT = "avpipe"
