"""Boxes to annotations: unions of one opinion, votes of several annotators, and what no vote is needed for.

Shapes: K boxes, xmin, ymin, xmax, ymax as fractions of the frame; they may reach beyond it. Without area, inverted
or with NaN they add nothing, and K may be 0. Results are shares, in [0, 1], on the grid of 224x224 pixels.
"""

import numpy as np
from numpy.typing import NDArray

from avpipe.train.evaluation.metrics import GRID

Shares = NDArray[np.float64]

# --- union: boxes (K, 4) to the share of each pixel (224, 224) that they cover ----------------------------------------


def _corners(boxes_K4: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return corners (K, 4) truncated to pixels, without boxes that hold NaN."""
    # Two frames away is as far out as any corner can be told apart from; beyond it, int would overflow.
    return (boxes_K4[~np.isnan(boxes_K4).any(axis=1)].clip(-2, 2) * GRID).astype(int)


def truncated_union(boxes_K4: NDArray[np.float64]) -> Shares:
    """Return 1 where a box covers a pixel after it was cut to the frame and its corners truncated to pixels, else 0.

    LVS cuts only negative corners and lets slicing stop at the far edge, EZ-VSL cuts on both sides: the same pixels.
    """
    return wrapped_union(boxes_K4.clip(0, 1))


def wrapped_union(boxes_K4: NDArray[np.float64]) -> Shares:
    """Return 1 where a box covers a pixel after its corners were truncated to pixels, else 0, without cutting it.

    As SSL-TIE paints VGG-SS, a corner left of or above the frame counts from the far edge, as in a Python slice, which
    mostly leaves nothing.
    """
    grid = _blank()
    for xmin, ymin, xmax, ymax in _corners(boxes_K4):
        grid[ymin:ymax, xmin:xmax] = 1
    return grid


def exact_union(boxes_K4: NDArray[np.float64]) -> Shares:
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
    shares = _common_length(y_edges) @ cell_inside @ _common_length(x_edges).T
    shares[shares > 1] = 1  # a pixel cut by several edges is a sum of parts, which may end a last bit above 1
    return shares


def _common_length(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of each of 224 unit intervals each interval between two edges covers: (224, edges - 1)."""
    pixel = np.arange(GRID)[:, None]
    return np.maximum(np.minimum(pixel + 1, edges[1:]) - np.maximum(pixel, edges[:-1]), 0)


def _blank() -> Shares:
    return np.zeros((GRID, GRID))


# --- votes: boxes (K, 4) and who drew each (K,) to the consensus (224, 224), two votes being all ----------------------


def box_votes(boxes_K4: NDArray[np.float64], annotators_K: NDArray) -> Shares:
    """Return half the number of boxes over each pixel, at most 1, whoever drew them.

    As published: an annotator who drew two overlapping boxes votes twice, and negative corners are not cut.
    """
    grid = _blank()
    for xmin, ymin, xmax, ymax in _corners(boxes_K4):
        grid[ymin:ymax, xmin:xmax] += 0.5
    return np.minimum(grid, 1)


def annotator_votes(boxes_K4: NDArray[np.float64], annotators_K: NDArray) -> Shares:
    """Return half the number of annotators whose boxes cover each pixel, at most 1; a part of a pixel is that part."""
    unions = [exact_union(boxes_K4[annotators_K == annotator]) for annotator in np.unique(annotators_K)]
    return np.minimum(sum(unions, start=_blank()) / 2, 1)


# --- covered: boxes (K, 4) and their votes (224, 224) to the share of each pixel that is inside any box ---------------


def touched(boxes_K4: NDArray[np.float64], weight: Shares) -> Shares:
    """Return 1 where there is any vote, else 0: the published [G = 0] turned round."""
    return (weight > 0).astype(np.float64)


def exact_cover(boxes_K4: NDArray[np.float64], weight: Shares) -> Shares:
    """Return the share of each pixel's area inside the union of all boxes."""
    return exact_union(boxes_K4)
