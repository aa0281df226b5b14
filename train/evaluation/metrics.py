"""Localisation scores on a 224x224 grid: cIoU and its summaries, the pointing game, the floor and the ceiling.

Shapes: H, W rows and columns of a grid; N clips. A prediction is a boolean grid.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRID = 224
HALF = GRID * GRID // 2

# k/20 rather than multiples of 0.05: the division gives the double nearest to each decimal, and so does the division
# that yields a cIoU, so a clip exactly at a threshold counts as a success.
AUC_THRESHOLDS = np.arange(21) / 20

# Upper limit of each size class, exclusive, in pixels of the grid.
SIZES = {"small": 32**2, "medium": 96**2, "large": 144**2, "huge": math.inf}


@dataclass(frozen=True)
class Annotation:
    """What the boxes of a clip say about each pixel of a grid (H, W). Do not write to its arrays."""

    weight: NDArray[np.float64]
    """What predicting the pixel earns, in [0, 1]; less than 1 where not all annotators agree, or at an edge."""
    covered: NDArray[np.float64]
    """Fraction of the pixel inside any box, in [0, 1], at least `weight`; predicting the rest is a false positive."""

    @cached_property
    def region(self) -> tuple[slice, slice]:
        """The rows and columns outside which nothing is covered."""
        inside = self.covered > 0
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        return tuple(slice(some[0], some[-1] + 1) if some.size else slice(0) for some in (rows, columns))

    @cached_property
    def pixels(self) -> float:
        """The sum of the weights: the number of pixels where all are 1."""
        # Summed as in the score, so that for a perfect prediction hits and this sum agree to the last bit.
        return _sum_of_products(_ones(self.weight.shape)[self.region], self.weight[self.region])

    @cached_property
    def covered_pixels(self) -> int:
        """Number of pixels that are covered at least partly."""
        return np.count_nonzero(self.covered[self.region] > 0)

    @cached_property
    def full_weight_pixels(self) -> int:
        """Number of pixels with weight 1."""
        return np.count_nonzero(self.weight[self.region] == 1)

    @cached_property
    def extent(self) -> float:
        """The covered area in pixels; partly covered pixels count in proportion."""
        return float(self.covered[self.region].sum())


def ciou(prediction: NDArray[np.bool_], gt: Annotation) -> float:
    """Return the consensus intersection over union of one clip, in [0, 1].

    `prediction` (H, W) is P of the score Σ(P·G) / (ΣG + Σ(P·(1 - C))), G the weights, C the covered fractions. Where
    boxes end at pixel edges C is 0 or 1, and the last term is the published Σ(P·[G = 0]). Without annotation the score
    is 0 if anything is predicted, and NaN (0/0) otherwise.

    Source: Senocak et al., "Learning to Localize Sound Source in Visual Scenes" (CVPR 2018); LVS `utils.py`.
    """
    predicted = prediction[gt.region].astype(np.float64)
    hits = _sum_of_products(predicted, gt.weight[gt.region])
    rightly = hits if gt.covered is gt.weight else _sum_of_products(predicted, gt.covered[gt.region])
    total = gt.pixels + np.count_nonzero(prediction) - rightly
    return float(hits / total) if total else float("nan")


@cache
def _ones(shape: tuple[int, int]) -> NDArray[np.float64]:
    return np.ones(shape)


def _sum_of_products(one_HW: NDArray[np.float64], other_HW: NDArray[np.float64]) -> float:
    # Row by row: for products of entire grids BLAS would spend more on threads than on the computation.
    return float(np.vecdot(one_HW, other_HW).sum())


def success(cious: ArrayLike, threshold: float = 0.5) -> float:
    """Return the fraction, in [0, 1], of N clips whose cIoU is at least `threshold`; "cIoU@0.5" in the papers.

    A NaN counts as a miss. Without clips the result is NaN.
    """
    reached_N = np.asarray(cious, dtype=np.float64) >= threshold
    return float(reached_N.mean()) if reached_N.size else float("nan")


def auc(cious: ArrayLike) -> float:
    """Return the area, in [0, 1], under the success rate of N clips over the thresholds 0, 0.05, ..., 1 (trapezoid).

    A NaN is a miss at every threshold, 0 included. Without clips the result is NaN.

    Source: the published evaluators of LVS, EZ-VSL and SSL-TIE, which agree.
    """
    shares = [success(cious, threshold) for threshold in AUC_THRESHOLDS]
    return float(np.trapezoid(shares, AUC_THRESHOLDS))


def summarise(cious: ArrayLike) -> dict[str, float]:
    """Return the two numbers of every results table for N clips: `ciou` (success at 0.5) and `auc`, both in [0, 1]."""
    return {"ciou": success(cious), "auc": auc(cious)}


def mean(cious: ArrayLike) -> float:
    """Return the mean cIoU, in [0, 1], of N clips without those that are NaN; NaN if none is left."""
    cious_N = np.asarray(cious, dtype=np.float64)
    known_N = cious_N[~np.isnan(cious_N)]
    return float(known_N.mean()) if known_N.size else float("nan")


def grouped(groups: Sequence[Hashable], cious: ArrayLike) -> dict[str, dict]:
    """Return for each group, in sorted order, the number of `clips`, `ciou` (success at 0.5) and `mean`.

    `groups` names the group of each of N clips; a clip whose group is None is in no group.
    """
    members: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, np.asarray(cious, dtype=np.float64).tolist(), strict=True):
        members.setdefault(group, []).append(value)
    members.pop(None, None)
    return {
        str(group): {"clips": len(some), "ciou": success(some), "mean": mean(some)}
        for group, some in sorted(members.items())
    }


def size_classes(pixels: ArrayLike) -> NDArray[np.str_]:
    """Return the size class (N,) in SIZES of annotations of `pixels` (N,), which may be fractional.

    Source: SLAVC, utils.py, whose limits are 32, 96 and 144 squared.
    """
    limits = list(SIZES.values())[:-1]
    return np.array(list(SIZES))[np.searchsorted(limits, np.asarray(pixels, dtype=np.float64), side="right")]


def pointing(map_HW: NDArray[np.floating], gt: Annotation) -> bool:
    """Return whether the maximum of a map is inside an annotation of the same shape (the pointing game).

    Among equal maxima the first in row-major order is taken.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016), without its margin.
    """
    return bool(gt.weight.flat[np.argmax(map_HW)] > 0)


def peak(map_HW: NDArray[np.floating]) -> tuple[float, float]:
    """Return (x, y) of the maximum of a map, as fractions of its width and height; ties as in `pointing`."""
    row, column = np.unravel_index(np.argmax(map_HW), map_HW.shape)
    return (column + 0.5) / map_HW.shape[1], (row + 0.5) / map_HW.shape[0]


@cache
def centre_map() -> NDArray[np.float32]:
    """Return the uninformed map (224, 224): it falls from 1 at the centre of the frame to -1 at the corners.

    It is 0 on the circle that halves the frame and linear on either side of it. So its larger half, its values above
    the middle of its range and its values above 0 are all the disc that covers half the frame: every protocol's floor.
    The array is shared and read-only.
    """
    offset = np.abs(np.arange(GRID) - (GRID - 1) / 2)
    distance = np.hypot(offset[:, None], offset)
    halving = np.partition(distance, HALF - 1, axis=None)[HALF - 1]
    centre = np.interp(distance, [distance.min(), halving, distance.max()], [1, 0, -1]).astype(np.float32)
    centre.setflags(write=False)
    return centre


def ceiling(gt: Annotation, pixels: int | None) -> float:
    """Return the highest cIoU, in [0, 1], of any prediction of exactly `pixels` pixels on an annotation (H, W).

    None allows any number of pixels; fully covered ones can then be predicted without error, and only pixels cut by
    the edge of a box or of a vote keep the ceiling below 1. If `pixels` fully covered pixels exist there is no error
    either; if `pixels` is enough for all covered pixels the best prediction includes them all. In between the best
    choice is found by Dinkelbach's method for ratios: choose the pixels of largest gain at the current ratio until the
    ratio no longer changes. An empty annotation gives 0, or NaN if `pixels` is 0.

    Raises ValueError if `pixels` is negative or the grid has fewer pixels.
    """
    if pixels is not None and not 0 <= pixels <= gt.weight.size:
        raise ValueError(f"cannot predict {pixels} of {gt.weight.size} pixels")
    if not gt.pixels:
        return float("nan") if pixels == 0 else 0.0
    if pixels is None and gt.full_weight_pixels == gt.covered_pixels:
        return 1.0
    if pixels is not None and pixels >= gt.covered_pixels:
        return gt.pixels / (gt.pixels + pixels - gt.extent)
    if pixels is not None and pixels <= gt.full_weight_pixels:
        return pixels / gt.pixels
    weight, covered = gt.weight[gt.region], gt.covered[gt.region]
    inside = covered > 0
    return _best_ratio(weight[inside], covered[inside], gt.pixels, pixels)


def _best_ratio(weight_N: NDArray, covered_N: NDArray, total: float, pixels: int | None) -> float:
    """Return the highest hits / (total + false positives) over choices among N pixels, by Dinkelbach's method."""
    best, ratio = -1.0, 0.0
    while ratio > best:
        best = ratio
        gain = weight_N - best * (1 - covered_N)
        if pixels is None:
            chosen = np.flatnonzero(gain > 0)
        else:
            chosen = np.argpartition(gain, gain.size - pixels)[gain.size - pixels :]
        ratio = float(weight_N[chosen].sum() / (total + (1 - covered_N[chosen]).sum()))
    return best
