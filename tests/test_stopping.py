"""A training is stopped by signals with all it has done, is killed without loss, and is alone in its folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from thin import thin_networks  # noqa: F401

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.locks import stage_lock
from avpipe.train.core.distributed import locked_by_first
from avpipe.train.data.buffer_pool import BufferPool
from avpipe.train.data.open import open_shards
from avpipe.train.models.checkpoint import LAST, load_checkpoint
from avpipe.train.models.recipes import get_recipe
from avpipe.train.run.fit import fit
from avpipe.train.run.preemption import StoppedError
from avpipe.train.run.validation import Validation

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
import train_kill

pytestmark = pytest.mark.heavy
RECIPE = get_recipe("lvs-small", list(train_kill.SETTINGS))


@pytest.fixture(scope="module")
def shards(done_root):
    return open_shards(done_root.shards / "synth_train")


def test_killed_trainings_come_out_as_an_undisturbed_one(done_root, tmp_path):
    # A program of its own: it forks, which a process with threads must not.
    shards = ["--shards", str(done_root.shards / "synth_train"), "--rounds", "3", "--seed", "3"]
    done = subprocess.run([sys.executable, train_kill.__file__, *shards], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "; 0 faults" in done.stdout, done.stdout + done.stderr


def test_two_trainings_never_share_a_name_and_leftovers_go(shards, tmp_path):
    with stage_lock(tmp_path, "a training"), pytest.raises(AvpipeError, match="another process is doing a training"):
        fit(RECIPE, shards, tmp_path, workers=0)
    assert not (tmp_path / LAST).exists()
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"killed while it was written")
    with pytest.raises(AvpipeError, match="leaves a set empty"):
        fit(get_recipe("lvs-small", ["validation=0.999"]), shards, tmp_path, workers=0)
    assert not list(tmp_path.glob(".*.tmp"))


def test_other_ranks_hear_from_the_first_that_a_run_is_held(tmp_path):
    fabric = SimpleNamespace(is_global_zero=False, broadcast=lambda refusal: "another process is training")
    with pytest.raises(AvpipeError, match="another process is training"), locked_by_first(fabric, tmp_path, "it"):
        pytest.fail("the rank went on")
    fabric = SimpleNamespace(is_global_zero=False, broadcast=lambda refusal: None)
    with locked_by_first(fabric, tmp_path, "it"), stage_lock(tmp_path, "it"):
        pass  # only the first holds it


@pytest.mark.parametrize("calls", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_in_a_validation_saves_at_once_and_nothing_is_different(shards, tmp_path, monkeypatch, calls):
    whole = fit(RECIPE, shards, tmp_path / "whole", workers=0)
    measure, left, begin = Validation.measure, [calls], time.monotonic()

    def interrupted(self):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(100)
        return measure(self)

    monkeypatch.setattr(Validation, "measure", interrupted)
    with pytest.raises(StoppedError, match=f"stopped by SIGINT after step {3 * calls};") as stopped:
        fit(RECIPE, shards, tmp_path / "stopped", workers=0)
    assert stopped.value.exit_code == 130 and time.monotonic() - begin < 90
    saved = load_checkpoint(tmp_path / "stopped" / LAST)
    assert (saved["step"], saved["epochs_done"]) == (3 * calls, calls - 1)
    again = fit(RECIPE, shards, tmp_path / "stopped", workers=0)
    assert again.best == whole.best
    assert train_kill.outcome(again.run) == train_kill.outcome(whole.run)


def test_a_second_ctrl_c_ends_at_once():
    code = "import time; from avpipe.train.run.preemption import StopSignals as S\n"
    code += "with S(single_process=True):\n print(1, flush=True)\n"
    code += " while True: time.sleep(0.1)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert "press Ctrl-C again to stop at once" in process.stderr.readline() + process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT and not process.stderr.read()


def test_no_python_code_runs_when_memory_comes_back():
    memory, called = BufferPool(), []
    tensor = memory.empty((4,), np.float32)
    sys.setprofile(lambda frame, event, _: called.append(event))
    del tensor
    sys.setprofile(None)
    assert "call" not in called, "an exception of a signal would be lost in it"


def test_what_would_end_a_training_after_its_first_epoch_is_said_before_it(shards, done_root):
    parts = {"network": None, "samples": SimpleNamespace(feature="logspec", shards=shards), "inputs": None}
    parts |= {"workers": 0, "classes": None, "on_damage": None}
    ranks = SimpleNamespace(world_size=4)
    with pytest.raises(AvpipeError, match="validation holds out 3 clips, fewer than the 4 processes"):
        Validation(fabric=ranks, held_out=np.arange(3), select_on=None, **parts)
    with pytest.raises(AvpipeError, match="no clip with a usable box"):
        Validation(fabric=ranks, held_out=np.arange(0), select_on=shards, **parts)
    other = SimpleNamespace(feature="tie-mel", shards=shards)
    select_shards = open_shards(done_root.shards / "synth_test")
    with pytest.raises(AvpipeError, match="holds tie-mel None, the shards of the training None"):
        Validation(fabric=ranks, held_out=np.arange(0), select_on=select_shards, **parts | {"samples": other})
