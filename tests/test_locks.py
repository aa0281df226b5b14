"""Locks of the stages: held by one process; without them a warning; what a kill left goes under them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.manifest.build import build_manifest
from avpipe.pipeline.manifest.derive import derive, manifest_lock
from avpipe.pipeline.manifest.tables import Manifest

# A file system that has no locks, in the way of Lustre (38), NFS (37) or FUSE (95).
SHIM = """
#include <errno.h>
#include <stdlib.h>
int flock(int file, int how) { errno = atoi(getenv("FLOCK_ERRNO")); return -1; }
"""


@pytest.fixture(scope="module")
def no_locks(tmp_path_factory) -> Path:
    """A library whose `flock` fails with the number in FLOCK_ERRNO."""
    if not shutil.which("gcc"):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c"], check=True)
    return folder / "shim.so"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("number", "command"),
    [
        (37, "manifest derive some --of synth_train --clips 4"),
        (95, "download --from {corpus}/clips"),
        (38, "shard --split synth_train --workers 1"),
        pytest.param(38, "manifest build --lists {corpus}/lists", marks=pytest.mark.slow),
        pytest.param(37, "extract --workers 1", marks=pytest.mark.slow),
    ],
)
def test_without_locks_the_work_is_done_after_one_warning(no_locks, done_root, corpus, tmp_path, number, command):
    root = shutil.copytree(done_root.path, tmp_path / "root")
    environment = os.environ | {"LD_PRELOAD": str(no_locks), "FLOCK_ERRNO": str(number)}
    line = [sys.executable, "-m", "avpipe.train.cli", "--root", str(root), *command.format(corpus=corpus).split()]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("has no locks") == 1 and "Traceback" not in done.stderr


def test_another_error_of_a_lock_is_not_passed_over(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "x")

    monkeypatch.setattr("avpipe.pipeline.core.locks.fcntl.flock", broken)
    with pytest.raises(OSError, match="Errno 5"), stage_lock(tmp_path, "this"):
        pass


def test_one_process_changes_the_manifest_at_a_time(fresh_root, corpus):
    manifest = Manifest.open(fresh_root.manifest)
    derive(manifest, "some", "synth_train", clips=3)
    with manifest_lock(fresh_root.manifest):
        with pytest.raises(AvpipeError, match="another process is doing a change of the manifest"):
            build_manifest(corpus / "lists", fresh_root.manifest)
        with pytest.raises(AvpipeError, match="another process"):
            derive(manifest, "other", "synth_train", clips=3)
    counts = build_manifest(corpus / "lists", fresh_root.manifest)
    assert counts["splits_not_derived"] == {} and counts["splits"]["some"] == 3


def test_what_killed_changes_of_the_manifest_left_is_removed(fresh_root, corpus):
    leftover = fresh_root.manifest / ".splits.parquet.4711.tmp"
    for change in (
        lambda: build_manifest(corpus / "lists", fresh_root.manifest),
        lambda: derive(Manifest.open(fresh_root.manifest), "some", "synth_train", clips=3),
    ):
        leftover.write_bytes(b"half of a table")
        change()
        assert not leftover.exists()
