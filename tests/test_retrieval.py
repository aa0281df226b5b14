"""Retrieval against brute force, with ties, and end to end on the synthetic corpus."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from thin import thin_networks  # noqa: F401
from train_fixtures import TINY, avpipe

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.data.open import open_shards
from avpipe.train.evaluation import retrieval as rt
from avpipe.train.evaluation import retrieval_scores as rs
from avpipe.train.evaluation.retrieval_table import table
from avpipe.train.models.load import ModelChoice
from avpipe.train.models.recipes import get_recipe
from avpipe.train.run.fit import fit

pytest_plugins = ["train_fixtures"]


def brute(cosines, labels, without_own):
    """A@5, A@10, P@1, P@5 by a stable sort, query by query."""
    found = []
    for number, row in enumerate(cosines):
        order = [m for m in np.argsort(-row, kind="stable") if not (without_own and m == number)]
        found.append([labels[m] == labels[number] for m in order[:10]])
    found = np.array(found)
    accuracy = {f"A@{k}": found[:, :k].any(axis=1).mean() for k in (5, 10)}
    return accuracy | {f"P@{k}": found[:, :k].mean() for k in (1, 5)}


def whole_cosines(one, other):
    """Cosines in units of 2^-52, out of whole numbers: without any rounding of their own."""
    first, second = ((rs.exact_units(vectors) * 2**26).to(torch.int64).numpy() for vectors in (one, other))
    return first @ second.T


def made_up(kind, count=1100):
    """Vectors (count, 4): `ties` have few directions, all of them exact in binary; `random` ones differ; `same` not."""
    draw = np.random.default_rng(0)
    if kind == "ties":
        return draw.choice([-0.5, 0.5], (count, 4)) * draw.choice([1, 2, 4], (count, 1))
    return draw.standard_normal((count, 4)) if kind == "random" else np.ones((count, 4))


KINDS = ("ties", "random", "same")
# scikit-learn's products round, so that it has ties only where every product is exact.
EXACT = (("ties", "ties"), ("random", "random"), ("same", "ties"), ("ties", "same"))


@pytest.mark.parametrize(
    ("kind", "others", "cosines_of"),
    [(*pair, whole_cosines) for pair in itertools.product(KINDS, KINDS)]
    + [(*pair, cosine_similarity) for pair in EXACT],
)
def test_measures_are_those_of_brute_force(kind, others, cosines_of):
    labels = np.random.default_rng(1).choice(list("abcdefg"), 1100).tolist()
    audio, visual = made_up(kind), made_up(others)[::-1].copy()
    scores = rs.score(audio, visual, labels)
    for task, items, without_own in (("audio_retrieval", audio, True), ("cross_modal_retrieval", visual, False)):
        expected = brute(cosines_of(audio, items), labels, without_own)
        assert {name: scores[task][name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("without_own", [True, False])
def test_of_equal_cosines_the_lower_number_comes_first(without_own, monkeypatch):
    draw = np.random.default_rng(2)
    vectors = draw.standard_normal((30, 512)).astype(np.float32)[draw.integers(0, 30, 300)]  # ten copies of each
    unit = rs.exact_units(vectors)
    cosines = (unit @ unit.T).numpy()
    if without_own:
        np.fill_diagonal(cosines, -np.inf)
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :10]
    for block in (1, 7, 512):
        monkeypatch.setattr(rs, "QUERIES", block)
        assert (rs.nearest(unit, unit, 10, without_own).numpy() == expected).all()


def test_cosines_are_exact_in_any_order():
    unit = rs.exact_units(np.random.default_rng(3).standard_normal((50, 512)).astype(np.float32))
    shuffled = unit[:, torch.randperm(512)]
    whole = (unit * 2**26).to(torch.int64)
    assert (unit @ unit.T == (whole @ whole.T).double() / 2**52).all()
    assert ((unit * unit).sum(dim=1) == (shuffled * shuffled).flip(1).sum(dim=1)).all()
    assert (rs.exact_units(np.zeros((2, 4))) == 0).all()


def test_few_clips_give_short_rankings():
    scores = rs.score(np.eye(3), np.eye(3), ["a", "a", "b"])
    assert scores["audio_retrieval"]["A@5"] == pytest.approx(2 / 3)
    assert scores["audio_retrieval"]["P@5"] == pytest.approx(1 / 3)  # of the two others
    assert scores["cross_modal_retrieval"]["P@1"] == 1  # the own picture is among them
    with pytest.raises(AvpipeError, match="too few"):
        rs.score(np.eye(1), None, ["a"])
    with pytest.raises(AvpipeError, match="not finite"):
        rs.score(np.full((3, 4), np.nan), None, ["a", "a", "b"])


@pytest.mark.parametrize("without_own", [True, False])
def test_chance_is_what_random_orders_reach(without_own):
    labels = ["a"] * 3 + ["b"] * 9 + ["c"] * 20 + ["d"]
    draw, sums, rounds = np.random.default_rng(4), Counter(), 400
    for _ in range(rounds):
        places = [
            draw.permutation([m for m in range(33) if not (without_own and m == number)])[:10] for number in range(33)
        ]
        sums.update(rs.measures(torch.from_numpy(np.stack(places)), labels))
    expected = rs.chance(labels, without_own)
    assert {name: sums[name] / rounds for name in expected} == pytest.approx(expected, abs=0.012)


@pytest.fixture(scope="module")
def ear(trained, shards):
    """The root with the run `ear` beside `small`."""
    fit(get_recipe("vgg-h", [*TINY, "epochs=1", "feature=logspec"]), shards, trained.runs / "ear", workers=0)
    return trained


def retrieve(root, *arguments):
    return avpipe(root, "retrieve", "--split", "synth_train", *arguments)


def test_a_run_is_scored_and_its_files_say_the_same(trained):
    result = json.loads(retrieve(trained, "--checkpoint", "small", "--workers", "1", "--json"))
    folder = trained.runs / "small" / "retrieval" / "synth_train"
    assert json.loads((folder / "metrics.json").read_text()) == result
    assert (result["clips_listed"], result["clips_scored"], result["clips_without_label"]) == (16, 16, 0)
    kept = np.load(folder / "embeddings.npz")
    assert kept["audio"].shape == kept["visual"].shape == (16, 512)
    assert kept["clip_ids"].tolist() == sorted(kept["clip_ids"])
    assert np.allclose(np.linalg.norm(kept["audio"], axis=1), 1, atol=1e-5)
    for task, items in (("audio_retrieval", "audio"), ("cross_modal_retrieval", "visual")):
        cosines = cosine_similarity(kept["audio"], kept[items])
        expected = brute(cosines, kept["labels"].tolist(), task == "audio_retrieval")
        assert {name: result[task][name] for name in expected} == pytest.approx(expected)
    text = table(result)
    assert "audio → audio" in text and "audio → image" in text and "chance" in text
    assert "LEAK: trained on 16 of the scored clips" in text  # these are its training clips
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_method_that_only_hears_and_a_fresh_network(ear):
    result = json.loads(retrieve(ear, "--checkpoint", "ear", "--json"))
    assert "audio_retrieval" in result and "cross_modal_retrieval" not in result
    assert set(np.load(result["embeddings"])) == {"clip_ids", "labels", "audio"}
    assert "audio-only" in table(result)
    assert json.loads(retrieve(ear, "--baseline", "random-init", "--json"))["model"] == "baseline-random-init"


def test_clips_without_a_label_are_left_out_and_counted(ear, monkeypatch):
    shards = open_shards(ear.shards / "synth_train")
    shards.labels[3] = shards.labels[7] = None
    monkeypatch.setattr(rt, "open_shards", lambda path: shards)
    result = rt.run_retrieval(ear, "synth_train", ModelChoice(checkpoint="ear"), workers=0)
    assert (result["clips_scored"], result["clips_without_label"]) == (14, 2)
    assert "2 without a label" in table(result)
    shards.labels[:] = [None] * 16
    with pytest.raises(AvpipeError, match="no available clip of synth_train has a label"):
        rt.run_retrieval(ear, "synth_train", ModelChoice(checkpoint="ear"), workers=0)


def test_wrong_wishes_are_sentences(trained):
    for arguments, sentence in (
        (["--checkpoint", "small", "--baseline", "random-init"], "give either"),
        (["--format", "lvs"], "give that file too"),
        (["--baseline", "centre"], "has no embeddings to compare"),
        (["--checkpoint", "nothing"], "there is no run 'nothing'"),
    ):
        with pytest.raises(AvpipeError, match=sentence):
            retrieve(trained, *arguments)
