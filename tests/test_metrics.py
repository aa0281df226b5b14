"""Scores against loops, scikit-learn and exhaustive search; floor and ceiling against what is known of VGG-SS."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from shared_files import SHARED
from sklearn.metrics import auc as trapezoid

from avpipe.train.evaluation import metrics
from avpipe.train.evaluation.metrics import Annotation
from avpipe.train.evaluation.protocols import PROTOCOLS

PIXELS = st.sampled_from([(0, 0), (0, 0), (0.125, 0.25), (0.25, 0.25), (0.5, 0.5), (0.5, 1), (0.75, 1), (1, 1)])


@st.composite
def annotations(draw):
    pixels = np.array(draw(st.lists(PIXELS, min_size=9, max_size=9)), np.float32)
    return Annotation(pixels[:, 0].reshape(3, 3), pixels[:, 1].reshape(3, 3))


def binary(weight):
    return Annotation(weight, (weight > 0).astype(np.float32))


def ciou_by_loop(prediction, gt):
    hit = total = 0.0
    for predicted, weight, covered in zip(prediction.ravel(), gt.weight.ravel(), gt.covered.ravel(), strict=True):
        hit += weight if predicted else 0
        total += weight + (1 - covered if predicted else 0)
    return hit / total if total else math.nan


@given(hnp.arrays(bool, (3, 3)), annotations())
def test_ciou_is_the_formula(prediction, gt):
    assert metrics.ciou(prediction, gt) == pytest.approx(ciou_by_loop(prediction, gt), nan_ok=True)


def test_ciou_without_annotation():
    nothing = binary(np.zeros((224, 224), dtype=np.float32))
    assert metrics.ciou(np.ones((224, 224), bool), nothing) == 0
    assert math.isnan(metrics.ciou(np.zeros((224, 224), bool), nothing))
    assert metrics.ceiling(nothing, 5) == metrics.ceiling(nothing, None) == 0
    assert math.isnan(metrics.ceiling(nothing, 0))


def test_ciou_of_large_grids_is_exact_in_single_precision():
    gt = binary(np.full((224, 224), 0.1, dtype=np.float32))
    prediction = np.ones((224, 224), dtype=bool)
    assert metrics.ciou(prediction, gt) == 1
    prediction[0] = False
    assert metrics.ciou(prediction, gt) == pytest.approx(223 / 224, rel=1e-12)


@given(st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=30))
def test_success_and_auc(cious):
    thresholds = [k / 20 for k in range(21)]
    shares = [sum(c >= t for c in cious) / len(cious) for t in thresholds]
    assert metrics.success(cious) == pytest.approx(shares[10])
    assert metrics.auc(cious) == pytest.approx(trapezoid(thresholds, shares))
    assert metrics.summarise(cious) == {"ciou": metrics.success(cious), "auc": metrics.auc(cious)}


def test_edges_of_success_and_auc():
    assert metrics.success([0.5, 0.4999]) == 0.5
    # 3 * 0.05 is a little more than 0.15, so thresholds made by multiplication would lose this clip.
    assert metrics.auc([0.15]) == pytest.approx(3.5 * 0.05)
    assert metrics.success([math.nan, 1], threshold=0) == 0.5, "nan is a miss even there"
    assert all(math.isnan(value) for value in metrics.summarise([]).values())


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.floats(0, 1) | st.just(math.nan)), max_size=12))
def test_groups(clips):
    names, cious = [name for name, _ in clips], [ciou for _, ciou in clips]
    groups = metrics.grouped(names, cious)
    frame = pd.DataFrame({"name": names, "ciou": np.array(cious, float)}).groupby("name").ciou
    assert list(groups) == sorted({*names} - {None})
    for name, members in frame:
        assert groups[name]["clips"] == len(members) and groups[name]["ciou"] == (members >= 0.5).mean()
        assert groups[name]["mean"] == pytest.approx(members.mean(), nan_ok=True)


def test_size_classes():
    sizes = [0, 1023.5, 1024, 9215, 9216, 20735, 20736, 50176]
    expected = ["small", "small", "medium", "medium", "large", "large", "huge", "huge"]
    assert metrics.size_classes(sizes).tolist() == expected and metrics.size_classes([]).size == 0


def test_pointing_takes_the_first_of_equal_maxima():
    similarity = np.array([[0, 5, 5], [1, 2, 5]], dtype=np.float32)
    assert metrics.pointing(similarity, binary(np.array([[0, 0.5, 0], [0, 0, 0]])))
    assert not metrics.pointing(similarity, binary(np.array([[1, 0, 1], [1, 1, 1]])))


def test_centre_map_falls_from_the_middle_to_the_corners():
    centre = metrics.centre_map()
    assert centre.shape == (224, 224) and centre.dtype == np.float32 and not centre.flags.writeable
    assert (centre == centre[::-1]).all() and (centre == centre.T).all()
    assert centre.min() == centre[0, 0] == -1 and centre[112, 112] == centre.max() == 1


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_half_of_the_centre_map_is_a_disc_of_half_the_area(protocol):
    rows, columns = np.mgrid[:224, :224] - 111.5
    distance = np.hypot(rows, columns)
    disc = protocol.predict(metrics.centre_map())
    radius = math.sqrt(224 * 224 / 2 / math.pi)
    assert disc[distance < radius - 0.1].all() and not disc[distance > radius + 0.1].any()
    assert abs(int(disc.sum()) - 224 * 224 // 2) <= 12  # pixels at one distance come in groups of up to 24


@given(annotations())
@settings(deadline=None, max_examples=40)
def test_ceiling_is_the_best_of_all_predictions(gt):
    bests = []
    for pixels in range(10):
        best = -1.0
        for chosen in itertools.combinations(range(9), pixels):
            prediction = np.zeros(9, dtype=bool)
            prediction[list(chosen)] = True
            score = ciou_by_loop(prediction, gt)
            best = score if math.isnan(score) else max(best, score)
        assert metrics.ceiling(gt, pixels) == pytest.approx(best, nan_ok=True)
        bests.append(best)
    assert metrics.ceiling(gt, None) == pytest.approx(np.nanmax(bests))


QUICK = ("avpipe", "lvs", "slavc")


@pytest.mark.parametrize("name", [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in PROTOCOLS])
def test_floor_and_ceiling_of_vggss(name):
    boxes_file = SHARED / "metadata/lvs/vggss.json" if SHARED else None
    if not (boxes_file and boxes_file.exists()):
        pytest.skip("no metadata/lvs/vggss.json: set AVPIPE_SHARED to the folder that holds metadata/")
    protocol = PROTOCOLS[name]
    disc = protocol.predict(metrics.centre_map())
    floors, ceilings, empty = [], [], set()
    for clip in json.loads(boxes_file.read_text()):
        gt = protocol.annotate(clip["bbox"])
        assert gt.weight.min() >= 0 and (gt.weight <= gt.covered).all() and gt.covered.max() <= 1
        empty |= set() if gt.weight.any() else {clip["file"]}
        floors.append(metrics.ciou(disc, gt))
        ceilings.append(metrics.ceiling(gt, protocol.pixels))
    assert len(floors) == 5158 and empty == {"M1P1xla8rg0_000000", "MKC9LvRivTM_000030"}
    assert metrics.summarise(floors) == pytest.approx({"ciou": 0.340, "auc": 0.374}, abs=0.002)
    half = {"ciou": 0.505, "auc": 0.495} if protocol.pixels else {"ciou": 1, "auc": 1}
    assert metrics.summarise(ceilings) == pytest.approx(half, abs=0.002)
