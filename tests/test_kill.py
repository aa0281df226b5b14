"""Workers that die or hang, and whole runs killed at their weakest points: the bytes are the same in the end.

At random moments `tests/chaos/kill.py` kills.

Worker processes import this module, so what is slow to import is imported where it is used.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.parts import Lost, run_parts

TESTS = Path(__file__).parent
# Small parts and slow workers, so that there is a middle to be killed in.
COMMAND = """
import pipeline.extract, pipeline.settings, pipeline.shard, test_kill
from functools import partial
from train.cli import main

pipeline.cache_part.CLIPS_PER_PART = 2
pipeline.extract.extract_part = test_kill.slow_extract_part
pipeline.shard.write_shard = test_kill.slow_write_shard
pipeline.settings.ShardSettings = partial(pipeline.settings.ShardSettings, samples_per_shard=1)
main()
"""
# Reads lines [stage, function, n, seed]; for each, a forked process runs the stage until it calls the function for the
# n-th time, and is killed there. Forked, because what takes long is to import.
KILLED_AT = """
import json, os, signal, sys
from pathlib import Path
import pipeline.extract, pipeline.shard
from pipeline.layout import Root
from pipeline.manifest import Manifest
from pipeline.settings import ExtractSettings, ShardSettings

def run(stage, name, wanted, seed):
    owner, _, attribute = name.rpartition(".")
    owner, calls = eval(owner), []
    whole = getattr(owner, attribute)

    def killing(*args, **kwargs):
        calls.append(0)
        if len(calls) == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **kwargs)

    setattr(owner, attribute, killing)
    if stage == "extract":
        pipeline.extract.extract(root, Manifest.open(root.manifest).ids(None), ExtractSettings(), workers=1)
    else:
        settings = ShardSettings(samples_per_shard=5, seed=seed)
        pipeline.shard.shard(root, "synth_train", ExtractSettings(), settings, workers=1)

root = Root(Path(sys.argv[1]))
pipeline.extract.run_parts = pipeline.shard.run_parts = lambda function, parts, workers: map(function, parts)
pipeline.cache_part.CLIPS_PER_PART = 3
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(*json.loads(line))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def behave(items: list[str]) -> list[str]:
    """Run in a worker: each item says what happens."""
    for item in items:
        if item == "exit":
            os._exit(3)
        elif item == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif item == "hang":
            time.sleep(600)
    return items


