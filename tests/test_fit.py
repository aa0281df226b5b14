"""Training: the same losses after a kill as without one, bit for bit; and what a run refuses."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import thin
import torch
from thin import thin_networks  # noqa: F401

from pipeline.errors import AvpipeError
from train.checkpoint import LAST, load_checkpoint, network_of, recipe_of
from train.data.open import open_shards
from train.fit import fit
from train.logs import LOG
from train.recipes import get_recipe
from train.training import SKIPPED

CHANGES = ["image_px=32", "batch_size=4", "epochs=25", "checkpoint_steps=3", "spec_pool=8"]
STEPS = 100


@pytest.fixture(scope="module")
def shards(done_root):
    return open_shards(done_root.shards / "synth_train")


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "undisturbed"
    return fit(get_recipe("lvs-small", CHANGES), shards, run, workers=0)


def losses(run):
    with open(run / LOG, newline="") as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file)}


def test_training_learns_and_logs_every_step(undisturbed):
    logged = losses(undisturbed.run)
    assert list(logged) == list(range(1, STEPS + 1))
    assert float(logged[STEPS]) == undisturbed.loss
    values = [float(v) for v in logged.values()]
    assert sum(values[-4:]) < sum(values[:4])
    assert 0 <= undisturbed.data_wait <= 1 and undisturbed.clips_per_s > 0


def test_a_killed_training_goes_on_with_the_same_losses(undisturbed, shards, done_root, tmp_path):
    command = [sys.executable, thin.__file__, "--root", str(tmp_path), "train", "--name", "killed", "--workers", "1"]
    command += ["--shards", str(done_root.shards / "synth_train"), "--recipe", "lvs-small"]
    command += [word for change in CHANGES for word in ("--set", change)]
    run = tmp_path / "runs" / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, start_new_session=True, env=environment, stderr=subprocess.DEVNULL)
    while not (run / LAST).exists():
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = load_checkpoint(run)["step"]
    assert 0 < reached < STEPS
    assert fit(get_recipe("lvs-small", CHANGES), shards, run, workers=0).resumed_at == reached
    assert losses(run) == losses(undisturbed.run)
    ours, theirs = (load_checkpoint(folder)["network"] for folder in (run, undisturbed.run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_is_not_trained_again(undisturbed, shards):
    before = (undisturbed.run / LAST).stat().st_mtime_ns
    again = fit(get_recipe("lvs-small", CHANGES), shards, undisturbed.run, workers=0)
    assert again.resumed_at == STEPS and again.loss is None
    assert (undisturbed.run / LAST).stat().st_mtime_ns == before
    assert len(losses(undisturbed.run)) == STEPS


def test_going_on_needs_no_imagenet_weights_again(undisturbed, shards, tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise AssertionError("ImageNet weights were asked for")

    changes = [*CHANGES, "init=imagenet"]
    state = load_checkpoint(undisturbed.run)
    state["recipe"]["options"]["init"] = "imagenet"
    torch.save(state, tmp_path / LAST)
    monkeypatch.setattr("train.backbones.load_published", unreachable)
    assert fit(get_recipe("lvs-small", changes), shards, tmp_path, workers=0).resumed_at == STEPS


def test_a_run_goes_on_only_with_its_own_settings_and_data(undisturbed, shards, done_root):
    with pytest.raises(AvpipeError, match=r"begun with another learning_rate \(0.0003 then, 0.1 now\)"):
        fit(get_recipe("lvs-small", [*CHANGES, "learning_rate=0.1"]), shards, undisturbed.run, workers=0)
    with pytest.raises(AvpipeError, match="begun with another"):
        fit(get_recipe("lvs-small", CHANGES), open_shards(done_root.shards / "synth_test"), undisturbed.run, workers=0)


def test_a_checkpoint_rebuilds_recipe_and_network(undisturbed):
    state = load_checkpoint(undisturbed.run)
    assert recipe_of(state) == get_recipe("lvs-small", CHANGES)
    assert state["data"]["split"] == "synth_train" and len(state["data"]["clip_ids"]) == 16
    image_B3HW, spec_B1FT = torch.randn(2, 3, 32, 32), torch.randn(2, 1, 257, 200)
    map_BHW = network_of(state).localize(image_B3HW, spec_B1FT)
    assert map_BHW.shape == (2, 2, 2)


def test_checkpoints_that_are_none(tmp_path):
    with pytest.raises(AvpipeError, match="does not exist"):
        load_checkpoint(tmp_path)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(AvpipeError, match=r"damaged or no file of torch's"):
        load_checkpoint(tmp_path / "text.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(AvpipeError, match="not a checkpoint of this avpipe"):
        load_checkpoint(tmp_path / "other.pt")


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "network": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(AvpipeError, match="could run code; not loaded"):
        load_checkpoint(tmp_path / "hostile.pt")
    assert not (tmp_path / "hostile-was-here").exists()


def test_a_damaged_sample_costs_itself_and_is_counted_over_a_resume(done_root, tmp_path, monkeypatch):
    folder = shutil.copytree(done_root.shards / "synth_train", tmp_path / "shards")
    spoilt = open_shards(folder)
    clip, tar = spoilt.clip_ids[5], folder / spoilt.shard_names[spoilt.shard_of[5]]
    with open(tar, "r+b") as file:
        file.seek(int(spoilt.offset["frame.jpg"][5]) + 2)
        file.write(bytes(200))
    recipe, calls = get_recipe("lvs-small", [*CHANGES, "epochs=4"]), iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr("train.fit.any_rank", lambda fabric, flag: next(calls) == 9)
        with pytest.raises(AvpipeError, match="stopped by SIGTERM after step 10"):
            fit(recipe, spoilt, tmp_path / "run", workers=0)
    again = fit(recipe, spoilt, tmp_path / "run", workers=2)
    assert (again.resumed_at, again.steps, again.skipped) == (10, 16, 1)
    with open(tmp_path / "run" / SKIPPED, newline="") as file:
        assert [(row["clip_id"], row["member"]) for row in csv.DictReader(file)] == [(clip, "frame.jpg")]
    assert fit(recipe, spoilt, tmp_path / "whole", workers=0).loss == again.loss


def test_a_loss_that_is_not_finite_stops_with_its_parts(shards, tmp_path):
    recipe = get_recipe("lvs-small", [*CHANGES, "learning_rate=1e30"])
    with pytest.raises(AvpipeError, match=r"the loss is (nan|inf) at step \d+ \(positive .*smaller learning rate"):
        fit(recipe, shards, tmp_path / "run", workers=0)
