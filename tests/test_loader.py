"""The plan of batches, and that batches depend on nothing else."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from train_fixtures import assert_same_batches

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.loader import AHEAD, stacked
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import DamagedError
from avpipe.train.data.skipped import Skipped
from avpipe.train.data.training_samples import TrainingSamples, batches

pytestmark = pytest.mark.heavy

pytest_plugins = ["train_fixtures"]


def plan(samples=103, batch_size=8, world_size=1, epochs=3, seed=0):
    return BatchPlan(indices=np.arange(samples), batch_size=batch_size, world_size=world_size, epochs=epochs, seed=seed)


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
        indices = np.concatenate([p.indices_of(step, rank) for step in steps for rank in range(world_size)])
        assert len(indices) == len(set(indices)) == p.steps_per_epoch * batch_size * world_size
        assert samples - len(indices) < batch_size * world_size
        assert set(indices) <= set(range(samples))


def test_more_ranks_make_the_same_global_batches_and_epochs_and_seeds_others():
    one, two = plan(batch_size=8, world_size=1), plan(batch_size=4, world_size=2)
    assert (one.indices_of(0, 0) != one.indices_of(one.steps_per_epoch, 0)).any() and (
        one.indices_of(0, 0) != plan(seed=1).indices_of(0, 0)
    ).any()
    for step in range(one.steps):
        assert (one.indices_of(step, 0) == np.concatenate([two.indices_of(step, 0), two.indices_of(step, 1)])).all()


def neighbours_p(pairs, samples):
    """Probability that pairs of a true shuffle lie at most as evenly apart in the shards as these."""
    distance, apart = np.arange(1, samples), np.abs(np.diff(pairs)).ravel()
    width = samples // 20
    counts = np.bincount(np.minimum(apart // width, 18), minlength=19)
    expected = np.bincount(np.minimum(distance // width, 18), weights=samples - distance)
    return chisquare(counts, expected / expected.sum() * counts.sum()).pvalue


def test_neighbours_in_the_shards_are_no_neighbours_in_batches():
    """As they are where a buffer shuffles, webdataset's way: the same statistic sees it, and passes ours."""
    count, buffered = 20_000, webdataset.filters.shuffle(1000)
    order = np.array([n for _ in range(2) for n in buffered(iter(range(count)))])
    assert neighbours_p(order.reshape(-1, 2), count) < 1e-100
    for samples, epochs in ((200, 60), (count, 2)):
        p = plan(samples=samples, batch_size=2, epochs=epochs)
        assert neighbours_p([p.indices_of(step, 0) for step in range(p.steps)], samples) > 1e-3


@pytest.fixture(scope="module")
def samples(shards):
    return TrainingSamples(shards=shards, feature="logspec", image_px=32, seed=5)


def taken(samples, first_step=0, workers=0):
    return list(batches(samples, plan(samples=16, batch_size=4, epochs=2, seed=5), 0, range(first_step, 8), workers))


def test_batches_are_the_same_for_any_number_of_workers(samples):
    alone = taken(samples)
    assert len(alone) == 8
    assert list(alone[0]) == ["image", "spec", "index"]
    assert alone[0]["image"].shape == (4, 32, 32, 3) and alone[0]["image"].dtype == torch.uint8
    assert alone[0]["spec"].shape == (4, 1, 257, 200) and alone[0]["spec"].dtype == torch.float16
    first, again = samples[0, 3], samples[1, 3]  # of two epochs: the view differs
    assert (first["spec"] == again["spec"]).all() and (first["image"] != again["image"]).any()
    for workers in (1, 2):
        assert_same_batches(taken(samples, workers=workers), alone)


@pytest.mark.parametrize("first_step", [3, 6])
def test_a_resumed_loader_gives_the_very_next_batches(samples, first_step):
    assert_same_batches(taken(samples, first_step), taken(samples)[first_step:])


