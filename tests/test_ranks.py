"""Two processes that train together give the parameters of one with the whole batch."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import train_frozen

from avpipe.train.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.heavy


@pytest.fixture
def one_and_two(once, done_root):
    """Folders with the runs of one process and of two."""
    shards = done_root.shards / "synth_train"

    def make(folder) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
        command += [train_frozen.__file__, str(shards), str(folder / "two")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        train_frozen.train_all(shards, folder / "one")

    folder = once("ranks", make)
    return folder / "one", folder / "two"


@pytest.mark.parametrize("recipe", train_frozen.CASES)
def test_two_processes_train_as_one_with_the_whole_batch(one_and_two, recipe):
    one, two = (load_checkpoint(folder / recipe) for folder in one_and_two)
    assert one["step"] == two["step"] == 8
    for name, expected in one["network"].items():
        torch.testing.assert_close(two["network"][name], expected, rtol=1e-5, atol=1e-8, msg=name)
