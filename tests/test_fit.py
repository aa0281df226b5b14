"""Training: it learns and logs, goes on where it was, and what a run refuses; its kills are in test_stopping."""

import pytest
import torch
from thin import thin_networks  # noqa: F401
from train_fixtures import SMALL, logged, stopped_after

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.data.open import open_shards
from avpipe.train.models.checkpoint import LAST, load_checkpoint, network_of, recipe_of
from avpipe.train.models.recipes import get_recipe
from avpipe.train.run.fit import fit
from avpipe.train.run.training import SKIPPED

pytest_plugins = ["train_fixtures"]
pytestmark = pytest.mark.heavy
CHANGES = [*SMALL, "epochs=5", "checkpoint_steps=3"]
RECIPE = get_recipe("lvs-small", CHANGES)
STEPS = 20


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "undisturbed"
    return fit(RECIPE, shards, run, workers=0)


def test_training_learns_and_logs_every_step(undisturbed):
    steps, losses = zip(*logged(undisturbed.run, "step", "loss"), strict=True)
    assert [*map(int, steps)] == list(range(1, STEPS + 1)) and float(losses[-1]) == undisturbed.loss
    assert sum(map(float, losses[-4:])) < sum(map(float, losses[:4]))
    assert 0 <= undisturbed.data_wait <= 1 and undisturbed.clips_per_s > 0


def test_a_finished_run_is_not_trained_again(undisturbed, shards):
    before = (undisturbed.run / LAST).stat().st_mtime_ns
    again = fit(RECIPE, shards, undisturbed.run, workers=0)
    assert again.resumed_at == STEPS and again.loss is None
    assert (undisturbed.run / LAST).stat().st_mtime_ns == before
    assert len(logged(undisturbed.run, "step")) == STEPS


def test_going_on_needs_no_imagenet_weights_again(undisturbed, shards, tmp_path, monkeypatch):
    state = load_checkpoint(undisturbed.run)
    state["recipe"]["options"]["init"] = "imagenet"
    torch.save(state, tmp_path / LAST)
    monkeypatch.setattr("avpipe.train.networks.resnet.load_published", None)
    recipe = get_recipe("lvs-small", [*CHANGES, "init=imagenet"])
    assert fit(recipe, shards, tmp_path, workers=0).resumed_at == STEPS


def test_a_run_goes_on_only_with_its_own_settings_and_data(undisturbed, shards, done_root):
    with pytest.raises(AvpipeError, match=r"started with another learning_rate \(0.0003 then, 0.1 now\)"):
        fit(get_recipe("lvs-small", [*CHANGES, "learning_rate=0.1"]), shards, undisturbed.run, workers=0)
    with pytest.raises(AvpipeError, match="started with another"):
        fit(RECIPE, open_shards(done_root.shards / "synth_test"), undisturbed.run, workers=0)


def test_a_checkpoint_rebuilds_recipe_and_network(undisturbed):
    state = load_checkpoint(undisturbed.run)
    assert recipe_of(state) == RECIPE
    assert state["data"]["split"] == "synth_train" and len(state["data"]["clip_ids"]) == 16
    assert network_of(state).localize(torch.randn(2, 3, 32, 32), torch.randn(2, 1, 257, 200)).shape == (2, 2, 2)


def test_a_damaged_sample_costs_itself_and_is_counted_over_a_resume(copied, tmp_path):
    spoilt = open_shards(copied)
    with open(copied / spoilt.shard_names[spoilt.shard_of[5]], "r+b") as file:
        file.seek(int(spoilt.offset["frame.jpg"][5]) + 2)
        file.write(bytes(200))
    with stopped_after(10):
        fit(RECIPE, spoilt, tmp_path / "run", workers=0)
    again = fit(RECIPE, spoilt, tmp_path / "run", workers=2)
    assert (again.resumed_at, again.steps, again.skipped) == (10, 20, 1)
    assert logged(again.run, "clip_id", "member", name=SKIPPED) == [(spoilt.clip_ids[5], "frame.jpg")]
    assert fit(RECIPE, spoilt, tmp_path / "whole", workers=0).loss == again.loss


def test_a_loss_that_is_not_finite_stops_with_its_parts(shards, tmp_path):
    recipe = get_recipe("lvs-small", [*CHANGES, "learning_rate=1e30"])
    with pytest.raises(AvpipeError, match=r"the loss is (nan|inf) at step \d+ \(positive .*smaller learning rate"):
        fit(recipe, shards, tmp_path / "run", workers=0)
