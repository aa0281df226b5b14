"""The papers' tables: the figures are the papers', every row is something here, and nothing is filled in unrun."""

import csv
import json
import os
from dataclasses import asdict

import pytest
import torch
from shared_files import SHARED
from thin import thin_networks  # noqa: F401
from train_fixtures import SMALL, avpipe, imagenet_weights, linked
from typer.testing import CliRunner

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.manifest.catalogue import load_catalogue
from avpipe.train.cli.main import app
from avpipe.train.evaluation.protocols import PROTOCOLS
from avpipe.train.models.checkpoint import LAST
from avpipe.train.models.recipes import get_recipe
from avpipe.train.reports.papers import execute, paper_rows, reproduce, schedule, tables
from avpipe.train.reports.papers.paper_rows import Row, Runnable, distinct, read_rows, select

pytest_plugins = ["train_fixtures"]
ABSENT = {"attention", "avobject", "cavl", "coarse-to-fine", "dmc", "dsol", "hardpos", "icl", "lcbm", "mssl"}
TINY = (*SMALL, "epochs=1")


@pytest.mark.skipif(SHARED is None, reason="no shared files")
def test_the_figures_are_those_of_the_papers():
    with open(SHARED / "papers" / "tables.csv", newline="") as file:
        expected = [Row(**row | {"value": float(row["value"])}) for row in csv.DictReader(file)]
    assert [row for row, _ in read_rows()] == expected and len(expected) == 215


def test_every_row_is_runnable_here_or_says_why_not():
    _, splits = load_catalogue()
    for row, what in read_rows():
        if row.method in ABSENT:
            assert what == f"avpipe has no method {row.method}"
            continue
        assert isinstance(what, Runnable)
        assert splits[what.eval_split].role == "test" and what.protocol in (None, *PROTOCOLS)
        assert (what.protocol is None) == row.metric.startswith(("A@", "P@"))
        if row.method != "random":
            assert splits[what.train_split].role == "train"
            assert what.settings == get_recipe(what.recipe, list(what.changes))
            assert what.settings.method == row.method


def test_rows_share_trainings_by_recipe_and_split_alone():
    def run_of(method, variant, train_split="vggsound_144k", paper="marginnce"):
        wanted = (paper, method, variant, train_split)
        (name,) = {
            what.run for row, what in read_rows() if (row.paper, row.method, row.variant, row.train_split) == wanted
        }
        return name

    assert run_of("marginnce", "") == run_of("marginnce", "w/ OGL") == run_of("marginnce", "m=-0.2")
    assert run_of("ez-vsl", "w/o OGL") == run_of("ez-vsl", "margin 0.0") != run_of("ez-vsl", "margin -0.2")
    assert run_of("marginnce", "m=-0.2", "vggsound_heard_70k") != run_of("marginnce", "m=-0.2")
    for one, other in (("T=5", "w/ PCM"), ("crop+horizontal-flip", "fusion=attention")):
        assert run_of("sspl", one, "flickr_10k", "sspl") == run_of("sspl", other, "flickr_10k", "sspl")
    full = run_of("ssl-tie", "F: + geometric consistency", paper="ssl-tie")
    assert full == run_of("ssl-tie", "", paper="ssl-tie") != run_of("ssl-tie", "E: + audio mixing", paper="ssl-tie")


def test_the_settings_of_single_rows():
    def of(**wanted):
        return [what for row, what in read_rows() if wanted.items() <= asdict(row).items()]

    guided = of(paper="marginnce", variant="m=-0.2 w/ OGL")
    assert all(what.object_guided and what.settings.options.margin == -0.2 for what in guided) and guided
    for split, rates in (("flickr_144k", (2e-3, 5e-4)), ("vggsound_144k", (1e-2, 5e-3))):
        (found,) = {what.settings for what in of(variant="w/o PCM", train_split=split)}
        assert (found.learning_rate, found.learning_rate * found.options.rest_rate) == pytest.approx(rates)
    assert {what.eval_split for what in of(paper="ssl-tie", method="ssl-tie", eval_split="vggss")} == {"vggss_ssltie"}
    assert {what.eval_split for what in of(paper="ssl-tie", method="lvs", eval_split="vggss_heard")} == {"vggss_heard"}
    assert {what.protocol for what in of(method="sspl")} == {"sspl"}


