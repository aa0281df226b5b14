"""Workers that die or hang, and whole runs killed at their weakest points: the bytes are the same in the end.

At random moments `tests/chaos/kill.py` kills; what a lost worker costs, `test_executors` tells.

Worker processes import this module, so what is slow to import is imported where it is used.
"""

import json
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from chaos.common import hashes, start

from avpipe.pipeline.work.run import run_parts

pytestmark = pytest.mark.heavy
RUN_SLOWLY = "import test_kill; test_kill.run_slowly()"


def extract_part_with_a_deadly_clip(tasks: list) -> list:
    """Run in a worker: the decoder crashes on the clip that starts at second 2."""
    from avpipe.pipeline.extract import stage

    whole = stage.make_sample

    def crash(path, settings):
        if path.stem.endswith("_000002"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return whole(path, settings)

    stage.make_sample = crash
    return stage.extract_part(tasks)


def slow_extract_part(tasks: list) -> list:
    """Run in a worker."""
    from avpipe.pipeline.extract.stage import extract_part

    time.sleep(0.05)
    return extract_part(tasks)


def slow_write_shard(jobs: list) -> int:
    """Run in a worker."""
    from avpipe.pipeline.shards.write import write_shard

    time.sleep(0.1)
    return write_shard(jobs)


def run_slowly() -> None:
    """The command line with small parts and slow workers, so that there is a middle to be stopped in."""
    import avpipe.pipeline.extract.cache_part
    import avpipe.pipeline.extract.stage
    import avpipe.pipeline.features.settings
    import avpipe.pipeline.shards.write
    from avpipe.train.cli.main import main

    avpipe.pipeline.extract.cache_part.CLIPS_PER_PART = 2
    avpipe.pipeline.extract.stage.extract_part = slow_extract_part
    avpipe.pipeline.shards.write.write_shard = slow_write_shard
    avpipe.pipeline.features.settings.ShardSettings = partial(
        avpipe.pipeline.features.settings.ShardSettings, samples_per_shard=1
    )
    main()


def note_and_wait(items: list[str]) -> None:
    """Run in a worker: the first to come is done at once, the second would stay for long."""
    folder = Path(items[0])
    first = not any(folder.iterdir())
    (folder / str(os.getpid())).touch()
    time.sleep(0 if first else 60)


def echo(items: list[str]) -> list[str]:
    """Run in a worker."""
    return items


def die_at_once(*_) -> None:
    """Run instead of a worker."""
    os._exit(9)


class Sleepy:
    """Run instead of a worker: the first one takes its part and does not begin it."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __call__(self, board, pipe) -> None:
        from avpipe.pipeline.work import local

        if not self.flag.exists():
            self.flag.touch()
            pipe.recv_bytes()
            time.sleep(600)
        local._serve_parent(board, pipe)


def eventually(condition, seconds: float = 20) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.002)
    return true


def test_a_caller_that_stops_leaves_no_worker(tmp_path):
    for _ in run_parts(note_and_wait, [[str(tmp_path)], [str(tmp_path)]], workers=2):
        break
    pids = [path.name for path in tmp_path.iterdir()]
    assert pids and eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def kill_one_worker(killed: list) -> None:
    """Kill a worker of this process as soon as there is one."""
    assert eventually(multiprocessing.active_children)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    killed.append(True)


@pytest.mark.parametrize("moment", ["starts", "waits"])
def test_a_worker_killed_before_it_has_a_part_costs_nothing(moment):
    killed, results = [], []
    if moment == "starts":
        threading.Thread(target=kill_one_worker, args=[killed], daemon=True).start()
    for result in run_parts(echo, [["a"], ["b"]], workers=1):
        results.append(result)
        if not killed:
            kill_one_worker(killed)
    assert killed == [True] and sorted(results) == [["a"], ["b"]]


def test_workers_that_cannot_start_are_a_sentence(monkeypatch):
    from avpipe.pipeline.core.errors import AvpipeError

    monkeypatch.setattr("avpipe.pipeline.work.local._serve_parent", die_at_once)
    begin = time.monotonic()
    with pytest.raises(AvpipeError, match=r"5 worker processes in a row ended before they began \(exit code 9\)"):
        list(run_parts(echo, [["a"], ["b"]], workers=1))
    assert time.monotonic() - begin < 60


def test_a_worker_that_never_begins_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setattr("avpipe.pipeline.work.local.BEGIN_S", 6.0)
    monkeypatch.setattr("avpipe.pipeline.work.local._serve_parent", Sleepy(tmp_path / "slept"))
    assert list(run_parts(echo, [["a", "b"]], workers=1)) == [["a", "b"]]
    assert (tmp_path / "slept").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["extract", "shard --split synth_train"])
def test_ctrl_c_ends_a_stage_in_one_line_and_it_goes_on(command, fresh_root, extracted_root):
    """The signal goes to all processes, as from a terminal."""
    root = fresh_root if command == "extract" else extracted_root
    folder, pattern = (root.cache, "*/part-*.parquet") if command == "extract" else (root.shards, ".*/*.part.parquet")
    run = partial(start, "--root", root.path, *command.split(), "--workers", 2, program=RUN_SLOWLY)
    process = run()
    assert eventually(lambda: list(folder.glob(pattern)), 120)
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - begin < 20
    said = [line for line in errors.splitlines() if not line.startswith(("extract: ", "shard: "))]
    assert said == ["avpipe: stopped; finished work is kept, rerun the command to resume"]
    process = run()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def run_to_a_call(root, stage: str, name: str, wanted: int) -> None:
    """Run a stage in this process, which is killed as the function of that name is called for the `wanted`-th time."""
    import avpipe.pipeline.extract.stage
    import avpipe.pipeline.shards.write
    from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
    from avpipe.pipeline.manifest.tables import Manifest

    whole, calls = pkgutil.resolve_name(name), []

    def killing(*args, **kwargs):
        calls.append(0)
        if len(calls) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    patch = pytest.MonkeyPatch()
    patch.setattr(name, killing)
    patch.setattr("avpipe.pipeline.extract.cache_part.CLIPS_PER_PART", 3)
    for module in (avpipe.pipeline.extract.stage, avpipe.pipeline.shards.write):
        patch.setattr(module, "run_parts", lambda function, parts, workers: map(function, parts))
    if stage == "extract":
        avpipe.pipeline.extract.stage.extract(
            root, Manifest.open(root.manifest).ids(None), ExtractSettings(), workers=1
        )
    else:
        settings = ShardSettings(samples_per_shard=5)
        avpipe.pipeline.shards.write.shard(root, "synth_train", ExtractSettings(), settings, workers=1)


def serve_kills(folder: str) -> None:
    """For each line [stage, function, call] fork a process that is killed there: what takes long is to import."""
    from avpipe.pipeline.core.paths import Root

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_to_a_call(Root(Path(folder)), *json.loads(line))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


@contextmanager
def killer(root):
    """Gives kill(stage, function, n): the stage in a process that is killed as it calls the function the n-th time."""
    program = "import sys, test_kill; test_kill.serve_kills(sys.argv[1])"
    process = start(root.path, program=program, stdin=subprocess.PIPE, stderr=None)

    def kill(stage: str, name: str, call: int) -> None:
        print(json.dumps([stage, name, call]), file=process.stdin, flush=True)
        assert int(process.stdout.readline()) == -signal.SIGKILL, f"{name} was not called {call} times"

    try:
        yield kill
    finally:
        process.kill()
        process.communicate()


def identities(paths) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    return {path.name: ((status := path.stat()).st_ino, status.st_mtime_ns) for path in paths}


def shard_here(root, seed: int = 0) -> dict[str, str]:
    """Hashes of the shards, made in this process."""
    from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
    from avpipe.pipeline.shards.write import shard

    settings = ShardSettings(samples_per_shard=5, seed=seed)
    return hashes(shard(root, "synth_train", ExtractSettings(), settings, workers=1).folder)


def test_an_extraction_killed_at_its_weakest_points_loses_only_what_was_not_finished(fresh_root, done_root, serial):
    import pyarrow.parquet as pq

    from avpipe.pipeline.extract.cache import Cache
    from avpipe.pipeline.extract.stage import extract
    from avpipe.pipeline.features.settings import ExtractSettings
    from avpipe.pipeline.manifest.tables import Manifest

    cache, finished = Cache(fresh_root.cache / ExtractSettings().name), {}
    with killer(fresh_root) as kill:
        for name, call, parts in (
            ("avpipe.pipeline.extract.stage.samples.TarWriter.add", 5, 1),  # in the middle of the second tar
            ("avpipe.pipeline.core.files.os.fsync", 2, 1),  # the tar has its name, the ledger's file has not
            (
                "avpipe.pipeline.extract.cache_part._write_index",
                2,
                2,
            ),  # the second part of this run is in the ledger and has no index
            ("avpipe.pipeline.extract.stage.Ledger.write", 1, 2),  # a tar alone
        ):
            kill("extract", name, call)
            now = identities(cache.indexes())
            assert finished.items() <= now.items()
            assert len(now) == parts, name
            finished = now
    settled = [i for path in cache.indexes() for i in pq.read_table(path)["clip_id"].to_pylist()]
    ids = Manifest.open(fresh_root.manifest).ids(None)
    plan = extract(fresh_root, ids, ExtractSettings(), workers=1)
    assert plan.finished == len(settled)
    assert {job.clip_id for job in plan.jobs} == set(ids) - set(settled)
    assert finished.items() < identities(cache.indexes()).items()
    assert list(cache.folder.glob(".*.tmp")) == []
    assert shard_here(fresh_root) == hashes(done_root.shards / "synth_train")


def test_a_sharding_killed_at_its_weakest_points_never_shows_half_a_split(extracted_root, done_root, serial):
    split, finished = extracted_root.shards / "synth_train", {}
    new, old = hashes(done_root.shards / "synth_train"), shard_here(extracted_root, seed=1)
    assert old != new
    with killer(extracted_root) as kill:
        for name, call, there in (
            ("avpipe.pipeline.core.samples.TarWriter.add", 7, old),  # in the middle of the second tar
            ("avpipe.pipeline.shards.write.write_parquet", 2, old),  # the third tar has no fragment of the index
            ("avpipe.pipeline.shards.write.write_index", 1, old),  # all fragments, but no index
            ("avpipe.pipeline.shards.write._swap", 1, old),
            ("avpipe.pipeline.shards.write.Path.unlink", 4, old),  # two of four fragments are away
            ("avpipe.pipeline.shards.write.Path.replace", 2, old),  # the first one is the card's
            (
                "avpipe.pipeline.shards.write.Path.replace",
                3,
                None,
            ),  # the older folder is away, the new one not yet there
        ):
            kill("shard", name, call)
            assert (hashes(split) if split.exists() else None) == there, name
            fragments = extracted_root.shards.glob(".synth_train-*/*.part.parquet")
            now = identities(path.with_name(path.name.replace(".part.parquet", ".tar")) for path in fragments)
            assert name.startswith("avpipe.pipeline.shards.write.Path") or finished.items() <= now.items(), name
            finished = now
    assert shard_here(extracted_root) == new
    assert sorted(path.name for path in extracted_root.shards.iterdir()) == [".locks", "synth_train"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system may not be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("stage", ["shard", pytest.param("extract", marks=pytest.mark.slow)])
def test_a_full_disk_is_one_sentence_and_with_room_the_bytes_are_the_same(
    stage, small_disk, done_root, tmp_path, monkeypatch
):
    from conftest import copied

    from avpipe.pipeline.core.errors import AvpipeError
    from avpipe.pipeline.extract.stage import extract
    from avpipe.pipeline.features.settings import ExtractSettings
    from avpipe.pipeline.manifest.tables import Manifest

    needs = ("manifest", "clips", "ledger/download") if stage == "extract" else ("manifest", "cache")
    root = copied(done_root, tmp_path / "root", *needs)
    monkeypatch.setattr("avpipe.pipeline.extract.cache_part.CLIPS_PER_PART", 3)
    (root.cache if stage == "extract" else root.shards).symlink_to(small_disk)
    ids = Manifest.open(root.manifest).ids(None)
    run = partial(extract, root, ids, ExtractSettings(), workers=2) if stage == "extract" else partial(shard_here, root)
    with pytest.raises(AvpipeError, match="no space is left on the disk; free some space"):
        run()
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    run()
    # Of an extraction what is made of it counts, for its parts may be cut apart.
    made = shard_here(root) if stage == "extract" else hashes(root.shards / "synth_train")
    assert made == hashes(done_root.shards / "synth_train")
