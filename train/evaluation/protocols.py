"""Named protocols: how a similarity map becomes a binary prediction, boxes an annotation, and both a cIoU.

A protocol is an entry of `PROTOCOLS`, composed of small functions defined here, in `resize` and in `boxes`. The
published ones reproduce what the evaluators in their repositories compute, flaws included, so that new numbers can be
compared with published ones.

Shapes: H, W rows and columns of a similarity map of any size; K boxes. The grid for all comparisons has 224x224
pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avpipe.train.evaluation import boxes, metrics, resize
from avpipe.train.evaluation.boxes import Fractions
from avpipe.train.evaluation.metrics import HALF, Annotation
from avpipe.train.evaluation.resize import Grid

Mask = NDArray[np.bool_]

# --- scale: map (224, 224) to map (224, 224) --------------------------------------------------------------------------


def min_max(x: Grid) -> Grid:
    """Return the map (224, 224) stretched to [0, 1]; a constant map is returned unchanged."""
    low, high = x.min(), x.max()
    if high == low:
        return x
    stretched = x - low
    stretched /= high - low
    return stretched


def negated_min_max(x: Grid) -> Grid:
    """Return one minus the stretched negative of a map (224, 224), in [0, 1]; a constant c becomes 1 + c."""
    return 1 - min_max(-x)


def unguarded_min_max(x: Grid) -> Grid:
    """Return the map (224, 224) stretched to [0, 1]; a constant map becomes all NaN."""
    low, high = x.min(), x.max()
    with np.errstate(invalid="ignore"):
        return (x - low) / (high - low)


def cosine_to_unit(x: Grid) -> Grid:
    """Return cosines (224, 224), [-1, 1], as values in [0, 1]; SLAVC's (s + 1/τ) / (2/τ) of logits s = x/τ."""
    return (x + 1) / 2


def stretched_cosine(x: Grid) -> Grid:
    """Return cosines (224, 224) mapped to [0, 1], then stretched to [0, 1]; a constant map is not stretched."""
    return min_max(cosine_to_unit(x))


# --- binarise: scaled map (224, 224) to mask (224, 224) ---------------------------------------------------------------


def _middle(x: Grid) -> np.float32:
    """Return the value at index 25,088, from 0, of the 50,176 sorted values: the larger of the two medians."""
    return np.partition(x, HALF, axis=None)[HALF]


def above_middle(x: Grid) -> Mask:
    """Return the pixels above the middle value, and those at 1 or more: 25,087 unless values are tied.

    The published code sets pixels above the threshold to one, then pixels below one to zero, so a pixel that already
    was one remains: a map with more than half of its pixels at the maximum keeps them all; a constant map is all
    foreground if its value is at least 0 and all background otherwise.
    """
    return (x > _middle(x)) | (x >= 1)


def from_middle(x: Grid) -> Mask:
    """Return the pixels at or above the middle value: 25,088 unless values are tied, all of a constant map."""
    return x >= _middle(x)


def from_half(x: Grid) -> Mask:
    """Return the pixels at 0.5 or above, however many; none for a map of NaN."""
    return x >= 0.5


def exact_half(x: Grid) -> Mask:
    """Return exactly the 25,088 largest pixels; among those tied at the limit, the first in row-major order."""
    limit = _middle(x)
    mask = x > limit
    tied = np.flatnonzero(x == limit)
    mask.flat[tied[: HALF - np.count_nonzero(mask)]] = True
    return mask


# --- confidence: map (224, 224) to the model's confidence that something in the frame sounds --------------------------


def largest(x: Grid) -> float:
    """Return the largest value of a map, in the map's units."""
    return float(x.max())


def top_quarter_of_cosines(x: Grid) -> float:
    """Return the mean, in [0, 1], of the largest quarter of the cosines scaled to [0, 1].

    Source: SLAVC, test.py, commit 05b429c.
    """
    quarter = x.size // 4
    return (float(np.partition(x, -quarter, axis=None)[-quarter:].mean(dtype=np.float64)) + 1) / 2


