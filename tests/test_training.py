"""What a training does beside stepping: validation, kept checkpoints, signals, precision, curves, resuming."""

import os
import signal
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from thin import thin_networks  # noqa: F401
from train_fixtures import TINY, logged, stopped_after

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import youtube_id
from avpipe.train.data.open import open_shards
from avpipe.train.data.split import train_validation_split
from avpipe.train.models.checkpoint import BEST, LAST, load_checkpoint
from avpipe.train.models.recipes import get_recipe
from avpipe.train.run.fit import fit
from avpipe.train.run.logs import VALIDATION
from avpipe.train.run.preemption import StopSignals

pytest_plugins = ["train_fixtures"]
pytestmark = pytest.mark.heavy
CHANGES = [*TINY, "epochs=2", "checkpoint_steps=2"]
SMALL = [*CHANGES, "spec_pool=8"]


def train(shards, run, *changes, **more):
    return fit(get_recipe("lvs-small", [*SMALL, *changes]), shards, run, workers=0, **more)


METHODS = {
    "lvs-small": ["spec_pool=8"],
    "ez-vsl-small": ["stride14=false"],
    "marginnce-small": ["stride14=false"],
    "ssl-tie-small": ["spec_pool=8", "mixing=paper"],
    "sspl-small": [],
    "vgg-h": [],
}


@pytest.mark.parametrize(
    "recipe",
    ["lvs-small", "ez-vsl-small", "ssl-tie-small", "vgg-h"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in ("marginnce-small", "sspl-small")],
)
def test_every_method_goes_on_with_the_same_losses(all_features, tmp_path, recipe):
    shards = open_shards(all_features.shards / "synth_train")
    chosen = get_recipe(recipe, [*CHANGES, *METHODS[recipe], "checkpoint_steps=100"])
    whole = fit(chosen, shards, tmp_path / "whole", workers=0)
    assert np.isfinite(whole.loss)
    with stopped_after(6):  # in the middle of the second epoch
        fit(chosen, shards, tmp_path / "stopped", workers=0)
    if chosen.mixing != "none":
        assert load_checkpoint(tmp_path / "stopped")["neighbours"].shape == (16,)
    again = fit(chosen, shards, tmp_path / "stopped", workers=1)
    assert again.resumed_at == 6
    assert logged(again.run, "step", "loss") == logged(whole.run, "step", "loss")


def test_signals_go_where_they_went_before():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(single_process=True) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received
        assert signals.stopped(3).exit_code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGTERM) == before


def test_videos_are_held_back_whole_and_for_any_order(shards):
    kept, out = train_validation_split(shards, 0.25, 0)
    assert sorted([*kept, *out]) == list(range(16))
    videos = [{youtube_id(shards.clip_ids[n]) for n in part} for part in (kept, out)]
    assert not videos[0] & videos[1] and len(videos[1]) == round(0.25 * len(videos[0] | videos[1]))
    assert (train_validation_split(shards, 0.25, 1)[1] != out).any()
    with pytest.raises(AvpipeError, match="leaves a set empty"):
        train_validation_split(shards, 0.001, 0)


def test_the_best_epoch_is_kept_and_patience_ends_training(shards, tmp_path, monkeypatch):
    changes = ["epochs=9", "validation=0.25", "patience=2"]
    values = iter([3.0, 2.0, 2.5, 2.0])
    monkeypatch.setattr("avpipe.train.run.validation.Validation.measure", lambda self: next(values))
    trained = train(shards, tmp_path / "run", *changes)
    best, last = load_checkpoint(trained.run / BEST), load_checkpoint(trained.run / LAST)
    assert trained.stopped_early and trained.steps == last["step"] == 4 * 3
    assert best["best"] == last["best"] == trained.best == {"epoch": 2, "measure": "validation_loss", "value": 2.0}
    assert best["step"] == 2 * 3
    assert load_checkpoint(trained.run)["step"] == best["step"]  # of a run's folder the best one
    again = train(shards, trained.run, *changes)
    assert again.stopped_early and again.resumed_at == trained.steps and again.loss is None
    with pytest.raises(AvpipeError, match="patience needs a validation"):
        train(shards, tmp_path / "other", "patience=1")


