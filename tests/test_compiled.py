"""Compiled loops work without any place to keep them, and are kept only where nobody else can put code."""

import os
import subprocess
import sys

import pytest

from avpipe.train.data.compiled import cache_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_folder_is_of_this_user_alone(home, monkeypatch):
    folder = home / ".cache" / "avpipe" / "numba"
    assert cache_folder() == folder and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert cache_folder() is None
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert cache_folder() is None


def test_a_link_to_a_folder_of_others_is_none(home, tmp_path_factory):
    (home / ".cache" / "avpipe").mkdir(parents=True)
    (home / ".cache" / "avpipe" / "numba").symlink_to(tmp_path_factory.mktemp("others"))
    assert cache_folder() is None


@pytest.mark.heavy
def test_without_any_place_it_compiles_anew(home):
    code = "import numpy as np; from avpipe.train.data.augment import pixels\n"
    code += "frame = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)\n"
    code += "print(pixels.crop(frame, (0, 0), 4, True)[0, 0])"
    environment = os.environ | {"HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[ 9 10 11]", done.stderr
