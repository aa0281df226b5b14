"""Kills a small training at random moments, also while it writes a checkpoint, until it has come to its end.

Whatever was killed, how often and by what: the losses, the validation and the weights are those of an undisturbed run,
nothing is left over, and what a signal can be answered to is answered with a checkpoint. By hand:

    python tests/chaos/train_kill.py --shards SHARDS --rounds 50 --seed 0
"""

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from thin import patch_networks
from train_fixtures import logged

from avpipe.train.cli.main import main
from avpipe.train.models.checkpoint import BEST, LAST, load_checkpoint
from avpipe.train.run.logs import VALIDATION

SETTINGS = ("image_px=32", "batch_size=4", "epochs=5", "checkpoint_steps=2", "spec_pool=8", "validation=0.25")
KILLS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# A training that has been asked to end ends within a step; a busy machine makes that longer.
HANGS_S = 60.0
KILLS_A_RUN = 6


def train(shards: Path, root: Path, name: str, log: Path) -> int:
    """Begin a training in a process of its own, forked from this one, which has imported all; returns its id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    # As a shell in the foreground leaves them; a child of a background job would ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 0
    try:
        patch_networks(pytest.MonkeyPatch())
        settings = [word for change in SETTINGS for word in ("--set", change)]
        sys.argv = ["avpipe", "--root", str(root), "train", "--shards", str(shards), "--recipe", "lvs-small"]
        sys.argv += ["--name", name, "--workers", "1", *settings]
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:  # before the training takes note of signals
        code = 130
    finally:
        sys.stderr.flush()
        os._exit(code or 0)


def wait(child: int, seconds: float) -> int | None:
    """The exit code of a process, negative for the signal that ended it, or None where it goes on after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def killed(child: int, run: Path, rng: random.Random, whole_s: float) -> tuple[str | None, int | None]:
    """Kill a training at a random moment; (what with and when, its exit code); the first is None where it was done."""
    number, in_checkpoint = rng.choice(KILLS), rng.random() < 0.4
    end = time.monotonic() + rng.uniform(0.05, 0.8) * whole_s
    while time.monotonic() < end or in_checkpoint:
        late_s = time.monotonic() - end
        if in_checkpoint and ((late_s >= 0 and list(run.glob(".*.pt.*.tmp"))) or late_s > HANGS_S):
            break
        if (code := wait(child, 0.002)) is not None:
            return None, code
    os.kill(child, number)
    if (code := wait(child, HANGS_S)) is None:
        os.kill(child, signal.SIGKILL)
        wait(child, HANGS_S)
    return f"{number.name}{' in a checkpoint' if in_checkpoint else ''}", code


def outcome(run: Path) -> tuple:
    """All of a finished run that must not depend on kills."""
    tables = [logged(run, "step", "epoch", "loss"), logged(run, "step", "epoch", "measure", "value", name=VALIDATION)]
    states = [load_checkpoint(run / name) for name in (LAST, BEST)]
    weights = [{name: value.numpy().tobytes() for name, value in state["network"].items()} for state in states]
    return tables, weights, [(state["step"], state["epochs_done"], state["best"]) for state in states]


def attack(shards: Path, folder: Path, rounds: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """(how many kills of each kind, faults as sentences) of at least `rounds` kills."""
    rng, counts, faults = random.Random(seed), collections.Counter(), []
    root = folder / "root"
    begin = time.monotonic()
    if (code := wait(train(shards, root, "undisturbed", folder / "undisturbed.log"), 600)) != 0:
        return counts, [f"the undisturbed training ended with {code}: {(folder / 'undisturbed.log').read_text()}"]
    whole_s, expected, number = time.monotonic() - begin, outcome(root / "runs" / "undisturbed"), 0
    while counts.total() < rounds:
        number += 1
        run, log, kills = root / "runs" / f"run-{number}", folder / f"run-{number}.log", 0
        while True:
            child = train(shards, root, run.name, log)
            if kills < min(KILLS_A_RUN, rounds):
                how, code = killed(child, run, rng, whole_s)
            else:
                how, code = None, wait(child, 600)
            if how is None:
                break
            kills += 1
            counts[how] += 1
            number_of = getattr(signal, how.split()[0])
            if code not in {signal.SIGKILL: (-9,)}.get(number_of, (128 + number_of, -number_of, 0)):
                faults.append(f"{run.name}: {how} ended with {code}")
        if code != 0:
            faults.append(f"{run.name} ended with {code}")
        elif outcome(run) != expected:
            faults.append(f"{run.name} came out otherwise after {kills} kills")
        faults += [f"{run.name}: {path.name} is left over" for path in run.glob(".*.tmp")]
        if "Traceback" in log.read_text() or "Exception ignored" in log.read_text():
            faults.append(f"{run.name}: a traceback in {log}: {log.read_text()[-2000:]}")
    return counts, faults


def run() -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=Path, required=True, help="a small folder of shards")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        counts, faults = attack(given.shards, folder, given.rounds, given.seed)
    print(f"{counts.total()} kills: {dict(counts)}; {len(faults)} faults", *faults, sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(run())
