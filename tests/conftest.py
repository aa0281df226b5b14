"""Shared by all tests: one synthetic corpus, made once, and what is derived from it."""

import os

# Tests run on all cores already; one thread each keeps them from fighting.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest
from parity import table
from shared_files import SHARED

from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.download.source import FolderSource
from avpipe.pipeline.download.stage import download
from avpipe.pipeline.extract.stage import extract
from avpipe.pipeline.features.settings import ExtractSettings, ShardSettings
from avpipe.pipeline.manifest.build import build_manifest
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.shards.write import shard
from avpipe.pipeline.synth.corpus import make_corpus

pytest.register_assert_rewrite("train_fixtures")

CLIPS = 20
RUN_PARTS = (
    "avpipe.pipeline.inspect.duplicates.run_parts",
    "avpipe.pipeline.exchange.import_frames.run_parts",
    "avpipe.pipeline.extract.stage.run_parts",
    "avpipe.pipeline.shards.write.run_parts",
    "avpipe.pipeline.synth.corpus.run_parts",
    "avpipe.pipeline.shards.verify.run_parts",
)


@contextmanager
def in_this_process() -> Iterator[None]:
    """Parts are no work of other processes, each of which takes a second to begin."""
    with pytest.MonkeyPatch.context() as patch:
        for name in RUN_PARTS:
            patch.setattr(name, lambda function, parts, workers: map(function, parts))
        yield


def pytest_terminal_summary(terminalreporter):
    """How close the port comes to each published number, however the tests were spread over workers."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    lines = table.lines(report for report in reports if report.when == "call")
    if lines:
        terminalreporter.section("largest deviations from the published numbers")
        terminalreporter.write_line("\n".join(lines))


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory) -> Path:
    """One folder for the whole test run, shared by all of pytest-xdist's workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def once(shared_tmp):
    """`once(name, make)`: call make(folder) for the first worker that asks, and return the folder to all."""

    def run(name: str, make) -> Path:
        folder = shared_tmp / name
        with open(shared_tmp / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared_tmp / f"{name}.done").exists():
                make(folder)
                (shared_tmp / f"{name}.done").touch()
        return folder

    return run


@pytest.fixture(scope="session")
def corpus(once) -> Path:
    """Twenty synthetic clips of four classes, 16 of them for training, in clips/ and lists/. Do not change it."""

    def make(folder: Path) -> None:
        with in_this_process():
            make_corpus(folder, clips=CLIPS, classes=4, workers=1)

    return once("corpus", make)


@pytest.fixture(scope="session")
def done_root(once, corpus) -> Root:
    """A root in which the corpus has gone through all stages, to shards of both splits. Do not change it."""

    def make(folder: Path) -> None:
        root = downloaded(Root(folder), corpus)
        manifest = Manifest.open(root.manifest)
        with in_this_process():
            extract(root, manifest.ids(None), ExtractSettings(), workers=1)
            for split in ("synth_train", "synth_test"):
                shard(root, split, ExtractSettings(), ShardSettings(samples_per_shard=5), workers=1)

    return Root(once("root", make))


@pytest.fixture(scope="session")
def official(once) -> Manifest:
    """The manifest of the official lists, with what its making counted in counts.json. Do not change it."""
    if SHARED is None:
        pytest.skip("the official lists (shared/metadata) are not on this machine")

    def make(folder: Path) -> None:
        counts = build_manifest(SHARED / "metadata", folder)
        (folder / "counts.json").write_text(json.dumps(counts))

    return Manifest.open(once("official_manifest", make))


def downloaded(root: Root, corpus: Path) -> Root:
    """Manifest and clips of the corpus in a new root."""
    build_manifest(corpus / "lists", root.manifest)
    manifest = Manifest.open(root.manifest)
    download(root, manifest.clips(manifest.ids(None)), FolderSource(corpus / "clips"))
    return root


@pytest.fixture
def fresh_root(tmp_path, corpus) -> Root:
    """A root of the test's own with the corpus's manifest and clips; nothing is extracted yet."""
    return downloaded(Root(tmp_path / "root"), corpus)


def copied(done_root: Root, folder: Path, *parts: str) -> Root:
    """A root of the test's own that has these parts of `done_root`: "clips", "ledger/download" and so on."""
    for part in parts:
        shutil.copytree(done_root.path / part, folder / part)
    return Root(folder)


@pytest.fixture
def extracted_root(tmp_path, done_root) -> Root:
    """A root of the test's own in which all is extracted and nothing is sharded."""
    return copied(done_root, tmp_path / "extracted", "manifest", "cache")


@pytest.fixture
def serial() -> Iterator[None]:
    """The parts of every stage run in this process."""
    with in_this_process():
        yield


@pytest.fixture(autouse=True)
def _library_log() -> None:
    """What the library logs reaches caplog, whatever the commands of earlier tests have set up."""
    logger = logging.getLogger("avpipe")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.INFO)


@pytest.fixture
def avpipe(capsys, monkeypatch):
    """Runs a command in this process: (exit code, standard output, standard error)."""
    from avpipe.train.cli.main import main  # a second that most tests need not wait for

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["avpipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def s3(monkeypatch):
    """A real S3 server on 127.0.0.1, with one bucket."""
    if not (find_spec("moto") and find_spec("flask") and find_spec("s3fs")):
        pytest.skip("moto's server or s3fs is not installed; pip install 'avpipe[s3,dev]'")
    from moto.core.base_backend import BackendDict
    from moto.server import ThreadedMotoServer

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # each would go on asking the server before
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    access = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in ({"AWS_ENDPOINT_URL": f"http://{host}:{port}"} | access).items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield
    server.stop()
    BackendDict.reset()  # buckets are this process's, not the server's
