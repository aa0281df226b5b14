"""Detection on sets with silent and mismatched clips: SLAVC's statistics as published, and corrected ones.

A model detects a sound if its confidence reaches a threshold. On a sounding clip that is correct if the cIoU is high
enough, else a false positive; on a negative, where nothing in the frame makes the sound, it is a false positive. The
published code counts a sounding object as missed only if nothing was detected: a detection in the wrong location is not
a miss, so recall is too high. The corrected statistics count it as one.

Shapes: N clips, T thresholds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avpipe.train.evaluation import metrics

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Detections:
    """A model's results on N clips."""

    cious: Floats
    """(N,) cIoU, in [0, 1]; NaN is a miss, and the value of a negative is ignored."""
    confidences: Floats
    """(N,) the model's confidence that something in the frame sounds, in any unit."""
    sounding: NDArray[np.bool_]
    """(N,) whether something in the frame sounds; False for a negative."""

    def of(self, chosen: NDArray) -> "Detections":
        """Return the clips that a mask or indices (N,) select."""
        return Detections(self.cious[chosen], self.confidences[chosen], self.sounding[chosen])


def precision_recall(
    clips: Detections, thresholds_T: Floats, ciou_at: float, misplaced_is_missed: bool
) -> tuple[Floats, Floats]:
    """Return precision (T,) and recall (T,), in [0, 1], of detections whose confidence reaches each threshold.

    A detection is correct if its cIoU is at least `ciou_at`. Precision is 1 if nothing is detected, recall is 1 if
    nothing could be missed. `misplaced_is_missed` is the correction described in the module's docstring.
    """
    clips = clips.of(np.argsort(clips.confidences, kind="stable"))
    correct_N = clips.sounding & (clips.cious >= ciou_at)
    rejected_T = np.searchsorted(clips.confidences, thresholds_T, side="left")
    correct_below_T = np.concatenate([[0], np.cumsum(correct_N)])[rejected_T]
    sounding_below_T = np.concatenate([[0], np.cumsum(clips.sounding)])[rejected_T]
    hits_T = correct_N.sum() - correct_below_T
    detected_T = len(clips.cious) - rejected_T
    findable_T = clips.sounding.sum() if misplaced_is_missed else hits_T + sounding_below_T
    findable_T = np.broadcast_to(findable_T, hits_T.shape)
    precision_T = np.divide(hits_T, detected_T, out=np.ones(len(hits_T)), where=detected_T > 0)
    return precision_T, np.divide(hits_T, findable_T, out=np.ones(len(hits_T)), where=findable_T > 0)


def f1(precision_T: Floats, recall_T: Floats) -> Floats:
    """Return the harmonic mean (T,) of precision and recall, 0 where both are 0."""
    total = precision_T + recall_T
    return np.divide(2 * precision_T * recall_T, total, out=np.zeros(len(total)), where=total > 0)


def published(clips: Detections, size_N: Floats) -> dict:
    """Return the statistics as SLAVC's evaluator computes them, all in [0, 1].

    At the top level: `loc_acc` (fraction of sounding clips with a cIoU above, not at, 0.5), `ap`, `max_f1` (the highest
    of the ten or so that it prints) and `f1_at_half` (at a confidence threshold of 0.5). Under `subsets`, its table for
    all clips, the sounding ones, and these by `size_N`, the pixels of the annotation: at a cIoU of 0.5 and of 0.75
    `precision` of always detecting, `f1` at each tenth of the confidences, `ap`, and `auc` over the sounding clips.
    A value is None if no clip defines it.

    Source: SLAVC, utils.py, commit 05b429c.
    """
    classes_N = metrics.size_classes(size_N)
    members = {"all": np.ones(len(size_N), bool), "visible": clips.sounding}
    members |= {name: clips.sounding & (classes_N == name) for name in metrics.SIZES}
    subsets = {
        f"{name}@{round(100 * at)}": _subset(clips.of(chosen), at)
        for at in (0.5, 0.75)
        for name, chosen in members.items()
    }
    every = subsets["all@50"]
    at_half = f1(*precision_recall(clips, np.array([0.5]), 0.5, misplaced_is_missed=False))
    found_N = clips.cious[clips.sounding] > 0.5
    return {
        "loc_acc": float(found_N.mean()) if found_N.size else None,
        "ap": every["ap"],
        "max_f1": max(every["f1"]) if every["f1"] else None,
        "f1_at_half": float(at_half[0]),
        "subsets": subsets,
    }


def _subset(clips: Detections, ciou_at: float) -> dict:
    count = len(clips.cious)
    if not count:
        return {"precision": None, "f1": None, "ap": None, "auc": None}
    ordered_N = np.sort(clips.confidences)
    always, _ = precision_recall(clips, np.array([-np.inf]), ciou_at, misplaced_is_missed=False)
    tenths = precision_recall(clips, ordered_N[:: max(1, count // 10)], ciou_at, misplaced_is_missed=False)
    return {
        "precision": float(always[0]),
        "f1": f1(*tenths).tolist(),
        "ap": _published_ap(clips, ordered_N, ciou_at),
        "auc": metrics.auc(clips.cious[clips.sounding]) if clips.sounding.any() else None,
    }


def _published_ap(clips: Detections, ordered_N: Floats, ciou_at: float) -> float:
    """Return the area under the envelope of precision, over about 200 steps that omit the first gain of recall."""
    thresholds_T = ordered_N[:-1][:: -max(1, len(ordered_N) // 200)]
    precision_T, recall_T = precision_recall(clips, thresholds_T, ciou_at, misplaced_is_missed=False)
    envelope_T = np.maximum.accumulate(precision_T[::-1])[::-1]
    return float((envelope_T[:-1] * np.diff(recall_T)).sum())


def corrected(clips: Detections) -> dict:
    """Return `loc_acc`, `ap` and `max_f1`, in [0, 1], at a cIoU of 0.5, counting a misplaced detection as a miss, too.

    Every confidence that occurs is a threshold; `max_f1_confidence` is the one with `max_f1`. `ap` is precision
    weighted by gains of recall, without an envelope: scikit-learn's average precision times the recall of always
    detecting. Without a sounding clip all values are None.
    """
    if not clips.sounding.any():
        return {"loc_acc": None, "ap": None, "max_f1": None, "max_f1_confidence": None}
    thresholds_T = np.unique(clips.confidences)[::-1]
    precision_T, recall_T = precision_recall(clips, thresholds_T, 0.5, misplaced_is_missed=True)
    f1_T = f1(precision_T, recall_T)
    best = int(np.argmax(f1_T))
    return {
        "loc_acc": metrics.success(clips.cious[clips.sounding]),
        "ap": float((precision_T * np.diff(recall_T, prepend=0)).sum()),
        "max_f1": float(f1_T[best]),
        "max_f1_confidence": float(thresholds_T[best]),
    }
