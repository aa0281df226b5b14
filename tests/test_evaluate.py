"""Scores of runs and baselines, end to end on the synthetic corpus and on the official boxes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from thin import thin_networks  # noqa: F401
from train_fixtures import imagenet_weights, linked

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.paths import Root
from avpipe.train.data.open import open_shards
from avpipe.train.evaluation import evaluate as ev
from avpipe.train.evaluation import metrics
from avpipe.train.evaluation.eval_set import EvalSet, clips_of_shards
from avpipe.train.evaluation.predict import network_maps
from avpipe.train.evaluation.run import Request, run_eval
from avpipe.train.evaluation.table import table
from avpipe.train.methods import METHODS
from avpipe.train.models.recipes import get_recipe
from avpipe.train.reports.stored import read_scores

pytest_plugins = ["train_fixtures"]
FIELDS = {"split", "protocol", "clips_listed", "clips_scored", "ciou", "auc", "pointing", "floor", "ceiling"}


def clips_with(boxes, **more):
    ids = [f"clip_{n:06d}" for n in range(len(boxes))]
    keys = ("annotator", "xmin", "ymin", "xmax", "ymax")
    given = {"labels": [None] * len(ids), "multi_annotator": False} | more
    boxes = [[dict(zip(keys, (place, *box), strict=True)) for place, box in enumerate(clip)] for clip in boxes]
    return EvalSet(split="t", listed=9, listed_sha256="", clip_ids=ids, boxes=boxes, **given)


LEFT = np.tile(np.linspace(1, 0, 14, dtype=np.float32), (14, 1))


def test_a_clip_without_a_box_is_apart_or_a_miss_as_the_protocol_says():
    clips, asked = clips_with([[(0, 0, 0.5, 1)], [(0.5, 0, 1, 1)], []]), []
    names = ev.choose_protocols("all")
    scores = ev.evaluate(clips, lambda frame: asked.append(frame) or iter([LEFT] * 3), names)
    assert sorted(asked) == ["crop", "squash"], "maps are made once for each kind of frame"
    assert [score.protocol for score in scores] == names and names[0] == "avpipe"
    apart, miss = (next(score for score in scores if score.protocol == name) for name in ("avpipe", "lvs"))
    assert [row["ciou"] for row in apart.rows[:2]] == [1, 0]
    assert [row["peak_inside"] for row in apart.rows[:2]] == [True, False]
    summary = apart.summary()
    assert (summary["clips_scored"], summary["ciou"], summary["pointing"], summary["ceiling"]["ciou"]) == (
        2,
        0.5,
        0.5,
        1,
    )
    assert 0 <= summary["floor"]["ciou"] <= summary["ceiling"]["ciou"]
    assert (miss.summary()["clips_scored"], miss.summary()["ciou"]) == (3, pytest.approx(1 / 3))
    assert summary["clips_without_box"] == miss.summary()["clips_without_box"] == 1


def plain_row(clips, number, map_HW, name):
    """What a row must hold, without anything shared between protocols."""
    protocol = ev.PROTOCOLS[name]
    boxes = [[box[corner] for corner in ("xmin", "ymin", "xmax", "ymax")] for box in clips.boxes[number]]
    gt = protocol.annotate(boxes, [box["annotator"] for box in clips.boxes[number]] if clips.multi_annotator else None)
    return {
        "ciou": protocol.ciou(map_HW, gt),
        "peak_inside": metrics.pointing(protocol.enlarge(map_HW), gt),
        "confidence": protocol.confidence(protocol.enlarge(map_HW)),
        "box_area": pytest.approx(gt.covered.mean()),
        "gt_pixels": pytest.approx(gt.weight.sum()),
        "floor_ciou": protocol.ciou(metrics.centre_map(), gt),
        "ceiling_ciou": metrics.ceiling(gt, protocol.pixels),
    }


@pytest.mark.parametrize("voted", [False, True])
def test_what_protocols_share_changes_no_row(voted):
    draw = np.random.default_rng(2)
    boxes = [[(*corner, *(corner + 0.5)) for corner in draw.uniform(-0.2, 0.6, (count, 2))] for count in (1, 2, 3)]
    clips = clips_with(boxes, multi_annotator=voted)
    maps = draw.standard_normal((3, 14, 14), dtype=np.float32)
    for score in ev.evaluate(clips, lambda frame: iter(maps), ev.choose_protocols("all")):
        for number, row in enumerate(score.rows):
            expected = plain_row(clips, number, maps[number], score.protocol)
            assert {name: row[name] for name in expected} == expected


@pytest.mark.slow
@pytest.mark.heavy
def test_parts_scored_side_by_side_give_the_same_rows(monkeypatch):
    draw = np.random.default_rng(3)
    boxes = [[(*corner, *(corner + 0.4))] for corner in draw.uniform(0, 0.6, (5, 2))]
    clips, maps = clips_with(boxes), draw.standard_normal((5, 14, 14), dtype=np.float32)
    names = ["avpipe", "lvs", "slavc"]
    alone = ev.evaluate(clips, lambda frame: iter(maps), names, lambda frame: iter(maps[::-1]))
    monkeypatch.setattr(ev, "CHUNK", 2)
    monkeypatch.setattr(ev, "default_workers", lambda: 2)
    assert ev.evaluate(clips, lambda frame: iter(maps), names, lambda frame: iter(maps[::-1])) == alone
    with pytest.raises(AvpipeError, match="NaN or infinity"):
        ev.evaluate(clips, lambda frame: iter(maps * np.nan), names)


def test_object_maps_are_blended_in():
    clips, right = clips_with([[(0, 0, 0.5, 1)]]), LEFT[:, ::-1]
    both = [lambda frame: iter([LEFT]), ["ez-vsl", "slavc-median"], lambda frame: iter([right])]
    for alpha, expected in ((1, [1, 1]), (0, [0, 0]), (None, [0, 1])):
        assert [score.rows[0]["ciou"] > 0.9 for score in ev.evaluate(clips, *both, alpha)] == expected


def test_groups_of_clips_and_intervals():
    boxes = [(0, 0, 0.5, 1)], [(0, 0, 0.1, 0.1)], [(0, 0, 0.5, 0.9), (0, 0.4, 0.5, 1)], []
    clips = clips_with(boxes, labels=["dog", "dog", "cat", None])
    (score,) = ev.evaluate(clips, lambda frame: iter([LEFT] * 4), ["avpipe"])
    found = score.summary()
    small = {"clips": 1, "ciou": 0, "mean": score.rows[1]["ciou"]}
    assert found["by_size"] == {"small": small, "huge": {"clips": 2, "ciou": 1, "mean": 1}}
    assert [(count, some["clips"]) for count, some in found["by_boxes"].items()] == [("1", 2), ("2", 1)]
    assert {name: some["ciou"] for name, some in found["by_class"].items()} == {"cat": 1, "dog": 0.5}
    assert found["mean"] == pytest.approx(np.mean([row["ciou"] for row in score.rows[:3]]))
    low, high = found["interval"]["ciou"]
    assert low < found["ciou"] < high and found["ciou"] == pytest.approx(2 / 3)
    assert "slavc" not in found and "negatives" not in found


def test_negatives_are_apart_and_told_by_confidence(tmp_path):
    full = [(0, 0, 0.5, 1)]
    clips = clips_with([full, full, full, []], negative=[False, False, True, False])
    quiet = np.full((14, 14), -0.8, np.float32)
    scores = ev.evaluate(clips, lambda frame: iter([2 * LEFT - 1, quiet, quiet - 0.1, quiet]), ["avpipe", "slavc"])
    ev.write_per_clip(scores, tmp_path / "rows.parquet")
    own, found = (score.summary() for score in scores)
    assert (own["clips_scored"], own["clips_without_box"], own["negatives"]) == (2, 1, 1) and "slavc" not in own
    assert (found["clips_scored"], found["clips_without_box"], found["ciou"]) == (3, 1, pytest.approx(1 / 3))
    assert [row["boxes"] for row in scores[1].rows] == [1, 1, 0, 0]
    assert found["slavc"]["corrected"]["loc_acc"] == pytest.approx(1 / 3)
    assert found["slavc"]["corrected"]["max_f1"] == pytest.approx(2 / (2 + 0 + 2))
    assert found["slavc"]["published"]["subsets"]["all@50"]["precision"] == 0.25
    again = [score.summary() for score in read_scores(tmp_path / "rows.parquet").values()]
    assert json.dumps(again) == json.dumps([own, found])


def test_nothing_to_score_and_unknown_protocols_are_sentences():
    with pytest.raises(AvpipeError, match="no available clip of t has a usable box"):
        ev.evaluate(clips_with([[]]), lambda frame: iter([LEFT]), ["avpipe"])
    with pytest.raises(AvpipeError, match=r"no protocol 'lsv'; there are: .*all"):
        ev.choose_protocols("lsv")


def test_a_run_is_scored_and_its_files_say_the_same(trained):
    result = run_eval(trained, Request(split="synth_test", checkpoint="small", protocol="all", workers=1))
    assert result.keys() >= FIELDS and result["clips_listed"] == result["clips_scored"] == 4
    folder = trained.runs / "small" / "eval" / "synth_test"
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(result))
    rows = pd.read_parquet(folder / "per_clip.parquet")
    again = {score.protocol: score.summary() for score in read_scores(folder / "per_clip.parquet").values()}
    assert json.dumps(again) == json.dumps(result["protocols"])
    for name, score in result["protocols"].items():
        cious = rows[rows.protocol == name].ciou
        assert len(cious) == 4 and score["ciou"] == (cious >= 0.5).mean()
        assert score["auc"] == pytest.approx(np.trapezoid([(cious >= k / 20).mean() for k in range(21)], dx=0.05))
        assert score["floor"]["ciou"] == (rows[rows.protocol == name].floor_ciou >= 0.5).mean()
    sheet = np.asarray(Image.open(folder / "sheet.png").convert("RGB"))
    assert sheet.shape[1] > 600 and sheet.std() > 20
    text = table(result)
    assert "cIoU@0.5" in text and "4 of 4 listed clips scored" in text
    assert all(name in text for name in ev.PROTOCOLS)
    assert all(len(line) <= 110 for line in text.splitlines()[1:-1])


def test_a_map_depends_on_its_own_clip_alone(trained):
    shards = open_shards(trained.shards / "synth_test")
    clips = clips_of_shards(shards)
    torch.manual_seed(0)
    network = METHODS["lvs"].network(get_recipe("lvs-small", []).options)
    together = list(network_maps(network, shards, clips, "logspec", 32, workers=0)("squash"))
    for place in range(4):
        (alone,) = network_maps(network, shards, clips.at([place]), "logspec", 32, workers=0)("squash")
        np.testing.assert_allclose(alone, together[place], atol=1e-5)


def test_random_init_is_a_baseline_and_repeats_itself_and_object_needs_no_sound(trained, tmp_path):
    first, again = (run_eval(trained, Request(split="synth_test", baseline="random-init", workers=0)) for _ in "12")
    assert (first["model"], first["clips_scored"]) == ("baseline-random-init", 4) and again == first
    weights = imagenet_weights(tmp_path)
    result = run_eval(trained, Request(split="synth_test", baseline="object", workers=0, weights=weights))
    assert (result["model"], result["clips_scored"]) == ("baseline-object", 4)
    assert (trained.runs / "baseline-object/eval/synth_test/metrics.json").exists()


def test_without_a_name_the_newest_run_is_scored_or_a_fresh_network(trained, done_root, tmp_path, caplog):
    assert run_eval(trained, Request(split="synth_test", workers=0))["model"] == "small"
    assert (
        run_eval(linked(tmp_path, done_root), Request(split="synth_test", workers=0))["model"] == "baseline-random-init"
    )
    assert "no trained run" in caplog.text


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"checkpoint": "small", "baseline": "centre"}, "either --checkpoint RUN or --baseline"),
        ({"checkpoint": "nobody"}, "no run 'nobody'"),
        ({"baseline": "best"}, "no baseline 'best'; there are: centre, object, random-init"),
        ({"baseline": "centre", "object_guided": True}, "a baseline is scored as it is"),
        ({"weights": Path("x")}, "--baseline object or --object-guided"),
        ({"baseline": "object", "weights": Path("nowhere")}, "the ImageNet weights of ResNet-18 are missing"),
    ],
)
def test_wrong_requests_are_sentences(trained, asked, sentence):
    with pytest.raises(AvpipeError, match=sentence):
        run_eval(trained, Request(split="synth_test", workers=0, **asked))


def test_other_sounds_and_what_was_trained_on_stand_beside_the_score(trained):
    result = run_eval(trained, Request(split="synth_test", checkpoint="small", workers=0))
    for name in ("wrong_audio", "silence"):
        other = result[name]
        assert other["drop"] == pytest.approx(result["ciou"] - other["ciou"])
        assert other["interval"][0] <= other["drop"] <= other["interval"][1]
    trained_on, text = result["trained_on"], table(result)
    assert (trained_on["split"], trained_on["leak"]) == ("synth_train", {"clips": 0, "videos": 0})
    assert "with the sound of another class: cIoU@0.5" in text and "trained on synth_train (16 clips)" in text
    assert "LEAK" not in text
    trained_on |= {"leak": {"clips": 3, "videos": 4}, "select_on": "synth_test"}
    assert "LEAK: trained on 3 of the scored clips, on 4 of their videos" in table(result)
    assert "its epoch was chosen by the score on synth_test" in table(result)
    with pytest.raises(AvpipeError, match=r"shares clips or videos with synth_train \(16 clips, 16 videos\)"):
        run_eval(trained, Request(split="synth_train", checkpoint="small", workers=0, forbid_leak=True))


def test_object_guided_maps_are_a_blend(trained, tmp_path):
    request = Request(split="synth_test", checkpoint="small", workers=0)
    plain = run_eval(trained, request)
    guided = run_eval(trained, replace(request, object_guided=True, weights=imagenet_weights(tmp_path)))
    assert guided["model"] == "small + object-guided" and guided["per_clip"] != plain["per_clip"]
    ours, theirs = (next(iter(read_scores(Path(result["per_clip"])).values())).rows for result in (plain, guided))
    assert [row["ciou"] for row in ours] != [row["ciou"] for row in theirs]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state["data"].update(feature_digest="00000000"), "trained on logspec 00000000"),
        (lambda state: state["network"].pop("image_trunk.conv1.weight"), "not a valid checkpoint of this avpipe"),
        (lambda state: state["recipe"].update(magic=1), "not a valid checkpoint of this avpipe"),
        (lambda state: state.pop("data"), "not a valid checkpoint of this avpipe"),
    ],
)
def test_a_checkpoint_of_another_feature_or_not_whole_is_a_sentence(trained, tmp_path, change, sentence):
    state = torch.load(trained.runs / "small" / "last.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(AvpipeError, match=sentence):
        run_eval(trained, Request(split="synth_test", checkpoint=str(tmp_path / "part.pt"), workers=0))


@pytest.mark.slow
def test_the_centre_of_vggss_needs_no_clips(official, tmp_path):
    root = Root(tmp_path)
    root.manifest.symlink_to(official.folder)
    result = run_eval(root, Request(split="vggss", baseline="centre", workers=0))
    assert (result["clips_listed"], result["clips_scored"], result["clips_without_box"]) == (5158, 5156, 2)
    assert (result["ciou"], result["auc"]) == pytest.approx((0.340, 0.374), abs=0.002)
    assert result["ceiling"] == pytest.approx({"ciou": 0.505, "auc": 0.495}, abs=0.002)
