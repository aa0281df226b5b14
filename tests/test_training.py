"""What a training does beside stepping: validation, kept checkpoints, signals, precision, curves, resuming."""

import csv
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import thin
import torch
from thin import thin_networks  # noqa: F401

from pipeline.errors import AvpipeError
from pipeline.extract import extract
from pipeline.layout import Root, youtube_id
from pipeline.manifest import Manifest
from pipeline.settings import ExtractSettings, ShardSettings
from pipeline.shard import shard
from train.checkpoint import BEST, LAST, load_checkpoint
from train.data.open import open_shards
from train.data.split import training_part
from train.fit import fit
from train.logs import LOG, VALIDATION
from train.recipes import get_recipe
from train.signals import StopSignals

CHANGES = ["image_px=32", "batch_size=4", "epochs=2", "checkpoint_steps=2"]
SMALL = [*CHANGES, "spec_pool=8"]
METHODS = {
    "lvs-small": ["spec_pool=8"],
    "ez-vsl-small": ["stride14=false"],
    "marginnce-small": ["stride14=false"],
    "ssl-tie-small": ["spec_pool=8", "mixing=paper"],
    "sspl-small": [],
    "vgg-h": [],
}
FEATURES = ("logspec", "tie-mel", "vggish")


@pytest.fixture(scope="module")
def shards(done_root):
    return open_shards(done_root.shards / "synth_train")


@pytest.fixture(scope="module")
def all_features(once, done_root):
    """Training shards with what every method reads."""

    def make(folder) -> None:
        root, settings = Root(folder), ExtractSettings(features=FEATURES)
        folder.mkdir()
        for name in ("manifest", "ledger", "clips"):
            (folder / name).symlink_to(getattr(done_root, name), target_is_directory=True)
        (folder / "ledger").unlink()
        (folder / "ledger").mkdir()
        (folder / "ledger" / "download").symlink_to(done_root.ledger / "download")
        extract(root, Manifest.open(root.manifest).split_ids("synth_train"), settings, workers=1)
        shard(root, "synth_train", settings, ShardSettings(), workers=1)

    return open_shards(Root(once("all-features", make)).shards / "synth_train")


def rows(run):
    with open(run / LOG, newline="") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("recipe", METHODS)
def test_every_method_goes_on_with_the_same_losses(all_features, tmp_path, recipe, monkeypatch):
    chosen = get_recipe(recipe, [*CHANGES, *METHODS[recipe], "checkpoint_steps=100"])
    whole = fit(chosen, all_features, tmp_path / "whole", workers=0)
    assert np.isfinite(whole.loss)
    calls = iter(range(100))
    with monkeypatch.context() as patch:  # the signal comes in the middle of the second epoch
        patch.setattr("train.fit.any_rank", lambda fabric, flag: next(calls) == 5)
        with pytest.raises(AvpipeError, match="stopped by SIGTERM after step 6"):
            fit(chosen, all_features, tmp_path / "stopped", workers=0)
    again = fit(chosen, all_features, tmp_path / "stopped", workers=1)
    assert again.resumed_at == 6
    assert rows(again.run) == rows(whole.run)