def extract_part_with_a_deadly_clip(tasks: list) -> list:
    """Run in a worker: the decoder crashes on the clip that starts at second 2."""
    from pipeline import extract

    whole = extract.make_sample

    def crash(path, settings):
        if path.stem.endswith("_000002"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return whole(path, settings)

    extract.make_sample = crash
    return extract.extract_part(tasks)


def slow_extract_part(tasks: list) -> list:
    """Run in a worker."""
    from pipeline.extract import extract_part

    time.sleep(0.05)
    return extract_part(tasks)


def slow_write_shard(jobs: list) -> int:
    """Run in a worker."""
    from pipeline.shard import write_shard

    time.sleep(0.1)
    return write_shard(jobs)


def note_and_wait(items: list[str]) -> None:
    """Run in a worker: the first to come is done at once, the second would stay for long."""
    folder = Path(items[0])
    first = not any(folder.iterdir())
    (folder / str(os.getpid())).touch()
    time.sleep(0 if first else 60)


def test_a_worker_that_dies_costs_its_item_only():
    parts = [["a", "b", "exit", "c"], ["d"], ["killed", "e"]]
    results = list(run_parts(behave, parts, workers=2))
    lost = {result.item: result.reason for result in results if isinstance(result, Lost)}
    done = [item for result in results if not isinstance(result, Lost) for item in result]
    assert lost == {"exit": "decoder_crash", "killed": "decoder_crash"}
    assert sorted(done) == list("abcde")


def test_a_worker_that_hangs_costs_its_item_only(monkeypatch):
    monkeypatch.setattr("pipeline.parts.SECONDS_PER_ITEM", 3.0)
    results = list(run_parts(behave, [["a", "hang"], ["b"]], workers=1))
    lost = [result for result in results if isinstance(result, Lost)]
    assert [(result.item, result.reason) for result in lost] == [("hang", "timeout")]
    assert sorted(item for result in results if result not in lost for item in result) == ["a", "b"]


def test_a_caller_that_stops_leaves_no_worker(tmp_path):
    for _ in run_parts(note_and_wait, [[str(tmp_path)], [str(tmp_path)]], workers=2):
        break
    deadline = time.monotonic() + 20
    pids = [int(path.name) for path in tmp_path.iterdir()]
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def kill_while(moment: str, folder: Path, kill) -> list:
    """Results of two parts whose worker is killed once, while it `starts` or `waits` between them."""
    killed, results = [], []
    if moment == "starts":
        threading.Thread(target=lambda: killed.append(kill()), daemon=True).start()
    for result in run_parts(note_all, [[str(folder), "a"], [str(folder), "b"]], workers=1):
        results.append(result)
        if moment == "waits" and not killed:
            killed.append(kill())
    assert killed == [True]
    return results


def kill_one_worker() -> bool:
    """Kill a worker of this process as soon as there is one."""
    import multiprocessing

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
            return True
        time.sleep(0.001)
    return False


def note_all(items: list[str]) -> list[str]:
    """Run in a worker."""
    return list(items)[1:]


@pytest.mark.parametrize("moment", ["starts", "waits"])
def test_a_worker_killed_before_it_has_a_part_costs_nothing(moment, tmp_path):
    assert sorted(kill_while(moment, tmp_path, kill_one_worker)) == [["a"], ["b"]]


def test_workers_that_cannot_start_are_a_sentence(monkeypatch):
    from pipeline import local_processes
    from pipeline.errors import AvpipeError

    monkeypatch.setattr(local_processes, "_serve_parent", die_at_once)
    begin = time.monotonic()
    with pytest.raises(AvpipeError, match=r"5 worker processes in a row ended before they began \(exit code 9\)"):
        list(run_parts(behave, [["a"], ["b"]], workers=1))
    assert time.monotonic() - begin < 60


def die_at_once(*_) -> None:
    """Run instead of a worker."""
    os._exit(9)


def test_a_worker_that_never_begins_is_replaced(monkeypatch, tmp_path):
    from pipeline import local_processes

    monkeypatch.setattr(local_processes, "BEGIN_S", 6.0)
    monkeypatch.setattr(local_processes, "_serve_parent", Sleepy(tmp_path / "slept"))
    assert list(run_parts(behave, [["a", "b"]], workers=1)) == [["a", "b"]]
    assert (tmp_path / "slept").exists()


class Sleepy:
    """Run instead of a worker: the first one takes its part and does not begin it."""

    def __init__(self, flag: Path):
        self.flag = flag

    def __call__(self, board, pipe) -> None:
        from pipeline import local_processes

        if not self.flag.exists():
            self.flag.touch()
            pipe.recv_bytes()
            time.sleep(600)
        local_processes._serve_parent(board, pipe)


@pytest.mark.parametrize("command", ["extract", "shard --split synth_train"])
def test_ctrl_c_ends_a_stage_in_one_line_and_it_goes_on(command, fresh_root, done_root, tmp_path):
    """The signal goes to all processes, as from a terminal."""
    root = fresh_root if command == "extract" else with_cache_of(done_root, tmp_path / "other")
    folder, pattern = (root.cache, "*/part-*.parquet") if command == "extract" else (root.shards, ".*/*.part.parquet")
    process = start(root, *command.split())
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - begin < 20
    said = [line for line in errors.decode().splitlines() if not line.startswith(("extract: ", "shard: "))]
    assert said == ["avpipe: stopped; what is finished is kept, the same command goes on from there"]
    finish(start(root, *command.split()))


def start(root, *command: str) -> subprocess.Popen:
    """The command line with two workers, all in a process group of their own."""
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "--root", str(root.path), *command, "--workers", "2"],
        env=os.environ | {"PYTHONPATH": path},
        cwd=TESTS.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()


def kill_when(process: subprocess.Popen, folder: Path, pattern: str, count: int) -> None:
    """SIGKILL to the whole group as soon as `folder` holds so many files."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, f"ended before there were {count} {pattern}: {process.stderr.read().decode()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@contextmanager
def killer(root):
    """Gives kill(stage, function, n): the stage in a process that is killed as it calls the function the n-th time."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_AT, str(root.path)],
        cwd=TESTS.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def kill(stage: str, name: str, call: int, seed: int = 0) -> None:
        print(json.dumps([stage, name, call, seed]), file=process.stdin, flush=True)
        assert int(process.stdout.readline()) == -signal.SIGKILL, f"{name} was not called {call} times"

    try:
        yield kill
    finally:
        process.kill()
        process.communicate()


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def identities(paths) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    return {path.name: ((status := path.stat()).st_ino, status.st_mtime_ns) for path in paths}


