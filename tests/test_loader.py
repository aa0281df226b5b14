"""The plan of batches, and that batches depend on nothing else."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.errors import AvpipeError
from train.loader import BatchPlan, TrainingSamples, batches
from train.shards import open_shards


def plan(samples=103, batch_size=8, world_size=1, epochs=3, seed=0):
    return BatchPlan(numbers=np.arange(samples), batch_size=batch_size, world_size=world_size, epochs=epochs, seed=seed)


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 4), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_rank_takes_equal_steps_and_no_sample_comes_twice_in_an_epoch(samples, batch_size, world_size, seed):
    if samples < batch_size * world_size:
        with pytest.raises(AvpipeError, match="do not fill one batch"):
            plan(samples, batch_size, world_size, seed=seed)
        return
    p = plan(samples, batch_size, world_size, epochs=2, seed=seed)
    for epoch in range(2):
        steps = range(epoch * p.steps_per_epoch, (epoch + 1) * p.steps_per_epoch)
        rows = np.concatenate([p.rows(step, rank) for step in steps for rank in range(world_size)])
        assert len(rows) == len(set(rows)) == p.steps_per_epoch * batch_size * world_size
        assert samples - len(rows) < batch_size * world_size
        assert set(rows) <= set(range(samples))


def test_more_ranks_make_the_same_global_batches():
    one, two = plan(batch_size=8, world_size=1), plan(batch_size=4, world_size=2)
    for step in range(one.steps):
        assert (one.rows(step, 0) == np.concatenate([two.rows(step, 0), two.rows(step, 1)])).all()


def test_epochs_and_seeds_shuffle_anew():
    p = plan()
    assert (p.rows(0, 0) != p.rows(p.steps_per_epoch, 0)).any()
    assert (p.rows(0, 0) != plan(seed=1).rows(0, 0)).any()


def test_neighbours_in_the_shards_are_no_neighbours_in_batches():
    counts = np.zeros(19)
    p = plan(samples=200, batch_size=2, epochs=60)
    for step in range(p.steps):
        a, b = p.rows(step, 0)
        counts[abs(int(a) - int(b)) // 10 if abs(int(a) - int(b)) < 190 else 18] += 1
    distance = np.arange(1, 200)
    expected = np.bincount(np.minimum(distance // 10, 18), weights=200 - distance)
    assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 1e-3


@pytest.fixture(scope="module")
def samples(done_root):
    shards = open_shards(done_root.shards / "synth_train")
    return TrainingSamples(shards=shards, feature="logspec", image_px=32, seed=5)


def taken(samples, first_step=0, workers=0):
    return list(batches(samples, plan(samples=16, batch_size=4, epochs=2, seed=5), 0, range(first_step, 8), workers))


def test_batches_are_the_same_for_any_number_of_workers(samples):
    alone = taken(samples)
    assert len(alone) == 8
    assert alone[0][0].shape == (4, 32, 32, 3) and alone[0][0].dtype == torch.uint8
    assert alone[0][1].shape == (4, 1, 257, 200) and alone[0][1].dtype == torch.float16
    for workers in (1, 2):
        for batch, again in zip(alone, taken(samples, workers=workers), strict=True):
            assert all(torch.equal(part, same) for part, same in zip(batch, again, strict=True))


@pytest.mark.parametrize("first_step", [3, 6])
def test_a_resumed_loader_gives_the_very_next_batches(samples, first_step):
    whole, rest = taken(samples), taken(samples, first_step)
    assert len(rest) == 8 - first_step
    for batch, again in zip(whole[first_step:], rest, strict=True):
        assert all(torch.equal(part, same) for part, same in zip(batch, again, strict=True))


def test_augmentation_differs_between_epochs(samples):
    first, again = samples[0, 3], samples[1, 3]
    assert (first[1] == again[1]).all() and (first[0] != again[0]).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_named_in_one_sentence(done_root, tmp_path, workers):
    folder = shutil.copytree(done_root.shards / "synth_train", tmp_path / "s")
    shards = open_shards(folder)
    number = 11
    tar = folder / shards.shard_names[shards.shard_of[number]]
    data = bytearray(tar.read_bytes())
    start = int(shards.offset["frame.jpg"][number])
    data[start : start + 200] = bytes(200)
    tar.write_bytes(data)
    damaged = TrainingSamples(shards=open_shards(folder), feature="logspec", image_px=32, seed=0)
    with pytest.raises(AvpipeError) as caught:
        taken(damaged, workers=workers)
    assert shards.clip_ids[number] in str(caught.value) and tar.name in str(caught.value)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