# --- protocols --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """A named recipe from similarity map and boxes to cIoU."""

    name: str
    """The name on the command line and in result files."""
    source: str
    """The publication and code that the recipe follows, in one sentence."""
    frame: Literal["crop", "squash"]
    """Input of the network: the centre crop of the frame, or the entire frame squashed to a square."""
    values: Literal["relative", "cosine"]
    """How map values are read: relative to each other, or as cosines, which mean sounding from 0 up."""
    pixels: int | None
    """Number of the 50,176 pixels that a map without ties predicts, None if it varies; `metrics.ceiling` needs it."""
    boxless: Literal["miss", "apart"]
    """A clip without a usable box counts as a miss, or is left out of every mean and counted separately."""
    weights: resize.Weights
    """Resize: weights (n, 224) of one axis of n samples."""
    scale: Callable[[Grid], Grid]
    """Scaling of the enlarged map."""
    binarise: Callable[[Grid], Mask]
    """Threshold and comparison of the scaled map."""
    confidence: Callable[[Grid], float]
    """Confidence that something sounds, from the enlarged map; used to detect clips without a sounding object."""
    union: Callable[[NDArray[np.float64]], Fractions]
    """Annotation by boxes (K, 4) that count fully (VGG-SS)."""
    votes: Callable[[NDArray[np.float64], NDArray], Fractions]
    """Annotation by boxes (K, 4) of several annotators (K,), who vote (Flickr-SoundNet)."""
    covered: Callable[[NDArray[np.float64], Fractions], Fractions]
    """Fraction of a pixel that is not a false positive when predicted, from boxes (K, 4) and votes (224, 224)."""

    def enlarge(self, map_HW: NDArray[np.floating]) -> Grid:
        """Return a similarity map of any size and range as a float32 map (224, 224); one of that size keeps its values.

        Raises AvpipeError if the map contains NaN or infinity: a network that returns those has no prediction to score.
        """
        return resize.enlarge(map_HW, self.weights)

    def predict(self, map_HW: NDArray[np.floating]) -> Mask:
        """Return the pixels (224, 224) that a similarity map of any size and range marks as sounding.

        Raises AvpipeError if the map contains NaN or infinity.
        """
        return self.foreground(self.enlarge(map_HW))

    def foreground(self, large: Grid) -> Mask:
        """Return the pixels (224, 224) that a map enlarged by `enlarge` marks as sounding."""
        return self.binarise(self.scale(large))

    def annotate(self, boxes_K4: ArrayLike, annotators_K: ArrayLike | None = None) -> Annotation:
        """Return the annotation (224, 224) that results from boxes.

        `boxes_K4` are xmin, ymin, xmax, ymax as fractions of the full frame; they may reach beyond it. Boxes that are
        empty, inverted or contain NaN add nothing, and K may be 0. A protocol that crops the frame does not move the
        boxes with it: neither do the published evaluators.

        Without annotators (VGG-SS) the union of the boxes counts fully. `annotators_K` (Flickr-SoundNet) holds the name
        or number of each box's annotator; what one annotator marked counts half, what two marked counts fully.
        """
        boxes_K4 = np.asarray(boxes_K4, dtype=np.float64).reshape(-1, 4)
        if annotators_K is None:
            weight = self.union(boxes_K4)
            return Annotation(weight, weight)
        weight = self.votes(boxes_K4, np.asarray(annotators_K))
        return Annotation(weight, self.covered(boxes_K4, weight))

    def ciou(self, map_HW: NDArray[np.floating], gt: Annotation) -> float:
        """Return the cIoU, in [0, 1], of a similarity map of any size and range on an annotation (224, 224).

        NaN if the annotation is empty and nothing is predicted. Raises AvpipeError if the map contains NaN or infinity.
        """
        return metrics.ciou(self.predict(map_HW), gt)


_LVS = Protocol(
    name="lvs",
    source="Chen et al., Localizing Visual Sounds the Hard Way (CVPR 2021): test.py, commit 8fe8cbb.",
    frame="crop",
    values="relative",
    pixels=HALF - 1,
    boxless="miss",
    weights=resize.half_pixel_linear,
    scale=negated_min_max,
    binarise=above_middle,
    confidence=largest,
    union=boxes.truncated_union,
    votes=boxes.box_votes,
    covered=boxes.touched,
)
_SSL_TIE = replace(
    _LVS,
    name="ssl-tie",
    source="Liu et al., Exploiting Transformation Invariance and Equivariance (ACM MM 2022): main.py, commit c49e6a9.",
    union=boxes.wrapped_union,
)
_SSPL = replace(
    _LVS,
    name="sspl",
    source="Song et al., Self-Supervised Predictive Learning (CVPR 2022): main.py, commit d1af4c7.",
    pixels=None,
    scale=unguarded_min_max,
    binarise=from_half,
)
_EZ_VSL = replace(
    _LVS,
    name="ez-vsl",
    source="Mo and Morgado, Localizing Visual Sounds the Easy Way (ECCV 2022): test.py, commit 95ff5bf.",
    frame="squash",
    pixels=HALF,
    weights=resize.aligned_linear,
    scale=min_max,
    binarise=from_middle,
)
_EZ_VSL_TRAIN = replace(
    _EZ_VSL,
    name="ez-vsl-train",
    source="The same repository: train.py, whose scores selected the published weights.",
    weights=resize.half_pixel_cubic,
)
_SLAVC = replace(
    _EZ_VSL,
    name="slavc",
    source="Mo and Morgado, A Closer Look at Weakly-Supervised AVSL (NeurIPS 2022): test.py, commit 05b429c.",
    values="cosine",
    pixels=None,
    weights=resize.aligned_cubic,
    scale=cosine_to_unit,
    binarise=from_half,
    confidence=top_quarter_of_cosines,
)
_SLAVC_MEDIAN = replace(
    _SLAVC,
    name="slavc-median",
    source="The same test.py with --relative_prediction, as its scripts call it.",
    pixels=HALF,
    scale=stretched_cosine,
    binarise=from_middle,
)
_AVPIPE = Protocol(
    name="avpipe",
    source="Defined by avpipe: the entire frame, exactly half of the pixels, exact areas of the boxes.",
    frame="squash",
    values="relative",
    pixels=HALF,
    boxless="apart",
    weights=resize.half_pixel_linear,
    scale=min_max,
    binarise=exact_half,
    confidence=largest,
    union=boxes.exact_union,
    votes=boxes.annotator_votes,
    covered=boxes.exact_cover,
)
_ROWS = (_LVS, _SSL_TIE, _SSPL, _EZ_VSL, _EZ_VSL_TRAIN, _SLAVC, _SLAVC_MEDIAN, _AVPIPE)
PROTOCOLS = {protocol.name: protocol for protocol in _ROWS}
DEFAULT = "avpipe"