def with_cache_of(done_root, folder: Path):
    """A root in which all is extracted and nothing is sharded."""
    from pipeline.layout import Root

    root = Root(folder)
    shutil.copytree(done_root.manifest, root.manifest)
    shutil.copytree(done_root.cache, root.cache)
    return root


def shard_here(root, monkeypatch, **changes) -> Path:
    from pipeline import shard
    from pipeline.settings import ExtractSettings, ShardSettings

    monkeypatch.setattr(shard, "run_parts", lambda function, parts, workers: map(function, parts))
    settings = ShardSettings(**{"samples_per_shard": 5} | changes)
    return shard.shard(root, "synth_train", ExtractSettings(), settings, workers=1).folder


def extract_cache(root):
    from pipeline.cache import Cache
    from pipeline.settings import ExtractSettings

    return Cache(root.cache / ExtractSettings().name)


def done_rows(root) -> list[str]:
    """Clip ids of all rows of the extraction's ledger that say done."""
    import pyarrow.parquet as pq

    files = (root.ledger / extract_cache(root).folder.name.join(["extract-", ""])).glob("*.parquet")
    return [row["clip_id"] for file in files for row in pq.read_table(file).to_pylist() if row["status"] == "done"]


def test_an_extraction_killed_again_and_again_ends_as_an_undisturbed_one(fresh_root, done_root, monkeypatch):
    import pyarrow.parquet as pq

    from pipeline.manifest import Manifest

    cache = extract_cache(fresh_root)
    finished = {}
    for pattern, count in ((".*.tmp", 1), ("part-*.parquet", 4)):
        kill_when(start(fresh_root, "extract"), cache.folder, pattern, count)
        assert finished.items() <= identities(cache.indexes()).items()
        finished = identities(cache.indexes())
    assert 4 <= len(finished) < 10
    finish(start(fresh_root, "extract"))
    assert finished.items() < identities(cache.indexes()).items()
    clips = [clip for index in cache.indexes() for clip in pq.read_table(index)["clip_id"].to_pylist()]
    assert sorted(clips) == sorted(Manifest.open(fresh_root.manifest).ids(None))
    before_the_last = [clip for index in cache.indexes() if index.name in finished for clip in ids_of(index)]
    assert all(done_rows(fresh_root).count(clip) == 1 for clip in before_the_last)
    assert list(cache.folder.glob(".*.tmp")) == []
    assert hashes(shard_here(fresh_root, monkeypatch)) == hashes(done_root.shards / "synth_train")


def ids_of(index: Path) -> list[str]:
    import pyarrow.parquet as pq

    return pq.read_table(index, columns=["clip_id"])["clip_id"].to_pylist()


def test_a_killed_sharding_ends_as_an_undisturbed_one(tmp_path, done_root, monkeypatch):
    root = with_cache_of(done_root, tmp_path / "root")
    undisturbed = with_cache_of(done_root, tmp_path / "undisturbed")
    command = ("shard", "--split", "synth_train")
    kill_when(start(root, *command), root.shards, ".synth_train-*/*.part.parquet", 5)
    assert not (root.shards / "synth_train").exists()
    fragments = root.shards.glob(".synth_train-*/*.part.parquet")
    tars = [path.with_name(path.name.replace(".part.parquet", ".tar")) for path in fragments]
    finished = identities(tars)
    assert 5 <= len(finished) < 16
    finish(start(root, *command))
    assert finished.items() < identities((root.shards / "synth_train").iterdir()).items()
    assert hashes(root.shards / "synth_train") == hashes(shard_here(undisturbed, monkeypatch, samples_per_shard=1))
    assert sorted(path.name for path in root.shards.iterdir()) == [".locks", "synth_train"]


