"""Scores that were computed are never lost to a full disk, a picture, or another process in the same folder."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from thin import thin_networks  # noqa: F401
from typer.testing import CliRunner

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.locks import stage_lock
from avpipe.train.cli.main import app
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import Shards
from avpipe.train.evaluation import run
from avpipe.train.evaluation.retrieval import run_retrieval
from avpipe.train.evaluation.run import Request, run_eval
from avpipe.train.localize.painting import Heat, contact_sheet
from avpipe.train.models.checkpoint import _save
from avpipe.train.models.load import ModelChoice
from avpipe.train.reports.papers import execute, reproduce

pytest_plugins = ["train_fixtures"]
REQUEST = Request(split="synth_test", baseline="random-init", workers=0)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_scores_that_cannot_be_written_are_shown_and_those_of_before_stay(own_root, monkeypatch, capsys):
    folder = Path(run_eval(own_root, REQUEST)["per_clip"]).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(run.ev, "write_per_clip", full)
    monkeypatch.setattr("avpipe.train.evaluation.retrieval._write", full)
    for command, shown in (("eval", "cIoU"), ("retrieve", "A@5")):
        call = ["--root", str(own_root.path), command, "--split", "synth_test", "--baseline", "random-init"]
        done = CliRunner().invoke(app, call)
        assert shown in done.output and isinstance(done.exception, run.UnsavedError)
        assert "No space left on device), so the scores above are not saved" in str(done.exception)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_picture_that_fails_costs_no_score(own_root, monkeypatch, caplog):
    monkeypatch.setattr("avpipe.train.evaluation.sheet.atomic_write", full)
    result = run_eval(own_root, REQUEST)
    assert Path(result["per_clip"]).exists() and not Path(result["sheet"]).exists()
    assert "sheet.png could not be written ([Errno 28] No space left on device); the scores are saved" in caplog.text


def test_labels_and_names_are_no_formulas(own_root, monkeypatch, caplog, tmp_path):
    labels = ["$\\bad$", "$", "a\0b\x1b[31m", "$$_{"]
    clips = len(open_shards(own_root.shards / "synth_test"))
    monkeypatch.setattr(Shards, "__post_init__", lambda self: setattr(self, "labels", labels[:clips]), raising=False)
    assert Path(run_eval(own_root, REQUEST)["sheet"]).exists() and "sheet.png" not in caplog.text
    frame = np.full((32, 32, 3), 255, np.uint8)
    contact_sheet([frame], [0.0], Heat(low=0.0, high=1.0), "$\\bad$.mp4 \udcff", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


def test_two_evaluations_never_share_a_folder(own_root):
    folder = own_root.runs / "baseline-random-init"
    for held, what, command in (
        (folder / "eval/synth_test", "an evaluation", lambda: run_eval(own_root, REQUEST)),
        (
            folder / "retrieval/synth_test",
            "a retrieval",
            lambda: run_retrieval(own_root, "synth_test", ModelChoice(baseline="random-init")),
        ),
        (own_root.runs, "a reproduction", lambda: execute.run(reproduce.PaperRuns(own_root), [], None, workers=0)),
    ):
        with stage_lock(held, "it"), pytest.raises(AvpipeError, match=f"another process is doing {what}"):
            command()


def test_a_checkpoint_on_a_full_disk_is_an_error_of_the_disk():
    with pytest.raises(OSError, match="No space left on device"):
        _save({"weights": torch.zeros(1_000_000)}, Path("/dev/full"))
