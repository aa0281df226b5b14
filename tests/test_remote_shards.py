"""Shards at an address: the same batches whatever is kept here, patience with the network, and no wrong bytes."""

import fcntl
import json
import pickle
import shutil
import subprocess
import sys
import threading
import uuid
from types import SimpleNamespace

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from train_fixtures import assert_same_batches

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.shards.send import send_shards
from avpipe.train.cli.main import main
from avpipe.train.data import remote
from avpipe.train.data.batch_plan import BatchPlan
from avpipe.train.data.open import open_shards
from avpipe.train.data.remote import DiskBudget
from avpipe.train.data.training_samples import TrainingSamples, batches

pytestmark = pytest.mark.heavy

NAMES = [f"synth_train-{number:06d}.tar" for number in range(4)]
ALL_GB = 1.0


@pytest.fixture
def local(done_root):
    return open_shards(done_root.shards / "synth_train")


@pytest.fixture
def address(local) -> str:
    return send_shards(local.folder, f"memory://{uuid.uuid4().hex}/vgg").address


@pytest.fixture
def store(monkeypatch):
    """The memory behind the address: `asked` (tar, thread) of each request for a part, `fail(thread)` before it."""
    whole, state = MemoryFileSystem.cat_file, SimpleNamespace(asked=[], fail=lambda thread: None)

    def cat_file(self, path, start=None, end=None, **kwargs):
        if start is not None:
            thread = threading.current_thread().name
            state.asked.append((path.rpartition("/")[2], thread))
            state.fail(thread)
        return whole(self, path, start, end, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    monkeypatch.setattr(remote, "PAUSES_S", (0, 0, 0))
    return state


def opened(address, folder, gigabytes=0.0):
    return open_shards(address, DiskBudget.below(folder, gigabytes))


def wait_for_prefetch():
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(20)
            assert not thread.is_alive()


def kept_in(shards):
    return sorted(path.name for path in shards.store.folder.glob("*.tar"))


def taken(shards, workers):
    samples = TrainingSamples(shards=shards, feature="logspec", image_px=32, seed=5)
    plan = BatchPlan(indices=torch.arange(16).numpy(), batch_size=4, world_size=1, epochs=2, seed=5)
    return list(batches(samples, plan, 0, range(8), workers))


@pytest.mark.parametrize(("tars", "workers"), [(0, 2), (1, 0), (4, 2)])
def test_batches_are_those_of_the_folder_whatever_is_kept(local, address, tmp_path, tars, workers):
    size = (local.folder / NAMES[0]).stat().st_size
    shards = opened(address, tmp_path, {0: 0, 1: size / 1e9, 4: ALL_GB}[tars])
    for finished in (False, True):
        assert_same_batches(taken(shards, workers), taken(local, 0))
        if not finished:
            wait_for_prefetch()
    assert kept_in(shards) == NAMES[:tars]
    assert (shards.clip_ids, shards.metadata) == (local.clip_ids, local.metadata)
    if tars == 4:
        assert open_shards(shards.store.folder).clip_ids == local.clip_ids


def test_what_lies_side_by_side_is_one_request(local, address, tmp_path, store):
    shards = opened(address, tmp_path)
    for number in range(16):
        for member in ("frame.jpg", "logspec.npy"):
            assert shards.read(number, member) == local.read(number, member)
    assert len(store.asked) == 17  # that both are wanted is known from the second sample on
    for number, member in ((2, "audio.flac"), (2, "frame.jpg"), (3, "frame.jpg"), (3, "audio.flac")):
        assert shards.read(number, member) == local.read(number, member)
    assert len(store.asked) == 20  # of sample 3 the sound did not come with the frame
    assert shards.read(0, "meta.json") == local.read(0, "meta.json")
    assert pickle.loads(pickle.dumps(shards)).read(3, "audio.flac") == local.read(3, "audio.flac")


def test_a_pattern_selects_tars(local, address, tmp_path):
    some = opened(f"{address}/synth_train-{{000001..000002}}.tar", tmp_path, ALL_GB)
    wait_for_prefetch()
    assert kept_in(some) == NAMES[1:3] and some.clip_ids == local.clip_ids[5:15]
    with pytest.raises(AvpipeError, match=r"memory://.*-000007.tar is not among the 4 shards"):
        opened(f"{address}/synth_train-000007.tar", tmp_path)


def test_a_killed_fetch_is_not_used_and_a_finished_one_not_repeated(local, address, tmp_path, store):
    folder = opened(address, tmp_path).store.folder
    half = (local.folder / NAMES[1]).read_bytes()[:100_000]
    (folder / f".{NAMES[1]}.99999.tmp").write_bytes(half)
    (folder / NAMES[2]).write_bytes(half)  # under the right name, as only another program would leave it
    shutil.copy(local.folder / NAMES[3], folder)
    shards = opened(address, tmp_path, ALL_GB)
    assert shards.read(15, "frame.jpg") == local.read(15, "frame.jpg")
    wait_for_prefetch()
    assert not list(folder.glob(".*.tmp"))
    assert all((folder / name).read_bytes() == (local.folder / name).read_bytes() for name in NAMES)
    assert {name for name, _ in store.asked} == set(NAMES[:3])
    store.asked.clear()
    taken(opened(address, tmp_path), 1)
    assert store.asked == []


def test_another_process_that_fetches_is_waited_for_while_parts_are_read(local, address, tmp_path, store):
    folder = opened(address, tmp_path).store.folder
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shards = opened(address, tmp_path, ALL_GB)
        assert shards.read(0, "frame.jpg") == local.read(0, "frame.jpg")
        assert not kept_in(shards)
        shutil.copy(local.folder / NAMES[0], folder)
        assert shards.read(0, "audio.flac") == local.read(0, "audio.flac")
    wait_for_prefetch()
    assert kept_in(shards) == NAMES and (NAMES[0], "prefetch") not in store.asked
    assert [thread for _, thread in store.asked].count("MainThread") == 1


def test_a_tar_with_another_hash_is_never_kept_and_stops_its_readers(local, address, tmp_path):
    fs, base = fsspec.core.url_to_fs(address)
    content = bytearray(fs.cat_file(f"{base}/{NAMES[1]}"))
    content[50_000] ^= 1
    fs.pipe_file(f"{base}/{NAMES[1]}", bytes(content))
    shards = opened(address, tmp_path, ALL_GB)
    wait_for_prefetch()
    assert kept_in(shards) == [NAMES[0], *NAMES[2:]] and not list(shards.store.folder.glob(".*.tmp"))
    assert shards.read(0, "frame.jpg") == local.read(0, "frame.jpg")
    with pytest.raises(AvpipeError, match=rf"{address}/{NAMES[1]} is damaged or was changed: SHA-256"):
        shards.read(5, "frame.jpg")


def test_a_store_that_fails_twice_is_asked_again_and_one_that_always_fails_is_one_sentence(
    local, address, tmp_path, store
):
    shards, times = opened(address, tmp_path), []

    def fail(thread):
        times.append(thread)
        if len(times) in (1, 2, 4) or len(times) > 100:
            raise ConnectionResetError("the line is gone")

    store.fail = fail
    assert_same_batches(taken(shards, 0), taken(local, 0))
    assert len(times) > 32
    times += [""] * 100
    with pytest.raises(AvpipeError, match=rf"^{address}/synth_train-00000\d.tar: the line is gone; check") as caught:
        taken(opened(address, tmp_path), 2)
    assert type(caught.value) is AvpipeError, "no damaged sample"


@pytest.mark.parametrize("trouble", ["network", "disk"])
def test_a_prefetch_that_fails_is_said_once_and_reading_goes_on(address, tmp_path, store, trouble, caplog, monkeypatch):
    def fail(thread):
        if thread == "prefetch":
            raise TimeoutError("no answer")

    if trouble == "network":
        store.fail = fail
    else:
        monkeypatch.setattr(remote, "free_bytes", lambda folder: 1_000_000_000)
    shards = opened(address, tmp_path, ALL_GB)
    wait_for_prefetch()
    assert len(taken(shards, 2)) == 8 and not kept_in(shards)
    said = [message for message in caplog.messages if "no more tars are fetched" in message]
    assert len(said) == 1 and ("no answer" if trouble == "network" else "GB free; free some space") in said[0]


def test_what_lies_there_already_is_part_of_the_limit(tmp_path, monkeypatch):
    (tmp_path / "vggss-1").mkdir()
    (tmp_path / "vggss-1/a.tar").write_bytes(bytes(20))
    monkeypatch.setattr(remote, "free_bytes", lambda folder: 100)
    assert DiskBudget.below(tmp_path, None).left == 40
    budget = DiskBudget.below(tmp_path, 50e-9)
    assert [budget.take(size) for size in (20, 20, 10)] == [True, False, True]


def with_index(**change):
    """The index has other metadata."""

    def apply(fs, base):
        with fs.open(f"{base}/index.parquet") as file:
            table = pq.read_table(file)
        metadata = json.loads(table.schema.metadata[b"avpipe"]) | change
        with fs.open(f"{base}/index.parquet", "wb") as file:
            pq.write_table(table.replace_schema_metadata({"avpipe": json.dumps(metadata)}), file)

    return apply


def with_bytes(name, content):
    return lambda fs, base: fs.pipe_file(f"{base}/{name}", content)


OUTSIDE = {"name": "../x.tar", "samples": 1, "bytes": 1, "sha256": ""}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda fs, base: fs.rm_file(f"{base}/index.parquet"), "holds no index.parquet.*avpipe shard --to"),
        (lambda fs, base: fs.rm_file(f"{base}/{NAMES[2]}"), "there is no such bucket or file .*000002.tar"),
        (with_bytes(NAMES[2], b"short"), r"000002.tar has 5 bytes, but \d+ by its index"),
        (with_bytes("index.parquet", b"PAR1 x"), "memory://.*/index.parquet is not an index"),
        (with_index(split="../../x"), "not an index of format 1"),
        (with_index(shards=[OUTSIDE]), "not a plain file name"),
        (with_index(shards=[{"name": "x.tar"}]), "not an index of format 1"),
    ],
)
def test_what_is_wrong_at_the_address_is_said_at_opening_and_nothing_is_written(address, tmp_path, change, sentence):
    change(*fsspec.core.url_to_fs(address))
    with pytest.raises(AvpipeError, match=sentence):
        opened(address, tmp_path / "remote", ALL_GB)
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.heavy
def test_a_fetch_that_hangs_keeps_no_program_alive(local):
    program = f"""
import logging, threading, time
from pathlib import Path
from fsspec.implementations.memory import MemoryFileSystem
from avpipe.pipeline.shards.send import send_shards
from avpipe.train.data.open import open_shards
from avpipe.train.data.remote import DiskBudget
address = send_shards(Path({str(local.folder)!r}), "memory://x").address
begun, whole = threading.Event(), MemoryFileSystem.cat_file
def cat_file(self, path, start=None, end=None):
    if threading.current_thread().name == "prefetch":
        begun.set()
        time.sleep(600)
    return whole(self, path, start, end)
MemoryFileSystem.cat_file = cat_file
import tempfile
logging.basicConfig(level="INFO")
shards = open_shards(address, DiskBudget.below(Path(tempfile.mkdtemp()), 1))
begun.wait()
print(len(shards.read(3, "frame.jpg")))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert (done.returncode, int(done.stdout)) == (0, len(local.read(3, "frame.jpg")))
    assert done.stderr.count("\n") == 1 and "4 of 4 tars" in done.stderr


@pytest.mark.heavy
def test_the_command_reads_a_real_s3_server(s3, local, tmp_path, monkeypatch, capsys):
    address, given = send_shards(local.folder, "s3://bucket/shards").address, []
    monkeypatch.setattr("avpipe.train.run.fit.fit", lambda recipe, data, *rest: given.append(data) or sys.exit(7))
    command = ["avpipe", "--root", tmp_path, "train", "--shards", address, "--cache-gb", "0"]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    with pytest.raises(SystemExit, match="7"):
        main()
    assert f"{address}: 0 of 4 tars" in capsys.readouterr().err
    assert_same_batches(taken(given[0], 2), taken(local, 0))
    (folder,) = (tmp_path / "remote").iterdir()
    assert [path.name for path in folder.iterdir()] == ["index.parquet"]
    with pytest.raises(AvpipeError, match=r"s3://bucket/nowhere holds no index\.parquet"):
        opened("s3://bucket/nowhere", tmp_path)