def test_a_signal_saves_and_ends_with_its_own_code(done_root, tmp_path):
    command = [sys.executable, thin.__file__, "--root", str(tmp_path), "train", "--recipe", "lvs-small"]
    command += ["--shards", str(done_root.shards / "synth_train"), "--name", "run", "--workers", "1"]
    command += [word for change in [*SMALL, "epochs=1000", "checkpoint_steps=100000"] for word in ("--set", change)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    run = tmp_path / "runs" / "run"
    while not (run / LAST).exists():  # after the first epoch
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM
    step = load_checkpoint(run)["step"]
    assert f"stopped by SIGTERM after step {step}; the same command goes on there" in said
    assert len(rows(run)) == step and "Traceback" not in said


def test_signals_go_where_they_went_before():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(alone=True) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.received
        assert signals.stopped(3).exit_code == 128 + signal.SIGUSR1
    assert signal.getsignal(signal.SIGTERM) == before


def test_videos_are_held_back_whole_and_for_any_order(shards):
    kept, out = training_part(shards, 0.25, 0)
    assert sorted([*kept, *out]) == list(range(16))
    videos = [{youtube_id(shards.clip_ids[n]) for n in part} for part in (kept, out)]
    assert not videos[0] & videos[1] and len(videos[1]) == round(0.25 * len(videos[0] | videos[1]))
    assert (training_part(shards, 0.25, 1)[1] != out).any()
    with pytest.raises(AvpipeError, match="leaves a part empty"):
        training_part(shards, 0.001, 0)


def test_the_best_epoch_is_kept_and_patience_ends_training(shards, tmp_path, monkeypatch):
    changes = [*SMALL, "epochs=9", "validation=0.25", "patience=2"]
    values = iter([3.0, 2.0, 2.5, 2.0])
    monkeypatch.setattr("train.validation.Validation.measure", lambda self: next(values))
    trained = fit(get_recipe("lvs-small", changes), shards, tmp_path / "run", workers=0)
    best, last = load_checkpoint(trained.run / BEST), load_checkpoint(trained.run / LAST)
    assert trained.stopped_early and trained.steps == last["step"] == 4 * 3
    assert best["best"] == last["best"] == trained.best == {"epoch": 2, "measure": "validation_loss", "value": 2.0}
    assert best["step"] == 2 * 3
    assert load_checkpoint(trained.run)["step"] == best["step"]  # of a run's folder the best one
    again = fit(get_recipe("lvs-small", changes), shards, trained.run, workers=0)
    assert again.stopped_early and again.resumed_at == trained.steps and again.loss is None
    with pytest.raises(AvpipeError, match="patience needs something to compare epochs by"):
        fit(get_recipe("lvs-small", [*SMALL, "patience=1"]), shards, tmp_path / "other", workers=0)


def test_validation_is_the_same_again_and_leaves_the_training_alone(shards, tmp_path):
    changes = [*SMALL, "feature=logspec", "mixing=none", "validation=0.25"]
    one, two = (
        fit(get_recipe("ssl-tie-small", changes), shards, tmp_path / name, workers)
        for name, workers in (("a", 0), ("b", 1))
    )
    assert one.best == two.best and one.loss == two.loss


def test_the_best_epoch_by_boxes_is_marked(shards, done_root, tmp_path):
    chooser = open_shards(done_root.shards / "synth_test")
    trained = fit(get_recipe("lvs-small", SMALL), shards, tmp_path / "run", workers=0, select_on=chooser)
    assert trained.best["measure"] == "ciou_synth_test" and 0 <= trained.best["value"] <= 1
    assert load_checkpoint(trained.run / BEST)["select_on"] == "synth_test"
    with pytest.raises(AvpipeError, match="begun with another select_on"):
        fit(get_recipe("lvs-small", SMALL), shards, trained.run, workers=0)


def test_checkpoints_of_some_epochs_are_kept(shards, tmp_path):
    run = fit(get_recipe("lvs-small", [*SMALL, "epochs=4", "keep_epochs=2"]), shards, tmp_path / "run", workers=0).run
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
    method = SimpleNamespace(network=Mean, views=1, labelled=False)
    monkeypatch.setattr("train.training.METHODS", {"lvs": method})
    weights = []
    for accumulate in (1, 2):
        changes = [*SMALL, f"accumulate={accumulate}", "epochs=1"]
        run = fit(get_recipe("lvs-small", changes), shards, tmp_path / str(accumulate), workers=0).run
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
    fit(get_recipe("lvs-small", [*SMALL, "epochs=1", "clip_norm=0.01"]), shards, tmp_path / "run", workers=0)
    assert norms and max(norms) <= 0.01 * 1.001


@pytest.mark.parametrize("changes", [["precision=bf16-mixed"], ["precision=16-mixed"], ["accumulate=2"]])
def test_other_ways_to_step_learn_too(shards, tmp_path, changes):
    trained = fit(get_recipe("lvs-small", [*SMALL, *changes]), shards, tmp_path / "run", workers=0)
    losses = [float(loss) for _, loss in rows(trained.run)]
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < losses[0]


def test_curves_are_there_for_tensorboard(shards, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = fit(get_recipe("lvs-small", [*SMALL, "epochs=3", "validation=0.25"]), shards, tmp_path / "run", workers=0).run
    curves = events.EventAccumulator(str(run / "tensorboard"))
    curves.Reload()
    with open(run / VALIDATION, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["measure"]) for row in rows] == [(str(n), "validation_loss") for n in (1, 2, 3)]
    assert {"train/validation_loss"} <= set(curves.Tags()["scalars"])
    assert [point.step for point in curves.Scalars("train/validation_loss")] == [3, 6, 9]


def test_what_no_training_can_be():
    for change, said in {
        "accumulate=0": "accumulate must be at least 1",
        "validation=1": "validation must be from 0 to below 1",
        "mixing=loud": "mixing 'loud' is unknown; there are: none, released, paper",
        "negatives=none": "negatives 'none' is unknown",
    }.items():
        with pytest.raises(AvpipeError, match=said):
            get_recipe("lvs-small", [change])


FAKE_WANDB = """
calls = []

class Run:
    def log(self, values, step):
        calls.append((step, values))

    def finish(self):
        calls.append("finished")

def init(**settings):
    calls.append(settings)
    return Run()
"""


def test_weights_and_biases_hears_of_it_where_asked_for(shards, tmp_path, monkeypatch):
    recipe = get_recipe("lvs-small", [*SMALL, "epochs=3"])
    if find_spec("wandb") is None:
        with pytest.raises(AvpipeError, match="--wandb needs the package wandb"):
            fit(recipe, shards, tmp_path / "without", workers=0, wandb_project="mine")
    (tmp_path / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    fit(recipe, shards, tmp_path / "run", workers=0, wandb_project="mine")
    begun, *points, end = sys.modules["wandb"].calls
    assert (begun["project"], begun["id"], begun["config"]["method"]) == ("mine", "run", "lvs") and end == "finished"
    assert [step for step, _ in points] == [10] and points[0][1]["loss"] == float(dict(rows(tmp_path / "run"))["10"])
