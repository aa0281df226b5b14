"""The attack programs with small counts; by hand they run for longer: `python tests/chaos/<name>.py --rounds N`."""

import random
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "chaos"))

import disk
import index
import kill
from common import Tally

slow = pytest.mark.slow
pytestmark = pytest.mark.heavy


@pytest.fixture
def tally():
    return Tally()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("stage", ["shard", "extract", "verify", "manifest"])
def test_kills_show_nowhere_in_the_end(stage, done_root, corpus, tmp_path, tally):
    kill.attack(stage, done_root.path, corpus, tmp_path, 2, random.Random(stage), tally)
    assert not tally.faults and sum(tally.counts.values()) >= 3


def test_no_hostile_index_is_believed(done_root, tmp_path, tally, monkeypatch):
    monkeypatch.setattr(index.verify, "run_parts", None)  # and put back, for the program sets it
    folder = shutil.copytree(done_root.shards / "synth_test", tmp_path / "shards")
    index.attack(folder, 80, 7, tally)
    assert not tally.faults and sum(tally.counts.values()) == 80


DISKS = {"extract": "without inodes", "build": "read-only", "shard": "full", "hdf5": "nearly full"}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["extract", "build", *(pytest.param(n, marks=slow) for n in ("shard", "hdf5"))])
def test_a_bad_disk_is_one_sentence(name, done_root, corpus, tmp_path, tally):
    disk.attack(name, DISKS[name], done_root.path, corpus, tmp_path / "disk", random.Random(name), tally)
    if "not tried" in str(tally.counts):
        pytest.skip("no file system may be mounted here")
    assert not tally.faults
