"""Bootstrap intervals against SciPy's, and comparisons of two results."""

import math

import numpy as np
import pytest
from scipy import stats

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.evaluation import bootstrap, metrics

DRAW = np.random.default_rng(5)
CIOUS = DRAW.beta(2, 3, 400)


def scipy_interval(values, statistic):
    found = stats.bootstrap((values,), statistic, n_resamples=4000, method="percentile", rng=1).confidence_interval
    return [found.low, found.high]


def test_intervals_are_those_of_scipy():
    peaks = DRAW.random(300) < 0.7
    found = bootstrap.of_scores(CIOUS, peaks)
    assert found["ciou"] == pytest.approx(scipy_interval(CIOUS, metrics.success), abs=0.008)
    assert found["auc"] == pytest.approx(scipy_interval(CIOUS, metrics.auc), abs=0.003)
    assert found["pointing"] == pytest.approx(scipy_interval(peaks.astype(float), np.mean), abs=0.008)
    assert (found["level"], found["resamples"], found["seed"]) == (0.95, 1000, 0)


def test_intervals_depend_on_the_seed_alone_and_columns_stand_apart():
    values = CIOUS[:, None]
    first = bootstrap.bootstrap(values)
    assert (bootstrap.bootstrap(values) == first).all() and (bootstrap.bootstrap(values, seed=1) != first).any()
    np.testing.assert_allclose(bootstrap.bootstrap(np.hstack([values, values * 2])), [first[0], 2 * first[0]])


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth, held = 0.3, 0
    for seed in range(200):
        hits = np.random.default_rng([7, seed]).random((250, 1)) < truth
        low, high = bootstrap.bootstrap(hits, resamples=400, seed=seed)[0]
        held += low <= truth <= high
    assert 0.90 <= held / 200 <= 0.99


def test_degenerate_scores():
    assert bootstrap.of_scores([0.9, 0.8], [True])["ciou"] == [1, 1]
    assert bootstrap.of_scores([math.nan], [])["ciou"] == [0, 0]
    assert all(math.isnan(end) for end in bootstrap.of_scores([], [])["auc"])


def rows(cious, first=0):
    return [{"clip_id": f"c{number}", "ciou": ciou} for number, ciou in enumerate(cious, first)]


def test_a_paired_comparison_counts_the_clips_in_common():
    worse = np.where(np.arange(400) % 10 == 0, 0.1, CIOUS)
    found = bootstrap.compare(rows(CIOUS)[:380], rows(worse)[::-1])
    gain = (CIOUS[:380] >= 0.5).astype(float) - (worse[:380] >= 0.5)
    assert found["clips"] == 380 and found["difference"] == pytest.approx(gain.mean())
    assert found["interval"] == pytest.approx(scipy_interval(gain, np.mean), abs=0.005)
    # Paired, a small but steady gain shows; the two intervals apart would overlap.
    assert found["interval"][0] > 0
    assert bootstrap.compare(rows(worse), rows(CIOUS))["difference"] < 0
    assert bootstrap.compare(rows(CIOUS), rows(CIOUS))["interval"] == [0, 0]
    assert bootstrap.compare(rows([0.7]), rows([math.nan]))["difference"] == 1


def test_what_cannot_be_compared_is_a_sentence():
    with pytest.raises(AvpipeError, match="no clip in common"):
        bootstrap.compare(rows([0.5]), rows([0.5], first=1))
    with pytest.raises(AvpipeError, match="occurs twice"):
        bootstrap.compare(rows([0.5]) * 2, rows([0.5]))