def test_an_extraction_killed_at_its_weakest_points_loses_only_what_was_not_finished(
    fresh_root, done_root, monkeypatch
):
    import pipeline.extract
    from pipeline.manifest import Manifest
    from pipeline.settings import ExtractSettings

    cache, finished = extract_cache(fresh_root), {}
    with killer(fresh_root) as kill:
        for name, call, parts in (
            ("pipeline.extract.samples.TarWriter.add", 5, 1),  # in the middle of the second tar
            ("pipeline.layout.os.fsync", 2, 1),  # the tar has its name, the ledger's file has not
            ("pipeline.cache_part._write_index", 2, 2),  # the second part of this run is in the ledger and has no index
            ("pipeline.extract.Ledger.write", 1, 2),  # a tar alone
        ):
            kill("extract", name, call)
            now = identities(cache.indexes())
            assert finished.items() <= now.items()
            assert len(now) == parts, name
            finished = now
    monkeypatch.setattr(pipeline.extract, "run_parts", lambda function, parts, workers: map(function, parts))
    ids = Manifest.open(fresh_root.manifest).ids(None)
    plan = pipeline.extract.extract(fresh_root, ids, ExtractSettings(), workers=1)
    settled = [clip for index in cache.indexes() if index.name in finished for clip in ids_of(index)]
    assert plan.finished == len(settled)
    assert {job.clip_id for job in plan.jobs} == set(ids) - set(settled)
    assert finished.items() < identities(cache.indexes()).items()
    assert list(cache.folder.glob(".*.tmp")) == []
    assert hashes(shard_here(fresh_root, monkeypatch)) == hashes(done_root.shards / "synth_train")


def test_a_sharding_killed_at_its_weakest_points_never_shows_half_a_split(tmp_path, done_root, monkeypatch):
    root = with_cache_of(done_root, tmp_path / "root")
    split = root.shards / "synth_train"
    new = hashes(done_root.shards / "synth_train")
    old = hashes(shard_here(root, monkeypatch, seed=1))
    assert old != new
    with killer(root) as kill:
        for name, call, there in (
            ("pipeline.samples.TarWriter.add", 7, old),  # in the middle of the second tar
            ("pipeline.shard.write_parquet", 2, old),  # the third tar has no fragment of the index
            ("pipeline.shard.write_index", 1, old),  # all fragments, but no index
            ("pipeline.shard._swap", 1, old),
            ("pipeline.shard.Path.unlink", 4, old),  # two of four fragments are away
            ("pipeline.shard.Path.replace", 2, old),  # the first one is the card's
            ("pipeline.shard.Path.replace", 3, None),  # the older folder is away, the new one not yet there
        ):
            kill("shard", name, call)
            assert (hashes(split) if split.exists() else None) == there, name
    assert hashes(shard_here(root, monkeypatch)) == new
    assert sorted(path.name for path in root.shards.iterdir()) == [".locks", "synth_train"]


def before(stage: str, done_root, folder: Path):
    """A root in which all that `stage` needs is done, and nothing of it."""
    from pipeline.layout import Root

    for name in {"extract": ["manifest", "clips"], "shard": ["manifest", "cache"]}[stage]:
        shutil.copytree(done_root.path / name, folder / name)
    if stage == "extract":
        shutil.copytree(done_root.ledger / "download", folder / "ledger/download")
    return Root(folder)


def made_by(stage: str, root, monkeypatch) -> dict[str, str]:
    """Hashes of the shards; of an extraction those that are made of it, for its parts may be cut apart."""
    return hashes(shard_here(root, monkeypatch) if stage == "extract" else root.shards / "synth_train")


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


@pytest.mark.parametrize("stage", ["extract", "shard"])
def test_a_full_disk_is_one_sentence_and_with_room_the_bytes_are_the_same(
    stage, small_disk, done_root, tmp_path, monkeypatch
):
    import pipeline.extract
    import pipeline.shard
    from pipeline.errors import AvpipeError
    from pipeline.manifest import Manifest
    from pipeline.settings import ExtractSettings, ShardSettings

    root = before(stage, done_root, tmp_path / "root")
    monkeypatch.setattr("pipeline.cache_part.CLIPS_PER_PART", 3)
    output = {"extract": root.cache, "shard": root.shards}[stage]
    output.symlink_to(small_disk)

    def run() -> None:
        if stage == "extract":
            ids = Manifest.open(root.manifest).ids(None)
            pipeline.extract.extract(root, ids, ExtractSettings(), workers=2)
        else:
            settings = ShardSettings(samples_per_shard=5)
            pipeline.shard.shard(root, "synth_train", ExtractSettings(), settings, workers=2)

    with pytest.raises(AvpipeError, match="no space is left on the disk; make room"):
        run()
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    run()
    assert made_by(stage, root, monkeypatch) == hashes(done_root.shards / "synth_train")
