"""Two processes that train together give the parameters of one with the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.checkpoint import load_checkpoint

SCRIPT = Path(__file__).with_name("train_frozen.py")
CHANGES = ["image_px=32", "batch_size=4", "epochs=5", "precision=64-true", "mixing=none", "validation=0", "patience=0"]
# EZ-VSL gathers as MarginNCE does, whose network it is.
CASES = {
    "lvs-small": ["spec_pool=8"],
    "marginnce-small": ["anchor=both", "stride14=false"],
    "ssl-tie-small": ["spec_pool=8", "feature=logspec", "mixing=released"],
}


def train(shards: Path, out: Path, recipe: str, changes: list[str], processes: int) -> dict[str, torch.Tensor]:
    """The parameters after the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    command = [sys.executable, *(together if processes > 1 else []), str(SCRIPT), str(shards), str(out), recipe]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *CHANGES, *changes], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    state = load_checkpoint(out)
    assert state["step"] == 20
    return state["network"]


@pytest.mark.parametrize("recipe", CASES)
def test_two_processes_train_as_one_with_the_whole_batch(done_root, tmp_path, recipe):
    shards = done_root.shards / "synth_train"
    one = train(shards, tmp_path / "one", recipe, CASES[recipe], 1)
    two = train(shards, tmp_path / "two", recipe, CASES[recipe], 2)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-5, atol=1e-8, msg=name)
