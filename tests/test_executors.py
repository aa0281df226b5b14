"""Where parts run: what is lost with a worker is one item, on Ray as here; the bytes are the same everywhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from chaos.common import hashes

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.extract.stage import extract, extract_part
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.shards.write import shard
from avpipe.pipeline.work.base import announced, extend_deadline
from avpipe.pipeline.work.local import LocalProcesses
from avpipe.pipeline.work.open import open_executor
from avpipe.pipeline.work.ray_cluster import RayCluster
from avpipe.pipeline.work.run import FailedItem, run_parts

needs_ray = pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed; pip install 'avpipe[ray]'")
pytestmark = pytest.mark.heavy
TESTS = Path(__file__).parent


def behave(part: list[tuple[Path, str]]) -> list[str]:
    """Run in a worker: note what is begun, then do what the item says."""
    for folder, item in announced(part):
        with open(folder / "begun", "a") as file:
            file.write(f"{item}\n")
        if item == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif item == "killed once" and not (folder / "once").exists():
            (folder / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        elif item == "hang":
            time.sleep(600)
        elif item == "long":
            extend_deadline(60)
            time.sleep(6)
        elif item == "refuse":
            raise AvpipeError("this cannot be done")
        elif item == "full":
            raise OSError(28, os.strerror(28), str(folder / "x.tar"))
    return [item for _, item in part]


def outcome_of(folder: Path, parts: list[list[str]], workers) -> tuple[Counter, dict[str, str], Counter]:
    """(what was done, what was lost and why, how often each item was begun)."""
    done, lost = Counter(), {}
    for result in run_parts(behave, [[(folder, item) for item in part] for part in parts], workers):
        if isinstance(result, FailedItem):
            lost[result.item[1]] = result.reason
        else:
            done.update(result)
    return done, lost, Counter((folder / "begun").read_text().splitlines())


def check_losses(folder: Path, workers) -> None:
    """One worker killed, one killed once only (as with a lost machine), one hanging: only two items are lost."""
    good = [f"clip {number}" for number in range(20)]
    parts = [[*good[:9], "killed", *good[9:12]], ["killed once", *good[12:15]], [*good[15:], "hang"]]
    done, lost, begun = outcome_of(folder, parts, workers)
    assert lost == {"killed": "decoder_crash", "hang": "timeout"}
    assert done == Counter([*good, "killed once"])
    assert begun["killed"] == begun["hang"] == begun["killed once"] == 2
    # Known by what it had begun, the guilty item costs its part once, not once for every halving.
    assert max(begun[item] for item in good) == 2


def test_a_lost_worker_costs_the_item_in_hand_and_one_more_go(tmp_path, monkeypatch):
    monkeypatch.setattr("avpipe.pipeline.work.run.SECONDS_PER_ITEM", 4.0)
    check_losses(tmp_path, 2)


def test_an_item_that_says_so_may_take_longer(tmp_path, monkeypatch):
    monkeypatch.setattr("avpipe.pipeline.work.run.SECONDS_PER_ITEM", 4.0)
    assert outcome_of(tmp_path, [["long"], ["a", "long"]], 2)[:2] == (Counter({"long": 2, "a": 1}), {})


@pytest.mark.parametrize(("item", "sentence"), [("refuse", "cannot be done"), ("full", "x.tar: no space is left")])
def test_what_a_user_can_mend_ends_the_run(tmp_path, item, sentence):
    with pytest.raises(AvpipeError, match=sentence):
        outcome_of(tmp_path, [["a", item]], 1)


ORPHANS = "import sys, test_executors; test_executors.run_two_parts(sys.argv[1])"


def run_two_parts(folder: str) -> None:
    """Run in a process of its own."""
    list(run_parts(wait_and_publish, [[Path(folder) / name] for name in "ab"], 2))


def wait_and_publish(part: list[Path]) -> None:
    """Run in a worker: a part that would appear a second after its parent is gone."""
    (path,) = part
    path.with_suffix(".begun").write_text(str(os.getpid()))
    while not path.with_name("parent is gone").exists():
        time.sleep(0.02)
    time.sleep(1)
    path.with_suffix(".done").touch()


def test_workers_of_a_killed_parent_publish_nothing(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)], cwd=TESTS.parent, env=environment)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.begun"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    (tmp_path / "parent is gone").touch()
    workers = [int(path.read_text()) for path in tmp_path.glob("*.begun")]
    assert len(workers) == 2
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_running(pid) for pid in workers)
    assert not list(tmp_path.glob("*.done"))


def is_running(pid: int) -> bool:
    try:
        return re.search(r"State:\t(\w)", Path(f"/proc/{pid}/status").read_text())[1] != "Z"
    except FileNotFoundError:
        return False


def kill_once(tasks: list) -> list:
    """Run in a worker: the first to come dies in mid-part, with half of a tar written."""
    from avpipe.pipeline.core import samples

    flag, whole, calls = tasks[0][0].path / "killed", samples.TarWriter.add, []

    def add(writer, clip_id, members):
        calls.append(clip_id)
        if len(calls) == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(writer, clip_id, members)

    samples.TarWriter.add = add
    try:
        return extract_part(tasks)
    finally:
        samples.TarWriter.add = whole


def make_shards(root: Root, monkeypatch, executor) -> dict[str, str]:
    """Extraction with a worker killed in mid-part, then shards; their hashes."""
    monkeypatch.setattr("avpipe.pipeline.extract.cache_part.CLIPS_PER_PART", 4)
    monkeypatch.setattr("avpipe.pipeline.extract.stage.extract_part", kill_once)
    outcomes = []
    extract(root, Manifest.open(root.manifest).ids(None), ExtractSettings(), executor(), on_outcome=outcomes.extend)
    assert (root.path / "killed").exists()
    assert len(outcomes) == 20 and all(outcome.done for outcome in outcomes)
    return hashes(shard(root, "synth_train", ExtractSettings(), ShardSettings(samples_per_shard=5), workers=1).folder)


def test_two_processes_of_which_one_is_killed_give_the_bytes_of_one(fresh_root, done_root, monkeypatch):
    made = make_shards(fresh_root, monkeypatch, lambda: LocalProcesses(2))
    assert made == hashes(done_root.shards / "synth_train")


@contextmanager
def ray_cluster(environment: dict[str, str], log: Path) -> Iterator[str]:
    """The address of a cluster of two cores that is joined as one on another machine would be."""
    command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2", "--port=0"]
    command += ["--include-dashboard=false", "--node-ip-address=127.0.0.1"]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"--address='([\d.]+:\d+)'", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found[1]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


ON_RAY = "import sys, test_executors; test_executors.join_and_check(*sys.argv[1:])"


def join_and_check(address: str, folder: str, expected: str) -> None:
    """Run in a process of its own: Ray reads its settings from the environment once."""
    patch, folder = pytest.MonkeyPatch(), Path(folder)
    assert make_shards(Root(folder / "root"), patch, lambda: RayCluster(None, address)) == hashes(Path(expected))
    with pytest.raises(AvpipeError, match=r"^this cannot be done$"):
        outcome_of(folder, [["a", "refuse"]], RayCluster(2, address))
    (folder / "begun").unlink()
    patch.setattr("avpipe.pipeline.work.run.SECONDS_PER_ITEM", 4.0)
    check_losses(folder, RayCluster(2, address))


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_on_a_cluster_lost_workers_cost_one_item_and_the_bytes_are_the_same(tmp_path, fresh_root, done_root):
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex, "RAY_USAGE_STATS_ENABLED": "0"}
    environment = os.environ | token | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    with ray_cluster(environment, tmp_path / "log") as address:
        command = [sys.executable, "-c", ON_RAY, address, tmp_path, done_root.shards / "synth_train"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_starts_ray_by_itself_and_prints_one_object(tmp_path, done_root):
    root = shutil.copytree(done_root.path, tmp_path / "root", ignore=shutil.ignore_patterns("shards"))
    command = [sys.executable, "-m", "avpipe.train.cli", "--root", "root", "shard", "--split", "synth_test"]
    command += ["--executor", "ray", "--workers", "1", "--json"]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 4
    settings = ShardSettings(samples_per_shard=1000)
    expected = shard(Root(root), "synth_test", ExtractSettings(), settings, workers=1)
    assert expected.written == 0


@needs_ray
def test_an_address_that_is_none_is_one_sentence():
    with pytest.raises(AvpipeError, match="no Ray cluster could be joined at nowhere"), RayCluster(1, "nowhere"):
        pass


def test_what_cannot_be_opened_is_a_sentence(monkeypatch):
    with pytest.raises(AvpipeError, match="`local` or `ray`, not 'slurm'"):
        open_executor("slurm", 1, None)
    with pytest.raises(AvpipeError, match="--ray-address only makes sense with --executor ray"):
        open_executor("local", 1, "10.0.0.1:6379")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AvpipeError, match=r"pip install 'avpipe\[ray\]'"), RayCluster(1):
        pass
