"""Detection statistics against plain loops over clips, scikit-learn, and cases with known answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from avpipe.train.evaluation import slavc

CLIPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 0.5, 0.6, 0.75, 0.9, float("nan")]),
        st.sampled_from([0.1, 0.4, 0.5, 0.8]),
        st.booleans(),
    ),
    min_size=1,
    max_size=30,
)


def detections(clips) -> slavc.Detections:
    ciou, confidence, sounding = (np.array(column) for column in zip(*clips, strict=True))
    return slavc.Detections(ciou, confidence, sounding.astype(bool))


def counts_by_loop(clips, threshold, at, misplaced_is_missed):
    hits = false = missed = 0
    for ciou, confidence, sounding in clips:
        detected, right = confidence >= threshold, ciou >= at
        hits += detected and sounding and right
        false += detected and not (sounding and right)
        missed += sounding and not (detected and right if misplaced_is_missed else detected)
    return hits, false, missed


@given(CLIPS, st.sampled_from([0.5, 0.75]), st.booleans())
def test_precision_and_recall_are_those_of_counting(clips, at, misplaced_is_missed):
    thresholds = np.array([-np.inf, 0.1, 0.45, 0.5, 0.8, 2.0])
    found = slavc.precision_recall(detections(clips), thresholds, at, misplaced_is_missed)
    for threshold, precision, recall in zip(thresholds, *found, strict=True):
        hits, false, missed = counts_by_loop(clips, threshold, at, misplaced_is_missed)
        assert precision == (hits / (hits + false) if hits + false else 1)
        assert recall == (hits / (hits + missed) if hits + missed else 1)


def published_ap_by_loop(clips, at):
    """As the published code goes about it, in our own words."""
    confidences = sorted(confidence for _, confidence, _ in clips)
    points = []
    for threshold in confidences[:-1][:: -max(1, len(clips) // 200)]:
        hits, false, missed = counts_by_loop(clips, threshold, at, False)
        points.append((hits / (hits + false) if hits + false else 1, hits / (hits + missed) if hits + missed else 1))
    best = [max(precision for precision, _ in points[place:]) for place in range(len(points))]
    return sum(best[place] * (points[place + 1][1] - points[place][1]) for place in range(len(points) - 1))


@given(CLIPS)
def test_published_average_precision(clips):
    statistics = slavc.published(detections(clips), np.full(len(clips), 100.0))
    assert statistics["ap"] == pytest.approx(published_ap_by_loop(clips, 0.5))
    sounding = [clip for clip in clips if clip[2]]
    if sounding:
        assert statistics["subsets"]["small@75"]["ap"] == pytest.approx(published_ap_by_loop(sounding, 0.75))
        assert statistics["loc_acc"] == pytest.approx(np.mean([ciou > 0.5 for ciou, _, _ in sounding]))


def test_published_average_precision_skips_confidences_of_long_lists():
    draw = np.random.default_rng(0)
    clips = list(zip(draw.random(850), draw.random(850), draw.random(850) < 0.7, strict=True))
    assert slavc.published(detections(clips), np.ones(850))["ap"] == pytest.approx(published_ap_by_loop(clips, 0.5))


@given(CLIPS)
def test_corrected_average_precision_is_scikit_learns_times_what_can_be_found(clips):
    ciou, confidence, sounding = (np.array(column) for column in zip(*clips, strict=True))
    right = sounding & (ciou >= 0.5)
    statistics = slavc.corrected(detections(clips))
    if not sounding.any():
        assert set(statistics.values()) == {None}
        return
    expected = average_precision_score(right, confidence) * right.sum() / sounding.sum() if right.any() else 0
    assert statistics["ap"] == pytest.approx(expected)
    f1 = {}
    for threshold in set(confidence):
        hits, false, missed = counts_by_loop(clips, threshold, 0.5, True)
        f1[threshold] = 2 * hits / (2 * hits + false + missed)
    assert statistics["max_f1"] == pytest.approx(max(f1.values()))
    assert f1[statistics["max_f1_confidence"]] == pytest.approx(max(f1.values()))


def test_subsets_without_clips_are_undefined():
    subsets = slavc.published(detections([(0.9, 0.8, True), (0.0, 0.2, False)]), np.array([30_000.0, 0]))["subsets"]
    assert subsets["small@50"] == {"precision": None, "f1": None, "ap": None, "auc": None}
    assert subsets["huge@50"]["precision"] == 1 and subsets["all@50"]["precision"] == 0.5
    silent = slavc.published(detections([(0.0, 0.2, False)]), np.zeros(1))
    assert silent["loc_acc"] is None and silent["subsets"]["all@50"]["auc"] is None
