"""Scores that were computed are never lost to a full disk, a picture, or another process in the same folder."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from thin import thin_networks  # noqa: F401
from typer.testing import CliRunner

from pipeline.errors import AvpipeError
from pipeline.layout import Root
from pipeline.parts import stage_lock
from train.checkpoint import _save
from train.cli import app
from train.data.open import open_shards
from train.data.shards import Shards
from train.evaluation import results
from train.evaluation.results import Request, run_eval
from train.evaluation.retrieval import run_retrieval
from train.models import ModelChoice
from train.overlay import Heat, contact_sheet
from train.reports import reproduce

REQUEST = Request(split="synth_test", baseline="random-init", workers=0)


@pytest.fixture
def root(done_root, tmp_path):
    root = Root(tmp_path)
    root.shards.symlink_to(done_root.shards)
    return root


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_scores_that_cannot_be_written_are_shown_and_those_of_before_stay(root, monkeypatch):
    folder = Path(run_eval(root, REQUEST)["per_clip"]).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(results.ev, "write_per_clip", full)
    command = ["--root", str(root.path), "eval", "--split", "synth_test", "--baseline", "random-init"]
    done = CliRunner().invoke(app, command)
    assert "cIoU" in done.output and isinstance(done.exception, results.UnsavedError)
    assert "No space left on device), so the scores above are kept nowhere else" in str(done.exception)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_search_that_cannot_be_written_is_shown(root, monkeypatch):
    monkeypatch.setattr("train.evaluation.retrieval._write", full)
    command = ["--root", str(root.path), "retrieve", "--split", "synth_test", "--baseline", "random-init"]
    done = CliRunner().invoke(app, command)
    assert "A@5" in done.output and isinstance(done.exception, results.UnsavedError)


def test_a_picture_that_fails_costs_no_score(root, monkeypatch, capsys):
    monkeypatch.setattr("train.reports.sheet.published", full)
    result = run_eval(root, REQUEST)
    assert Path(result["per_clip"]).exists() and not Path(result["sheet"]).exists()
    assert "sheet.png ([Errno 28] No space left on device); the scores are written" in capsys.readouterr().err


def test_labels_and_names_are_no_formulas(root, monkeypatch, capsys, tmp_path):
    labels = ["$\\bad$", "$", "a\0b\x1b[31m", "$$_{"]
    clips = len(open_shards(root.shards / "synth_test"))
    monkeypatch.setattr(Shards, "__post_init__", lambda self: setattr(self, "labels", labels[:clips]), raising=False)
    assert Path(run_eval(root, REQUEST)["sheet"]).exists() and "sheet.png" not in capsys.readouterr().err
    frame = np.full((32, 32, 3), 255, np.uint8)
    contact_sheet([frame], [0.0], Heat(low=0.0, high=1.0), "$\\bad$.mp4 \udcff", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


def test_two_evaluations_never_share_a_folder(root):
    folder = root.runs / "baseline-random-init"
    with (
        stage_lock(folder / "eval" / "synth_test", "it"),
        pytest.raises(AvpipeError, match="another process is doing an evaluation"),
    ):
        run_eval(root, REQUEST)
    with (
        stage_lock(folder / "retrieval" / "synth_test", "it"),
        pytest.raises(AvpipeError, match="another process is doing a retrieval"),
    ):
        run_retrieval(root, "synth_test", ModelChoice(baseline="random-init"), workers=0)
    with stage_lock(root.runs, "it"), pytest.raises(AvpipeError, match="another process is doing a reproduction"):
        reproduce.run(reproduce.Bench(root), [], None, workers=0)


def test_a_checkpoint_on_a_full_disk_is_an_error_of_the_disk():
    with pytest.raises(OSError, match="No space left on device"):
        _save({"weights": torch.zeros(1_000_000)}, Path("/dev/full"))
