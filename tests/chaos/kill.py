"""Kills the parent, one worker or the whole group at random moments of every stage; in the end nothing may show it.

python tests/chaos/kill.py --rounds 50 --seed 1
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from common import Tally, fault_of, hashes, leftovers, options, start, succeed, wait

from avpipe.pipeline.core.ledger import Ledger
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.features.settings import ExtractSettings

# Small parts, so that there is a middle to be killed in.
PROGRAM = """
import avpipe.pipeline.extract.cache_part, avpipe.pipeline.features.settings
from functools import partial
from avpipe.train.cli.main import main
avpipe.pipeline.extract.cache_part.CLIPS_PER_PART = 2
settings = avpipe.pipeline.features.settings
settings.ShardSettings = partial(settings.ShardSettings, samples_per_shard=2)
main()
"""
VICTIMS = ("parent", "worker", "group")
# Rounds of one root until it is made anew: a run that is killed more often than this may go on undisturbed.
KILLS_A_ROOT = 3


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command, what it needs of a finished root, and what it makes there."""

    needs: tuple[str, ...]
    command: Callable[[Path, Path], list]
    """Of (root, corpus): the arguments."""
    made: Callable[[Path], dict]
    workers: bool = False
    once: bool = False
    """Whether it refuses to run again where it has ended."""


def _cached(root: Path) -> dict:
    rows = Cache(root / "cache" / ExtractSettings().name).table.select(["clip_id", "sha256"]).to_pylist()
    latest = Ledger(root / "ledger", f"extract-{ExtractSettings().name}").latest()
    return {row["clip_id"]: row["sha256"] for row in rows} | {"failed": [o for o in latest.values() if not o.done]}


STAGES = {
    "manifest": Stage(
        needs=(),
        command=lambda root, corpus: ["manifest", "build", "--lists", corpus / "lists"],
        made=lambda root: hashes(root / "manifest"),
    ),
    "download": Stage(
        needs=("manifest",),
        command=lambda root, corpus: ["download", "--from", corpus / "clips"],
        made=lambda root: hashes(root / "clips"),
    ),
    "import": Stage(
        needs=("manifest",),
        command=lambda root, corpus: ["import", corpus / "clips"],
        made=lambda root: hashes(root / "clips"),
    ),
    "extract": Stage(
        needs=("manifest", "clips", "ledger/download"),
        command=lambda root, corpus: ["extract", "--workers", 2],
        made=_cached,
        workers=True,
    ),
    "shard": Stage(
        needs=("manifest", "cache"),
        command=lambda root, corpus: ["shard", "--split", "synth_train", "--workers", 2],
        made=lambda root: hashes(root / "shards/synth_train"),
        workers=True,
    ),
    "verify": Stage(
        needs=("shards",),
        command=lambda root, corpus: ["verify", root / "shards/synth_train", "--workers", 2],
        made=lambda root: hashes(root / "shards"),
        workers=True,
    ),
    "export": Stage(
        needs=("manifest", "cache"),
        command=lambda root, corpus: ["export", "--split", "synth_train", "--format", "folders", root / "out"],
        made=lambda root: hashes(root / "out"),
        once=True,
    ),
}


def _fresh(stage: Stage, done: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for name in stage.needs:
        shutil.copytree(done / name, root / name)


def _run(stage: Stage, root: Path, corpus: Path):
    return start("--root", root, *stage.command(root, corpus), program=PROGRAM)


def _worker_of(pid: int, draw: random.Random) -> int | None:
    """One of the process's workers, which may just be starting."""
    try:
        children = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
        workers = [c for c in map(int, children) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except OSError:
        return None
    return draw.choice(sorted(workers)) if workers else None


def _kill(process, victim: str, seconds: float, draw: random.Random) -> bool:
    """Wait, then kill; returns whether there was something to kill."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    if victim != "worker":
        if process.poll() is not None:
            return False
        (os.killpg if victim == "group" else os.kill)(process.pid, signal.SIGKILL)
        return True
    while process.poll() is None:
        if worker := _worker_of(process.pid, draw):
            try:
                os.kill(worker, signal.SIGKILL)
                return True
            except ProcessLookupError:
                pass
        time.sleep(0.01)
    return False


def attack(name: str, done: Path, corpus: Path, folder: Path, kills: int, draw: random.Random, tally: Tally) -> None:
    """Kill stage `name` so often; its roots are copies of `done` in `folder`."""
    stage, root = STAGES[name], folder / "root"
    _fresh(stage, done, root)
    begin = time.monotonic()
    code, _, errors = wait(_run(stage, root, corpus))
    whole_s, expected = time.monotonic() - begin, stage.made(root)
    if fault := fault_of(code, errors):
        return tally.note(f"{name} undisturbed", fault)
    killed, victims = 0, VICTIMS if stage.workers else ("parent", "group")
    while killed < kills:
        _fresh(stage, done, root)
        for _ in range(KILLS_A_ROOT):
            victim = draw.choice(victims)
            process = _run(stage, root, corpus)
            hit = _kill(process, victim, draw.uniform(0, whole_s), draw)
            code, _, errors = wait(process)
            killed += hit
            allowed = (0, -signal.SIGKILL) if hit and victim != "worker" else (0,)
            tally.note(f"{name}: {victim if hit else 'nobody'} killed", fault_of(code, errors, allowed))
            if ended := stage.once and stage.made(root) == expected:
                break
        code, _, errors = (0, "", "") if ended else wait(_run(stage, root, corpus))
        fault = fault_of(code, errors)
        if fault is None and stage.made(root) != expected:
            fault = "something else was made"
        if fault is None and (left := leftovers(root)):
            fault = f"left behind: {left}"
        tally.note(f"{name}: ended", fault)


def main() -> int:
    """Make a small corpus, take it through all stages, then kill each."""
    parser = options(__doc__.splitlines()[0], rounds=50)
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    given = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus, done = folder / "corpus", folder / "done"
        stages = [STAGES[name].command(done, corpus) for name in ("manifest", "download", "extract", "shard")]
        commands = [["synth", corpus, "--clips", 8, "--classes", 2], *stages]
        succeed(*(["--root", done, *command] for command in commands), program=PROGRAM)
        for name in given.stages:
            attack(name, done, corpus, folder, given.rounds, random.Random(f"{given.seed} {name}"), tally)
            print(f"{name} done", dict(tally.counts), flush=True)
    return tally.finish()


if __name__ == "__main__":
    sys.exit(main())
