"""Shards at an address: whole or without an index, never sent twice, checked like a folder; on memory and a real S3."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from conftest import copied

from avpipe.pipeline.core.addresses import TooLongError, local_copy
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.shards import send
from avpipe.pipeline.shards.send import send_shards
from avpipe.pipeline.shards.verify import verify
from avpipe.pipeline.shards.write import shard

NAMES = ["index.parquet", *(f"synth_train-{number:06d}.tar" for number in range(4))]


@pytest.fixture
def folder(done_root, tmp_path) -> Path:
    """Four shards with 5, 5, 5 and 1 samples."""
    return shutil.copytree(done_root.shards / "synth_train", tmp_path / "synth_train")


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}/vgg"


def at(address: str) -> dict[str, bytes]:
    """Everything below an address, by name."""
    fs, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
    return {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.ls(path, detail=False)}


def shards_at(address: str) -> dict[str, bytes]:
    return {name: content for name, content in at(address).items() if not name.endswith(".sha256")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_arrives_is_what_was_sent_and_is_sent_once(folder, address, serial):
    heard = []
    sent = send_shards(folder, address, on_file=heard.append)
    assert (sent.address, sent.files) == (f"{address}/synth_train", 6)
    assert sorted(heard) == sorted(path.stat().st_size for path in folder.iterdir() if path.suffix != ".parquet")
    assert shards_at(sent.address) == contents(folder)
    again = send_shards(folder, address + "/")
    assert (again.files, again.bytes, again.removed) == (0, 0, 0)
    report = verify(sent.address, workers=1)
    assert (report.samples, report.shards, report.problems) == (16, 4, [])


def test_each_hash_can_be_checked_by_sha256sum(folder, tmp_path):
    send_shards(folder, f"file://{tmp_path}/out")
    sums = sorted((tmp_path / "out/synth_train").glob("*.sha256"))
    assert len(sums) == 6
    subprocess.run(["sha256sum", "--check", *sums], cwd=sums[0].parent, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("last", range(1, 7))
def test_a_copy_killed_at_any_file_shows_no_index_and_goes_on_where_it_was(folder, address, monkeypatch, last):
    whole, calls = send._send_file, []

    def killed(fs, base, path, *rest):
        calls.append(path.name)
        if len(calls) == last:
            fs.pipe_file(f"{base}/{path.name}", path.read_bytes()[:1000])  # the storage shows half of a file
            raise KeyboardInterrupt
        whole(fs, base, path, *rest)

    monkeypatch.setattr(send, "_send_file", killed)
    with pytest.raises(KeyboardInterrupt):
        send_shards(folder, address)
    found = at(f"{address}/synth_train")
    assert "index.parquet.sha256" not in found
    assert ("index.parquet" in found) == (last == 6)
    monkeypatch.setattr(send, "_send_file", whole)
    assert send_shards(folder, address).files == 7 - last
    assert shards_at(f"{address}/synth_train") == contents(folder)


def test_another_set_of_shards_takes_the_place_of_the_old(folder, address, done_root, tmp_path, serial):
    send_shards(folder, address)
    fsspec.filesystem("memory").pipe_file(f"{address}/synth_train/notes.tar", b"a person's")
    root = copied(done_root, tmp_path / "root", "manifest", "cache")
    summary = shard(root, "synth_train", ExtractSettings(), ShardSettings(samples_per_shard=9, seed=1), workers=1)
    sent = send_shards(summary.folder, address)
    assert (sent.files, sent.removed) == (3, 2)
    assert shards_at(sent.address) == contents(summary.folder) | {"notes.tar": b"a person's"}
    problems = [(problem.kind, problem.shard) for problem in verify(sent.address, workers=1).problems]
    assert problems == [("unlisted", "notes.tar")]


def test_damage_at_the_address_is_found_and_mended(folder, address, serial):
    sent = send_shards(folder, address)
    fs, base = fsspec.core.url_to_fs(sent.address)
    content = folder.joinpath(NAMES[1]).read_bytes()
    fs.pipe_file(f"{base}/{NAMES[1]}", content[:50_000] + bytes([content[50_000] ^ 1]) + content[50_001:])
    fs.pipe_file(f"{base}/{NAMES[2]}", content[:50_000])
    fs.rm_file(f"{base}/{NAMES[3]}")
    kinds = {(problem.kind, problem.shard) for problem in verify(sent.address, workers=1).problems}
    assert {("damaged", NAMES[1]), ("short", NAMES[2]), ("missing", NAMES[3])} <= kinds
    assert send_shards(folder, address).files == 3  # the size is right where a bit is not: its hash vouches for it
    fs.rm_file(f"{base}/{NAMES[1]}.sha256")
    send_shards(folder, address)
    assert verify(sent.address, workers=1).problems == []


@pytest.fixture
def endless_server() -> Iterator[str]:
    """An address below which every file goes on for ever."""

    class Endless(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(1_000_000))

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_endless_file_is_a_sentence_and_leaves_nothing(endless_server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    address = f"{endless_server}/index.parquet"
    with pytest.raises(TooLongError, match="10,000,000 bytes"), local_copy(address, 10_000_000):
        pass
    assert not list(tmp_path.iterdir())


def test_a_copy_for_a_check_has_no_name_that_a_kill_could_leave(folder, address, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    sent = send_shards(folder, address)
    with local_copy(f"{sent.address}/{NAMES[1]}", 10_000_000) as path:
        assert path.read_bytes() == (folder / NAMES[1]).read_bytes()
        assert not list((tmp_path / "temporary").iterdir())
    with local_copy(f"file://{folder}/{NAMES[1]}", 1) as path:
        assert path == folder / NAMES[1]


def test_a_tar_that_is_damaged_here_is_never_sent(folder, address):
    (folder / NAMES[2]).write_bytes(bytes((folder / NAMES[2]).stat().st_size))
    with pytest.raises(AvpipeError, match=f"{NAMES[2]} is damaged"):
        send_shards(folder, address)
    assert NAMES[0] not in at(f"{address}/synth_train")


def other_names(folder: Path) -> dict[str, str]:
    """Addresses that end in `/synth_train`, and are the folder or lie in it, each under another name."""
    folder.with_name("link").symlink_to(folder.parent)
    (folder / "inner").mkdir()
    return {
        "itself": str(folder.parent),
        "with dots": f"{folder}/../synth_train/..",
        "an address": f"file://{folder.parent}",
        "a link": str(folder.with_name("link")),
        "a folder in it": str(folder / "inner"),
        "an address in it": f"file://{folder}/new",
    }


def test_shards_are_never_sent_onto_themselves(done_root, tmp_path):
    folder = shutil.copytree(done_root.shards / "synth_train", tmp_path / "parent/synth_train")
    before = contents(folder)
    for what, address in other_names(folder).items():
        with pytest.raises(AvpipeError, match="where the shards themselves are"):
            send_shards(folder, address)
        assert before == {name: (folder / name).read_bytes() for name in before}, what
        assert sorted(path.name for path in folder.iterdir()) == sorted([*before, "inner"]), what


def test_nothing_is_written_over_the_files_of_a_root(done_root, tmp_path, avpipe):
    root = shutil.copytree(done_root.path, tmp_path / "root")
    before = sorted(root.rglob("*"))
    (tmp_path / "link").symlink_to(root / "cache")
    for command in (
        f"export --split synth_test --format folders {root}/cache/x",
        f"export --split synth_test --format hdf5 {tmp_path}/link/x",
        f"export --split synth_test --format csv {root}/lists",
        f"manifest export --out {root}/lists",
        f"synth --clips 2 {root}",
        f"synth --clips 2 {root}/clips",
        f"import {root}/clips",
    ):
        code, _, errors = avpipe("--root", root, *command.split())
        assert code == 1 and errors.count("\n") == 1, (command, errors)
        assert "belongs to the root" in errors or "imported already" in errors
    assert sorted(root.rglob("*")) == before


def test_an_address_that_cannot_be_used_is_one_sentence(folder, monkeypatch):
    for address, sentence in (
        ("nope://bucket/x", "nope://bucket/x.*: Protocol not known.*check the address"),
        ("memory://nowhere", "memory://nowhere holds no index.parquet"),
    ):
        with pytest.raises(AvpipeError, match=sentence):
            verify(address, workers=1)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(AvpipeError, match=r"pip install 'avpipe\[s3\]'"):
        send_shards(folder, "s3://bucket/x")


@pytest.mark.heavy
def test_the_commands_against_a_real_s3_server(s3, done_root, tmp_path, monkeypatch, avpipe, serial):
    root = copied(done_root, tmp_path / "root", "manifest", "cache", "shards")
    command = ("--root", root.path, "shard", "--split", "synth_test", "--workers", 1, "--json", "--to")
    first, second = (avpipe(*command, "s3://bucket/deep/prefix") for _ in range(2))
    assert first[0] == 0, first
    sent = json.loads(first[1])["sent"]
    assert (sent["address"], sent["files"]) == ("s3://bucket/deep/prefix/synth_test", 3)
    assert json.loads(second[1])["sent"]["files"] == 0
    code, out, _ = avpipe("verify", sent["address"], "--workers", 2, "--json")
    assert code == 0 and json.loads(out)["samples"] == 4
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.rm_file("bucket/deep/prefix/synth_test/synth_test-000000.tar")
    code, out, _ = avpipe("verify", sent["address"], "--workers", 1)
    assert code == 1 and "the file is not there" in out
    code, _, errors = avpipe(*command, "s3://no-such-bucket-here/x")
    assert code == 1 and errors.splitlines()[-1].startswith("avpipe: s3://no-such-bucket-here/x")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # each knows its credentials
    code, _, errors = avpipe("verify", "s3://bucket/deep")
    assert code == 1 and errors.count("\n") == 1 and "credentials" in errors