@pytest.fixture
def damaged(copied):
    """(samples of which number 11 has a spoilt frame and number 6 a spoilt feature, their clip ids)."""
    shards = open_shards(copied)
    for number, member, at in ((11, "frame.jpg", 0), (6, "logspec.npy", 20)):
        with open(copied / shards.shard_names[shards.shard_of[number]], "r+b") as tar:
            tar.seek(int(shards.offset[member][number]) + at)
            tar.write(bytes(200))
    samples = TrainingSamples(shards=open_shards(copied), feature="logspec", image_px=32, seed=5)
    return samples, {shards.clip_ids[11], shards.clip_ids[6]}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_named_in_one_sentence(damaged, workers):
    damaged, clips = damaged
    with pytest.raises(AvpipeError) as caught:
        taken(damaged, workers=workers)
    assert any(clip in str(caught.value) for clip in clips) and "synth_train-00000" in str(caught.value)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_left_out_and_named_once(samples, damaged, workers, tmp_path, caplog):
    p, (spoilt, clips) = plan(samples=16, batch_size=4, epochs=2, seed=5), damaged
    skipped = Skipped(tmp_path / "skipped.csv")
    found = list(batches(spoilt, p, 0, range(8), workers, skipped))
    for batch, whole in zip(found, taken(samples), strict=True):
        kept = [place for place, number in enumerate(whole["index"].tolist()) if number not in (11, 6)]
        assert all(torch.equal(part, whole[name][kept]) for name, part in batch.items())
    assert sum(len(batch["index"]) for batch in found) == 2 * 14
    assert len(skipped) == len(caplog.messages) == 2 and all(clip in caplog.text for clip in clips)
    caplog.clear()
    again = Skipped(tmp_path / "skipped.csv")  # after a stop
    list(batches(spoilt, p, 0, range(4, 8), workers, again))
    assert len(again) == 2 and not caplog.messages
    assert len((tmp_path / "skipped.csv").read_text().splitlines()) == 3


def test_ranks_cannot_go_on_without_a_sample(damaged):
    p = plan(samples=16, batch_size=8, world_size=2, epochs=1)
    with pytest.raises(DamagedError):
        for rank in range(2):
            list(batches(damaged[0], p, rank, range(p.steps), 1, lambda error: None))
    with pytest.raises(DamagedError):  # a batch in which nothing is left
        list(stacked([[(0, 6), (0, 11)]], damaged[0].__getitem__, 1, lambda error: None))


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_only_some_batches_are_made_ahead_and_threads_end_with_their_consumer():
    read = []
    stream = stacked(([n] for n in range(100)), lambda key: read.append(key) or {"x": np.zeros(2)}, 2)
    next(stream)
    time.sleep(0.2)
    assert len(read) == AHEAD + 1 and loader_threads()
    stream.close()
    assert not loader_threads()


def test_any_error_of_a_thread_reaches_the_consumer():
    def read(key):
        if key == 7:
            raise ZeroDivisionError("seven")
        return {"x": np.full(3, key)}

    stream, seen = stacked([[0, 1], [2, 3], [6, 7]], read, 2), []
    with pytest.raises(ZeroDivisionError, match="seven"):
        seen.extend(stream)
    assert [batch["x"].tolist() for batch in seen] == [[[0] * 3, [1] * 3], [[2] * 3, [3] * 3]]
    assert not loader_threads()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "end",
    ["sys.exit(3)"]
    + [
        pytest.param(e, marks=pytest.mark.slow)
        for e in ("raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGINT)")
    ],
)
def test_no_thread_keeps_the_program_alive(end):
    program = f"""
import os, signal, sys, time
import numpy as np
from avpipe.train.data.loader import stacked
stream = stacked(([n] * 16 for n in range(10**9)), lambda n: {{"x": np.full(9, time.sleep(0.001) or n)}}, 4)
next(stream)
{end}
for batch in stream: pass
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=180, capture_output=True, text=True)
    assert done.returncode in (3, 1, 130, -2) and "Fatal" not in done.stderr


def test_the_loader_draws_nothing_from_the_generators_of_others(samples):
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    for workers in (0, 2):
        taken(samples, workers=workers)
    assert torch.equal(before, torch.get_rng_state()) and (legacy == np.random.get_state()[1]).all()