def test_without_runs_nothing_is_filled_in(tmp_path):
    rows = json.loads(avpipe(Root(tmp_path), "reproduce", "--json"))["rows"]
    assert len(rows) == 215 and all(row["ours"] is row["difference"] is row["leak"] is None for row in rows)
    assert {row["status"] for row in rows if row["runnable"]} == {"not run"}
    text = tables.comparison_table(rows)
    assert "215 rows: 0 run, 184 not run, 31 not in avpipe" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert not list(tmp_path.iterdir())


def test_a_plan_invents_no_speed_and_says_how_to_get_the_data(tmp_path):
    planned = schedule.plan(reproduce.PaperRuns(Root(tmp_path)), select("ssl-tie", "ssl-tie"))
    whole = next(one for one in planned["trainings"] if one["changes"] == [] and one["split"] == "ssltie_144k")
    assert (whole["samples"], whole["samples_of"], whole["steps"]) == (144_000, "list", 450_000)
    assert whole["hours"] is whole["clips_per_s"] is None and whole["missing"] == "ssltie_144k has no shards"
    how = "--split vggss_ssltie --features tie-mel"
    assert f"avpipe download --split vggss_ssltie && avpipe extract {how} && avpipe shard {how}" in planned["commands"]
    assert any(command.startswith("avpipe import FOLDER") for command in planned["commands"])
    assert "450,000" in tables.plan_table(planned)


