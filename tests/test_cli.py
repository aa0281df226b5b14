"""The command line as a user meets it: quick help, JSON, sentences instead of tracebacks, the stages in a row."""

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from avpipe.train.cli.main import app

pytestmark = pytest.mark.usefixtures("serial")
COMMANDS = (
    "synth manifest download extract import export shard verify status doctor "
    "train eval retrieve localize report reproduce bench"
)


def test_help_names_every_command_and_loads_nothing_heavy():
    script = """
import sys, avpipe.train.cli.main
print([m for m in ("torch", "numpy", "av", "pyarrow") if m in sys.modules])"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
    text = CliRunner().invoke(app, ["--help"]).output
    assert all(command in text for command in COMMANDS.split())


@pytest.mark.parametrize("command", [c for c in COMMANDS.split() if c != "manifest"])
def test_every_command_has_help_with_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0 and f"Example: avpipe {command}" in " ".join(result.output.split())


def test_the_pipeline_imports_no_torch():
    script = """
import pkgutil, sys, avpipe.pipeline as pipeline
for module in pkgutil.walk_packages(pipeline.__path__, "avpipe.pipeline."): __import__(module.name)
print([m for m in ("torch", "avpipe.train", "pandas", "scipy", "matplotlib") if m in sys.modules])
print(*(m for m in sys.modules if m.startswith("avpipe.pipeline.")))"""
    found, modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.splitlines()
    assert found == "[]"
    assert {
        "avpipe.pipeline.download.youtube",
        "avpipe.pipeline.media.shown",
        "avpipe.pipeline.exchange.export",
    } <= set(modules.split())


@pytest.mark.heavy
def test_stages_in_a_row_with_json(avpipe, corpus, tmp_path):
    root = ("--root", tmp_path / "r")

    def json_of(*arguments):
        code, out, _ = avpipe(*root, *arguments, "--json")
        assert code == 0
        return json.loads(out)

    built = json_of("manifest", "build", "--lists", corpus / "lists")
    assert built["splits"] == {"synth_train": 16, "synth_test": 4}
    assert json_of("manifest", "show")["splits"] == built["splits"]
    assert json_of("manifest", "show", "synth_test")["listed"] == 4
    got = json_of("download", "--split", "synth_test", "--from", corpus / "clips")
    assert (got["listed"], got["done"], got["failed"], got["not_offered"]) == (4, 4, {}, 0)
    made = json_of("extract", "--split", "synth_test", "--workers", 1)
    assert (made["done"], made["not_downloaded"], made["failures"]) == (4, 0, [])
    assert json_of("shard", "--split", "synth_test", "--workers", 1)["samples"] == 4
    assert json_of("verify", tmp_path / "r/shards/synth_test", "--workers", 1)["problems"] == []
    scored = json_of("eval", "--split", "synth_test", "--baseline", "centre")
    assert scored["clips_scored"] == 4 and scored["ciou"] == scored["floor"]["ciou"]


def test_bad_clips_are_rows_and_the_stage_ends_well(avpipe, corpus, tmp_path):
    folder = shutil.copytree(corpus / "clips", tmp_path / "clips")
    bad, worse, *_ = sorted(folder.iterdir())
    worse.write_text("this is no video")
    root = ("--root", tmp_path / "r")
    assert avpipe(*root, "manifest", "build", "--lists", corpus / "lists")[0] == 0
    code, out, _ = avpipe(*root, "download", "--from", folder, "--json")
    assert code == 0 and json.loads(out)["failed"] == {"corrupt": 1} and json.loads(out)["done"] == 19
    kept = tmp_path / "r" / "clips" / bad.name  # a link to the folder's
    kept.unlink()
    kept.write_text("damaged since")
    code, out, _ = avpipe(*root, "extract", "--json", "--workers", 1)
    result = json.loads(out)
    assert code == 0 and result["done"] == 18 and result["failed"] == {"corrupt": 1}
    assert result["failures"][0]["clip_id"] == bad.stem
    code, out, _ = avpipe(*root, "extract", "--workers", 1)
    assert "18 already there" in out and "1 failed before" in out


def test_an_extraction_of_which_nothing_came_is_an_error(avpipe, corpus, tmp_path):
    root = ("--root", tmp_path / "r")
    assert avpipe(*root, "manifest", "build", "--lists", corpus / "lists")[0] == 0
    assert avpipe(*root, "download", "--split", "synth_test", "--from", corpus / "clips")[0] == 0
    for clip in (tmp_path / "r/clips").glob("*.mp4"):
        clip.unlink()  # it may be the corpus's own file under another name
        clip.write_text("this is no video")
    code, out, err = avpipe(*root, "extract", "--split", "synth_test", "--json", "--workers", 1)
    assert code == 1 and json.loads(out)["failed"] == {"corrupt": 4}
    assert "none of 4 clips could be extracted; the first" in err


def test_damage_makes_verify_fail(avpipe, done_root, tmp_path):
    folder = shutil.copytree(done_root.shards / "synth_test", tmp_path / "s")
    (tar,) = folder.glob("*.tar")
    tar.write_bytes(tar.read_bytes()[:-60_000])
    code, out, _ = avpipe("verify", folder, "--workers", 1)
    assert code == 1 and "short" in out


MENDABLE = {
    "extract --split vggss": "holds no manifest; run `avpipe manifest build`",
    "manifest build --lists .": "none of the official lists is here",
    "verify .": "holds no index.parquet",
}
MENDABLE_IN_TRAINING = {
    "train --shards nowhere": "holds no index.parquet",
    "train --shards nowhere --method lvs --recipe x": "no recipe 'x'",
    "eval --split vggss": "shards/vggss holds no index.parquet",
    "eval --split vggss --baseline centre": "holds no manifest",
    "eval --split ../x --baseline random-init": "not the name of a split",
}


@pytest.mark.parametrize(
    ("command", "sentence"),
    [*MENDABLE.items(), *(pytest.param(*case, marks=pytest.mark.heavy) for case in MENDABLE_IN_TRAINING.items())],
)
def test_what_a_user_can_mend_is_one_sentence(avpipe, monkeypatch, tmp_path, command, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = avpipe("--root", tmp_path / "r", *command.split())
    assert code == 1 and out == "" and sentence in err
    assert err.startswith("avpipe: ") and err.count("\n") == 1
