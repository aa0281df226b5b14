"""`avpipe manifest …`, `avpipe import` and `avpipe export` as a user meets them."""

import json
from pathlib import Path

import pytest
from test_manifest import A, B, C, D, write_lists

pytestmark = pytest.mark.usefixtures("serial")
LISTS = {
    "vggsound_test_csv": f"{C}.mp4,cat\n{B}.mp4,dog\n{D}.mp4,dog\n",
    "ezvsl_10k": f"{D}\n{A}\n{B}\n",
    "ssltie_test": f"{B}.jpg\n{D}.jpg\n",
    "vggss_boxes": json.dumps([{"file": B, "class": "dog", "bbox": [[0, 0, 1, 1], [0.5, 0.5, 0.5, 1]]}]),
}


@pytest.fixture
def run(tmp_path, avpipe):
    """Runs a command on a root with a small manifest; returns what it printed, as JSON where that was asked for."""
    write_lists(tmp_path / "lists", LISTS)
    root = ("--root", tmp_path / "root")

    def run(*arguments, code=0):
        found, out, err = avpipe(*root, *arguments)
        assert found == code, err
        return json.loads(out) if "--json" in arguments else out + err

    run("manifest", "build", "--lists", tmp_path / "lists", "--accept-changed")
    return run


def test_show_tells_size_hash_classes_and_coverage(run):
    value = run("manifest", "show", "vggsound_test", "--json")
    assert (value["listed"], value["role"], value["list"], value["unlabelled"]) == (3, "test", "vggsound_test_csv", 0)
    assert value["classes"] == {"dog": 2, "cat": 1}
    assert value["coverage"] == {"clips": 3, "downloaded": 0, "failed": {}, "extracted": {}, "sharded": {}}
    text = run("manifest", "show", "ezvsl_10k")
    assert value["sha256"] not in text and "3 rows" in text and "downloaded 0 of 3 (0.0%)" in text
    assert "1 clips without a label" in text


def test_audit_has_the_agreed_form(run):
    report = run("manifest", "audit", "--json")
    leaks = {(leak["train"], leak["test"]): (leak["clips"], leak["videos"]) for leak in report["leaks"]}
    assert leaks == {
        ("ezvsl_10k", "vggsound_test"): (2, 2),
        ("ezvsl_10k", "vggss"): (1, 1),
        ("ezvsl_10k", "vggss_ssltie"): (2, 2),
    }
    assert (report["boxes"]["total"], report["boxes"]["defective"]) == (2, 1)
    assert report["splits"]["ezvsl_10k"]["listed"] == 3 and len(report["splits"]["ezvsl_10k"]["sha256"]) == 64
    assert "ezvsl_10k" in run("manifest", "audit")


def test_derive_adds_a_split_that_the_other_commands_know(run):
    made = run("manifest", "derive", "clean", "--of", "ezvsl_10k", "--without", "vggss_ssltie", "--json")
    assert (made["listed"], made["rule"]["without"]) == (1, ["vggss_ssltie"])
    assert run("manifest", "export", "clean") == f"{A}\n"
    assert "derived: " in run("manifest", "show", "clean")
    assert "there is no split" in run("manifest", "derive", "x", "--of", "nothing", code=1)


def test_export_writes_lists_as_published(run, tmp_path):
    assert run("manifest", "export", "vggss_ssltie") == LISTS["ssltie_test"]
    paths = run("manifest", "export", "--out", tmp_path / "again").split()
    assert {Path(path).read_text() for path in paths} == set(LISTS.values())
    assert "name either a split, or" in run("manifest", "export", code=1)
    file = run("export", "--split", "ezvsl_10k", "--format", "txt", tmp_path / "out", "--json")["file"]
    assert Path(file).read_text() == LISTS["ezvsl_10k"]
    assert "there is no format" in run("export", "--split", "ezvsl_10k", "--format", "png", tmp_path / "o", code=1)


def test_import_takes_clips_and_what_export_wrote(done_root, corpus, tmp_path, avpipe):
    def run(root, *arguments):
        code, out, err = avpipe("--root", root, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    out = tmp_path / "folders"
    summary = run(done_root.path, "export", "--split", "synth_test", "--format", "folders", out)
    assert (summary["exported"], summary["missing"]) == (4, 0)
    taken = run(tmp_path / "new", "import", out)
    assert (taken["done"], taken["not_listed"], taken["manifest_adopted"]) == (4, 0, True)
    shown = run(tmp_path / "new", "manifest", "show", "synth_test")
    assert list(shown["coverage"]["extracted"].values()) == [4]
    assert run(tmp_path / "new", "shard", "--split", "synth_test")["samples"] == 4
    assert run(tmp_path / "new", "import", corpus / "clips")["not_listed"] == 16


def test_an_audit_for_duplicates_reads_the_cache(done_root, avpipe):
    code, out, _ = avpipe("--root", done_root.path, "manifest", "audit", "--duplicates", "--workers", 1, "--json")
    found = json.loads(out)["same_recording"]
    assert code == 0 and found["clips"] + found["silent"] >= 20 and isinstance(found["duplicates"], list)