def test_wrong_wishes_are_sentences(tmp_path, monkeypatch):
    with pytest.raises(AvpipeError, match=r"no row has the method 'lsv'; there are: attention"):
        select(None, "lsv")
    with pytest.raises(AvpipeError, match="give either --plan or --run"):
        avpipe(Root(tmp_path), "reproduce", "--plan", "--run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(AvpipeError, match="uses a single process"):
        execute.run(reproduce.PaperRuns(Root(tmp_path)), select("lvs", "lvs"), None, 0)


def row_of(method, eval_split, metric, value, variant="", **what):
    given = {"train_split": "" if method == "random" else "theirs", "eval_split": eval_split, "metric": metric}
    row = Row(paper="lvs", table="1", method=method, variant=variant, value=value, **given)
    what = {"recipe": "lvs-small", "changes": TINY, "train_split": "synth_train", "protocol": "lvs"} | what
    return row, Runnable(**what, eval_split="synth_test" if what["protocol"] else "synth_train")


@pytest.fixture
def small(done_root, tmp_path, monkeypatch):
    """Rows of a paper that trained on synth_train, and a root with the shards."""
    rows = [
        row_of("lvs", "vggss", "ciou@0.5", 0.25),
        row_of("lvs", "vggss", "auc", 0.5),
        row_of("lvs", "cross_modal_retrieval", "A@5", 0.75, protocol=None),
        row_of("random", "audio_retrieval", "P@1", 0.125, recipe=None, changes=(), train_split=None, protocol=None),
        (row_of("dmc", "vggss", "auc", 0.5)[0], "avpipe has no method dmc"),
        row_of("ssl-tie", "vggss", "auc", 0.5, recipe="ssl-tie-small", changes=(), protocol="ssl-tie"),
        row_of("lvs", "vggss", "auc", 0.5, "w/ OGL", object_guided=True),
    ]
    monkeypatch.setattr(paper_rows, "read_rows", lambda: rows)
    return linked(tmp_path, done_root)


def compared(root):
    return reproduce.compare(reproduce.PaperRuns(root), select(None, None))


@pytest.mark.heavy
def test_rows_run_and_stand_beside_theirs(small):
    call = ["reproduce", "--workers", 0, "--weights", imagenet_weights(small.path)]
    said = avpipe(small, *call, "--run")
    lvs, _ = distinct(select(None, None))
    assert f"{lvs.run}: training done" in said
    assert "training skipped: the shards of synth_train hold no tie-mel" in said

    ciou, auc, search, chance, absent, lacking, guided = compared(small)
    own = json.loads((small.runs / lvs.run / "eval" / "synth_test" / "metrics.json").read_text())
    assert ciou["ours"] == own["protocols"]["lvs"]["ciou"] and auc["ours"] == own["protocols"]["lvs"]["auc"]
    assert ciou["difference"] == ciou["ours"] - 0.25
    assert (ciou["clips_scored"], ciou["clips_listed"], ciou["trained_samples"]) == (4, 4, 16)
    assert ciou["leak"] == {"clips": 0, "videos": 0} and search["leak"]["clips"] == 16
    found = json.loads((small.runs / lvs.run / "retrieval" / "synth_train" / "metrics.json").read_text())
    assert search["ours"] == found["cross_modal_retrieval"]["A@5"]
    assert chance["ours"] is not None and chance["leak"] is None
    folder = small.runs / lvs.run / "eval" / "synth_test-object-guided"
    assert guided["ours"] == json.loads((folder / "metrics.json").read_text())["protocols"]["lvs"]["auc"]
    assert absent["ours"] is lacking["ours"] is None and lacking["status"] == "not run"
    line = next(line for line in said.splitlines() if "cross_modal" in line and "0.7500" in line)
    assert f"{search['ours']:.4f}" in line and "16/16" in line
    assert "7 rows: 5 run, 1 not run, 1 not in avpipe" in said

    before = {path: os.stat(path).st_mtime_ns for path in small.runs.rglob("*.json")}
    again = json.loads(avpipe(small, *call, "--run", "--json"))
    assert again["runs"][0]["training"] == "done before"
    assert set(again["runs"][0]["scored"].values()) == {"done before"}
    assert before == {path: os.stat(path).st_mtime_ns for path in small.runs.rglob("*.json")}

    planned = schedule.plan(reproduce.PaperRuns(small), select(None, None))
    one, other = planned["trainings"]
    assert (one["samples"], one["samples_of"], one["steps"], one["status"]) == (16, "shards", 4, "trained")
    assert one["hours"] == pytest.approx(16 / one["clips_per_s"] / 3600)
    assert other["hours"] is None  # nothing like it was run
    assert all("--features logspec,tie-mel" in command for command in planned["commands"])
    assert not any("download" in command for command in planned["commands"])


@pytest.mark.heavy
def test_only_the_very_training_counts(small):
    bench, selected = reproduce.PaperRuns(small), select(None, "lvs")
    (first,) = execute.run(bench, selected, small.path / "missing.pth", 0)
    (what,) = distinct(selected)
    last = small.runs / what.run / LAST
    whole = torch.load(last, weights_only=True)

    def status():
        rows = [row for row in compared(small) if row["method"] == "lvs" and not row["runnable"]["object_guided"]]
        return {(row["status"], row["ours"]) for row in rows}

    assert first["training"] == "done" and {kind for kind, _ in status()} == {"run"}
    assert any("object-guided" in what and result.startswith("failed") for what, result in first["scored"].items())
    other = "was trained with other settings"
    for change, said in (
        ({"step": 3}, "at step 3 of 4"),
        ({"step": 3, "stopped_early": True}, "scored before the training ended"),  # whole, but not what was scored
        ({"recipe": whole["recipe"] | {"seed": 1}}, other),
        ({"data": whole["data"] | {"split": "other"}}, other),
        ({"select_on": "synth_test"}, other),
        (None, "damaged or was not saved by torch"),
    ):
        torch.save(whole | (change or {}), last)
        last.write_bytes(last.read_bytes()[: None if change else 1000])
        ((text, ours),) = status()
        assert said in text and ours is None


@pytest.mark.heavy
def test_a_training_that_fails_stops_no_other(small, monkeypatch):
    rows = [row_of("lvs", "vggss", "auc", 0.5, changes=(*TINY, "batch_size=17"))]
    monkeypatch.setattr(paper_rows, "read_rows", lambda: rows)
    done = CliRunner().invoke(app, ["--root", str(small.path), "reproduce", "--run", "--method", "lvs"])
    assert done.exit_code == 1
    assert "training failed: 16 samples do not fill one batch" in done.stdout
    assert "skipped: no finished training" in done.stdout
