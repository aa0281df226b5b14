"""Leaks between what a model is trained and scored on, found before training starts."""

import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.train.evaluation.leakage import leakage, leakage_into_tests, warn_or_refuse

pytestmark = pytest.mark.heavy

A, A_LATER, B = "abcdefghijk_000010", "abcdefghijk_000020", "ABCDEFGHIJK_000010"


def test_clips_and_videos_are_counted_apart():
    assert leakage([A, B], [A, A_LATER]) == {"clips": 1, "videos": 1}
    assert leakage([A], [A_LATER]) == {"clips": 0, "videos": 1}
    assert leakage([A], [B]) == {"clips": 0, "videos": 0}


def test_test_splits_of_the_manifest_are_looked_through(done_root, tmp_path):
    tests = Manifest.open(done_root.manifest).split_ids("synth_test")
    train = Manifest.open(done_root.manifest).split_ids("synth_train")
    assert leakage_into_tests(done_root.manifest, train) == {}
    found = leakage_into_tests(done_root.manifest, [*train, *tests[:2]])
    assert found == {"synth_test": {"clips": 2, "videos": 2}}
    assert leakage_into_tests(tmp_path, tests) == {}
    assert warn_or_refuse("mine", {}, forbid=True) is None
    said = warn_or_refuse("mine", found, forbid=False)
    assert said.startswith("mine shares clips or videos with synth_test (2 clips, 2 videos)")
    with pytest.raises(AvpipeError, match="avpipe manifest derive"):
        warn_or_refuse("mine", found, forbid=True)
