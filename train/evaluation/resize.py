"""Enlarge similarity maps to 224x224 as four resizing routines do: linear or cubic, samples as areas or as points.

Shapes: H, W rows and columns of a map; n one of the two. A routine is its weights (n, 224), which turn the n samples of
one axis into 224.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.evaluation.metrics import GRID

Grid = NDArray[np.float32]
Weights = Callable[[int], NDArray[np.float64]]

# The 224 rows in this many pieces; OpenBLAS computes a product of 56x14x224 in one thread.
_PIECES = 4
# Parameter of the cubic kernel, as in torch and OpenCV.
_CUBIC_A = -0.75


@cache
def half_pixel_linear(size: int) -> NDArray[np.float64]:
    """Return the weights (size, 224) of linear enlargement where samples are areas: the outer edges coincide.

    As OpenCV's INTER_LINEAR and torch's bilinear mode with align_corners=False. Shared: do not write to it.
    """
    return _linear(_edges_coincide(size), size)


@cache
def aligned_linear(size: int) -> NDArray[np.float64]:
    """Return the weights (size, 224) of linear enlargement where samples are points: the outer centres coincide.

    As torch's bilinear mode with align_corners=True. Shared: do not write to it.
    """
    return _linear(_centres_coincide(size), size)


@cache
def half_pixel_cubic(size: int) -> NDArray[np.float64]:
    """Return the weights (size, 224) of cubic enlargement where samples are areas; beyond the edge the last repeats.

    As torch's bicubic mode with align_corners=False. Shared: do not write to it.
    """
    return _cubic(_edges_coincide(size), size)


@cache
def aligned_cubic(size: int) -> NDArray[np.float64]:
    """Return the weights (size, 224) of cubic enlargement where samples are points; beyond the edge the last repeats.

    As torch's bicubic mode with align_corners=True. Shared: do not write to it.
    """
    return _cubic(_centres_coincide(size), size)


def enlarge(map_HW: NDArray[np.floating], weights: Weights) -> Grid:
    """Return a similarity map of any size and range as a float32 map (224, 224); one of that size keeps its values.

    Raises AvpipeError if the map contains NaN or infinity: a network that returns those has no prediction to score.
    """
    if not np.isfinite(map_HW).all():
        raise AvpipeError("a similarity map contains NaN or infinity: its checkpoint is damaged or training diverged")
    rows, columns = map_HW.shape
    if (rows, columns) == (GRID, GRID):
        return map_HW.astype(np.float32)
    # Minus its minimum a constant map is all zeros and stays constant to the last bit. Computed in double and then
    # rounded, tied rows of other maps stay tied, too, so that ties are resolved by position on every machine.
    low = float(map_HW.min())
    above_low = map_HW.astype(np.float64) - low
    tall = weights(rows).T @ above_low
    # In pieces: for products this small, distributing them over threads costs more than computing them.
    wide = tall.reshape(_PIECES, GRID // _PIECES, columns) @ weights(columns)
    wide += low
    return wide.reshape(GRID, GRID).astype(np.float32)


def _edges_coincide(size: int) -> NDArray[np.float64]:
    """Return the positions of the 224 centres, in samples from the first sample's centre."""
    return (np.arange(GRID) + 0.5) * size / GRID - 0.5


def _centres_coincide(size: int) -> NDArray[np.float64]:
    return np.arange(GRID) * (size - 1) / (GRID - 1)


def _linear(position: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.maximum(0, 1 - np.abs(position.clip(0, size - 1) - np.arange(size)[:, None]))


def _cubic(position: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    weights = np.zeros((size, GRID))
    first = np.floor(position).astype(int)
    for tap in (first - 1, first, first + 1, first + 2):
        np.add.at(weights, (tap.clip(0, size - 1), np.arange(GRID)), _cubic_kernel(np.abs(position - tap)))
    return weights


def _cubic_kernel(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys's kernel at distances in [0, 2] samples."""
    d, a = distance, _CUBIC_A
    return np.where(d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)