def test_the_best_epoch_by_boxes_is_marked(shards, done_root, tmp_path):
    select_shards = open_shards(done_root.shards / "synth_test")
    trained = train(shards, tmp_path / "run", select_on=select_shards)
    assert trained.best["measure"] == "ciou_synth_test" and 0 <= trained.best["value"] <= 1
    assert load_checkpoint(trained.run / BEST)["select_on"] == "synth_test"
    with pytest.raises(AvpipeError, match="started with another select_on"):
        train(shards, trained.run)


def test_checkpoints_of_some_epochs_are_kept(shards, tmp_path):
    run = train(shards, tmp_path / "run", "epochs=4", "keep_epochs=2").run
    assert sorted(path.name for path in run.glob("*.pt")) == ["epoch-0002.pt", "epoch-0004.pt", "last.pt"]
    assert load_checkpoint(run / "epoch-0002.pt")["step"] == 8


class Mean(torch.nn.Module):
    """A loss that is a mean over clips: its parts' mean is the whole batch's."""

    def __init__(self, *_, **__):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 257 * 200))

    def forward(self, image_B3HW, spec_B1FT):
        return ((spec_B1FT.flatten(1) @ self.weight) ** 2).mean(), {}


def test_parts_of_a_batch_add_up_to_its_gradient(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "avpipe.train.run.training.METHODS", {"lvs": SimpleNamespace(network=Mean, views=1, labelled=False)}
    )
    weights = []
    for accumulate in (1, 2):
        run = train(shards, tmp_path / str(accumulate), f"accumulate={accumulate}", "epochs=1").run
        weights.append(load_checkpoint(run)["network"]["weight"])
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    assert (weights[0] != torch.linspace(-1, 1, 257 * 200)).any()


def test_gradients_are_clipped(shards, tmp_path, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train(shards, tmp_path / "run", "epochs=1", "clip_norm=0.01")
    assert norms and max(norms) <= 0.01 * 1.001


@pytest.mark.parametrize("changes", [["precision=bf16-mixed"], ["accumulate=2"]])
def test_other_ways_to_step_learn_too(shards, tmp_path, changes):
    trained = train(shards, tmp_path / "run", *changes)
    losses = [float(loss) for (loss,) in logged(trained.run, "loss")]
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < losses[0]


def test_validation_is_the_same_again_leaves_the_training_alone_and_is_drawn(shards, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes = [*SMALL, "epochs=3", "feature=logspec", "mixing=none", "validation=0.25"]
    one, two = (
        fit(get_recipe("ssl-tie-small", changes), shards, tmp_path / name, workers)
        for name, workers in (("a", 0), ("b", 1))
    )
    assert one.best == two.best and one.loss == two.loss
    curves = events.EventAccumulator(str(one.run / "tensorboard"))
    curves.Reload()
    rows = logged(one.run, "epoch", "measure", name=VALIDATION)
    assert rows == [(str(n), "validation_loss") for n in (1, 2, 3)]
    assert [point.step for point in curves.Scalars("train/validation_loss")] == [3, 6, 9]


def test_weights_and_biases_hears_of_it_where_asked_for(shards, tmp_path, monkeypatch):
    if find_spec("wandb") is None:
        with pytest.raises(AvpipeError, match="--wandb needs the package wandb"):
            train(shards, tmp_path / "without", wandb_project="mine")
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end"))
    fake = SimpleNamespace(init=lambda **settings: calls.append(settings) or run, __spec__="fake")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(shards, tmp_path / "run", "epochs=3", wandb_project="mine")
    begun, *points, end = calls
    losses = dict(logged(tmp_path / "run", "step", "loss"))
    assert (begun["project"], begun["id"], begun["config"]["method"]) == ("mine", "run", "lvs") and end == "end"
    assert [step for step, _ in points] == [10] and points[0][1]["loss"] == float(losses["10"])
