"""What is missing is said with its fix, and only what stops download or extract makes the command fail."""

import json
import resource
import sys
from datetime import date
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.inspect import doctor
from avpipe.pipeline.inspect.doctor import Level, examine
from avpipe.train.cli.main import app


@pytest.fixture
def quick(monkeypatch):
    """Without PyTorch, which takes seconds to import."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)


def found(root) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in examine(Root(root))}


def test_here_nothing_needed_is_missing(quick, tmp_path):
    result = CliRunner().invoke(app, ["--root", str(tmp_path), "doctor", "--json"])
    value = json.loads(result.stdout)
    assert (result.exit_code, value["ok"]) == (0, True)
    levels = {finding["name"]: finding["level"] for finding in value["findings"]}
    assert {name for name, level in levels.items() if level == "missing"} == set()
    assert levels.keys() >= {"python", "yt-dlp", "yt-dlp's age", "JavaScript runtime", "ffmpeg", "root", "disk space"}
    assert levels.keys() >= {"open files", "PO token provider", "GPU", "ray", "s3fs", "torch"}


def test_what_is_missing_has_a_fix_and_code_1(quick, tmp_path, monkeypatch):
    def no_runtime():
        raise AvpipeError("YouTube needs a JavaScript runtime")

    monkeypatch.setattr("avpipe.pipeline.download.js_runtime.find_runtime", no_runtime)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "av" else "2026.1.1")
    result = CliRunner().invoke(app, ["--root", str(tmp_path), "doctor"])
    assert result.exit_code == 1
    assert "missing  av" in result.stdout and "  av: pip install av\n" in result.stdout
    assert "  JavaScript runtime: pip install" in result.stdout


def test_an_old_yt_dlp_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: "2026.1.1")
    for today, level in ((date(2026, 4, 1), Level.OK), (date(2026, 4, 2), Level.WARNING)):
        (finding,) = doctor._yt_dlp_age(today)
        assert finding.level == level and bool(finding.fix) == (level == Level.WARNING)


def test_disk_space_is_that_of_the_root(quick, tmp_path, monkeypatch):
    for free, level in ((10**9, "missing"), (10**10, "warning"), (10**12, "ok")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert found(tmp_path / "new" / "root")["disk space"].level == level
    (tmp_path / "file").touch()
    assert found(tmp_path / "file")["root"].level == Level.MISSING  # it cannot be written
    assert found(tmp_path / "new" / "root")["root"].level == Level.OK


def test_few_open_files_are_a_warning(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    assert found(tmp_path)["open files"].fix == "ulimit -n 4096"


def test_a_token_provider_is_named(tmp_path, monkeypatch):
    assert doctor._po_token()[0].found == "none"
    folder = tmp_path / "yt_dlp_plugins/extractor"
    folder.mkdir(parents=True)
    (folder / "getpot_bgutil_http.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._po_token()[0].found == "getpot_bgutil_http"


def test_a_look_that_fails_hides_no_other(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("avpipe.pipeline.download.cut.ffmpeg_program", lambda: 1 / 0)
    monkeypatch.setattr(doctor, "_javascript", lambda: 1 / 0)
    findings = found(tmp_path)
    assert findings["ffmpeg"].level == Level.MISSING
    assert findings["JavaScript runtime"].level == Level.WARNING
    assert findings["disk space"].found
