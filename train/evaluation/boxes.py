"""From boxes to annotations: the union of boxes, the votes of several annotators, and the area that any box covers.

Shapes: K boxes, xmin, ymin, xmax, ymax as fractions of the frame; they may reach beyond it. Boxes that are empty,
inverted or contain NaN add nothing, and K may be 0. Results are fractions, in [0, 1], on the grid of 224x224 pixels.
"""

import numpy as np
from numpy.typing import NDArray

from avpipe.train.evaluation.metrics import GRID

Fractions = NDArray[np.float64]

# --- union: boxes (K, 4) to the fraction of each pixel (224, 224) that they cover -------------------------------------


def _corners(boxes_K4: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return corners (K, 4) truncated to pixels, without the boxes that contain NaN."""
    # Clipping at two frames changes no result and keeps the conversion to int from overflowing.
    return (boxes_K4[~np.isnan(boxes_K4).any(axis=1)].clip(-2, 2) * GRID).astype(int)


def truncated_union(boxes_K4: NDArray[np.float64]) -> Fractions:
    """Return 1 where a box, clipped to the frame and with its corners truncated to pixels, covers a pixel, else 0.

    LVS clips only negative corners and lets slicing stop at the far edge, EZ-VSL clips both sides: the same pixels.
    """
    return wrapped_union(boxes_K4.clip(0, 1))


def wrapped_union(boxes_K4: NDArray[np.float64]) -> Fractions:
    """Return 1 where a box, its corners truncated to pixels but not clipped to the frame, covers a pixel, else 0.

    As in SSL-TIE's evaluation of VGG-SS, a corner left of or above the frame counts from the far edge, as in a Python
    slice, which mostly leaves nothing.
    """
    grid = _blank()
    for xmin, ymin, xmax, ymax in _corners(boxes_K4):
        grid[ymin:ymax, xmin:xmax] = 1
    return grid


def exact_union(boxes_K4: NDArray[np.float64]) -> Fractions:
    """Return the fraction, in [0, 1], of each pixel's area inside the union of the boxes clipped to the frame.

    The edges of all boxes divide the frame into a few cells, each entirely inside or outside the union; a pixel's
    fraction is the area that it shares with the cells inside.
    """
    # Rounded to a billionth of a pixel: an edge meant to coincide with the pixel grid then does, instead of touching
    # the next row of pixels by the last bit of a float, which would keep them from counting as false positives.
    corners = np.round(boxes_K4.clip(0, 1) * GRID, 9)
    xmin, ymin, xmax, ymax = corners[(corners[:, :2] < corners[:, 2:]).all(axis=1)].T
    if not xmin.size:
        return _blank()
    x_edges, y_edges = np.unique([xmin, xmax]), np.unique([ymin, ymax])
    x_in_box = (x_edges[:-1, None] >= xmin) & (x_edges[1:, None] <= xmax)
    y_in_box = (y_edges[:-1, None] >= ymin) & (y_edges[1:, None] <= ymax)
    cell_inside = (y_in_box[:, None] & x_in_box).any(axis=-1)
    covered = _common_length(y_edges) @ cell_inside @ _common_length(x_edges).T
    covered[covered > 1] = 1  # a pixel cut by several edges is a sum, which rounding may leave slightly above 1
    return covered


def _common_length(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the length (224, edges - 1) that each of 224 unit intervals shares with each interval between edges."""
    pixel = np.arange(GRID)[:, None]
    return np.maximum(np.minimum(pixel + 1, edges[1:]) - np.maximum(pixel, edges[:-1]), 0)


def _blank() -> Fractions:
    return np.zeros((GRID, GRID))


# --- votes: boxes (K, 4) and their annotators (K,) to the consensus (224, 224); two votes give the full weight --------


def box_votes(boxes_K4: NDArray[np.float64], annotators_K: NDArray) -> Fractions:
    """Return half the number of boxes over each pixel, at most 1, regardless of who drew them.

    As published: an annotator who drew two overlapping boxes votes twice, and negative corners are not clipped.
    """
    grid = _blank()
    for xmin, ymin, xmax, ymax in _corners(boxes_K4):
        grid[ymin:ymax, xmin:xmax] += 0.5
    return np.minimum(grid, 1)


def annotator_votes(boxes_K4: NDArray[np.float64], annotators_K: NDArray) -> Fractions:
    """Return half the number of annotators whose boxes cover each pixel, at most 1; partial cover counts as such."""
    unions = [exact_union(boxes_K4[annotators_K == annotator]) for annotator in np.unique(annotators_K)]
    return np.minimum(sum(unions, start=_blank()) / 2, 1)


# --- covered: boxes (K, 4) and their votes (224, 224) to the fraction of each pixel that is inside any box ------------


def touched(boxes_K4: NDArray[np.float64], weight: Fractions) -> Fractions:
    """Return 1 where there is any vote, else 0: the complement of the published [G = 0]."""
    return (weight > 0).astype(np.float64)


def exact_cover(boxes_K4: NDArray[np.float64], weight: Fractions) -> Fractions:
    """Return the fraction of each pixel's area inside the union of all boxes."""
    return exact_union(boxes_K4)
