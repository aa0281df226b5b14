"""Scores of localisation on a 224x224 grid: cIoU and its summaries, the pointing game, the floor and the ceiling.

Shapes: H, W rows and columns of a grid; N clips. A prediction is a boolean grid.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

GRID = 224
HALF = GRID * GRID // 2

# k/20 rather than multiples of 0.05: the division gives the double nearest to each decimal, and so does the division
# that makes a cIoU, so a clip that lies exactly on a threshold counts.
AUC_THRESHOLDS = np.arange(21) / 20


class Annotation(NamedTuple):
    """What the boxes of a clip say of each pixel of a grid (H, W)."""

    weight: NDArray[np.floating]
    """What predicting the pixel earns, in [0, 1]; less than 1 where not all annotators agree, or at an edge."""
    covered: NDArray[np.floating]
    """Share of the pixel inside any box, in [0, 1], at least `weight`; predicting the rest is a false positive."""


def ciou(prediction: NDArray[np.bool_], gt: Annotation) -> float:
    """Return the consensus intersection over union of one clip, in [0, 1].

    `prediction` (H, W) is P of the score Σ(P·G) / (ΣG + Σ(P·(1 - C))), G the weights, C what is covered. Where boxes
    end at pixels C is 0 or 1, and the last term is the published Σ(P·[G = 0]). Without annotation the score is 0 if
    anything is predicted, and NaN (0/0) otherwise.

    Source: Senocak et al., "Learning to Localize Sound Source in Visual Scenes" (CVPR 2018); LVS `utils.py`.
    """
    hits = gt.weight[prediction].sum(dtype=np.float64)
    false_positives = np.count_nonzero(prediction) - gt.covered[prediction].sum(dtype=np.float64)
    total = gt.weight.sum(dtype=np.float64) + false_positives
    return float(hits / total) if total else float("nan")


def success(cious: ArrayLike, threshold: float = 0.5) -> float:
    """Return the share, in [0, 1], of N clips whose cIoU is at least `threshold`; "cIoU@0.5" in the papers.

    A NaN counts as a miss. No clips give NaN.
    """
    reached_N = np.asarray(cious, dtype=np.float64) >= threshold
    return float(reached_N.mean()) if reached_N.size else float("nan")


def auc(cious: ArrayLike) -> float:
    """Return the area, in [0, 1], under the success share of N clips over the thresholds 0, 0.05, ..., 1 (trapezoid).

    A NaN is a miss at every threshold, 0 included. No clips give NaN.

    Source: the published evaluators of LVS, EZ-VSL and SSL-TIE, which agree.
    """
    shares = [success(cious, threshold) for threshold in AUC_THRESHOLDS]
    return float(np.trapezoid(shares, AUC_THRESHOLDS))


def summarise(cious: ArrayLike) -> dict[str, float]:
    """Return the two numbers of every results table for N clips: `ciou` (share at 0.5) and `auc`, both in [0, 1]."""
    return {"ciou": success(cious), "auc": auc(cious)}


def pointing(map_HW: NDArray[np.floating], gt: Annotation) -> bool:
    """Return whether the maximum of a map lies inside an annotation of the same shape (the pointing game).

    Of several equal maxima the first in row-major order is taken.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop" (ECCV 2016), without its margin.
    """
    return bool(gt.weight.flat[np.argmax(map_HW)] > 0)


@cache
def centre_map() -> NDArray[np.float32]:
    """Return the map (224, 224) that knows nothing: 1 at the centre of the frame, falling linearly to 0 at the corners.

    Its larger half is the disc in the middle of the frame that covers half of it, the floor of every half-area
    protocol. The array is shared and read-only.
    """
    offset = np.abs(np.arange(GRID) - (GRID - 1) / 2)
    distance = np.hypot(offset[:, None], offset)
    centre = (1 - distance / distance[0, 0]).astype(np.float32)
    centre.setflags(write=False)
    return centre


def ceiling(gt: Annotation, pixels: int) -> float:
    """Return the highest cIoU, in [0, 1], of any prediction of exactly `pixels` pixels on an annotation (H, W).

    With room for all covered pixels the best prediction takes them all. With less room the best choice is found by
    Dinkelbach's method for ratios: choose the pixels of largest gain at the present ratio until the ratio stays.
    Nothing to find gives 0, and NaN if nothing is predicted either.

    Raises ValueError if the grid has fewer than `pixels` pixels or `pixels` is negative.
    """
    if not 0 <= pixels <= gt.weight.size:
        raise ValueError(f"cannot predict {pixels} of {gt.weight.size} pixels")
    inside = gt.covered > 0
    weight, covered = gt.weight[inside].astype(np.float64), gt.covered[inside].astype(np.float64)
    total = weight.sum()
    if pixels == 0 and total:
        return 0.0
    if pixels >= weight.size:
        denominator = total + pixels - covered.sum()
        return float(total / denominator) if denominator else float("nan")
    best = -1.0
    ratio = 0.0
    while ratio > best:
        best = ratio
        chosen = np.argpartition(weight + best * covered, weight.size - pixels)[weight.size - pixels :]
        ratio = weight[chosen].sum() / (total + pixels - covered[chosen].sum())
    return float(best)
