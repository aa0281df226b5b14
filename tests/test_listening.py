"""Which sound a clip gets instead of its own, and what silence looks like."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avpipe.pipeline.features.specs import SPECS
from avpipe.train.evaluation.audio_ablation import silence, sounds_of_other_classes

LABELS = st.lists(st.one_of(st.none(), st.sampled_from("abcdefg")), max_size=60)


@given(LABELS, st.integers(0, 5))
@settings(deadline=None)
def test_each_sound_is_used_once_and_is_of_another_class_where_that_can_be(labels, seed):
    found = sounds_of_other_classes(labels, seed)
    assert (found == sounds_of_other_classes(labels, seed)).all()
    assert sorted(found) == list(range(len(labels)))
    counts = [labels.count(label) for label in set(labels) - {None}]
    if len(labels) > 1 and 2 * max(counts, default=1) <= len(labels):
        assert all(labels[n] is None or labels[n] != labels[m] for n, m in enumerate(found))
        assert (found != np.arange(len(labels))).all()


def test_another_seed_gives_other_sounds():
    labels = list("abcd") * 10
    assert (sounds_of_other_classes(labels, 0) != sounds_of_other_classes(labels, 1)).any()


@pytest.mark.parametrize("name", SPECS)
def test_silence_is_the_feature_of_nothing(name):
    found = silence(name)
    assert found.dtype == np.float16 and found.shape == (1, *SPECS[name].shape)
    noise = np.random.default_rng(0).normal(0, 0.1, SPECS[name].samples).astype(np.float32)
    assert np.isfinite(found).all() and found.astype(float).mean() < SPECS[name].compute(noise).mean()
