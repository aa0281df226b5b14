"""The published protocols against the numbers that the published evaluators gave, clip by clip.

On maps enlarged by torch every score is equal to the last digits, so what is left of a difference elsewhere is the
resize. There, our double precision against their single one can move a pixel or two at the threshold: 1e-3.
"""

import numpy as np
import pytest
import torch
from parity_recipes import from_json, load, parity_files
from torch.nn.functional import interpolate

from avpipe.train.evaluation import metrics, ogl, slavc
from avpipe.train.evaluation.protocols import PROTOCOLS

# Our name: theirs, and the resize in torch that equals, or for OpenCV's almost equals, the published one.
PUBLISHED = {
    "lvs": ("lvs", "bilinear", False),
    "ssl-tie": ("tie", "bilinear", False),
    "sspl": ("sspl", "bilinear", False),
    "ez-vsl": ("ez_test_av", "bilinear", True),
    "ez-vsl-train": ("ez_train", "bicubic", False),
}
OPENCV = {"lvs", "ssl-tie", "sspl"}
# The evaluators of SLAVC: ours, share of the similarity map. "rel" is the median threshold.
SLAVC_TEST = {
    f"slavc_test_{part}_rel{median}": (("slavc", "slavc-median")[median], alpha)
    for median in (0, 1)
    for part, alpha in (("av", 1), ("obj", 0), ("av_obj", None))
}
SETS = ("vggss", "flickr")

each_file = pytest.mark.parametrize("file", parity_files("eval_protocols"))
each_slavc_file = pytest.mark.parametrize("file", parity_files("eval_slavc"))
each_set = pytest.mark.parametrize("boxes_of", SETS)
each_name = pytest.mark.parametrize("name", PUBLISHED)


def annotations(golden, protocol, boxes_of):
    """The annotation of every clip: boxes of VGG-SS are fractions, those of Flickr pixels of 256, by annotator."""
    clips = from_json(golden[f"{boxes_of}_boxes"])
    if boxes_of == "vggss":
        return [protocol.annotate(boxes) for boxes in clips]
    who = [[annotator for annotator, boxes in enumerate(clip) for _ in boxes] for clip in clips]
    return [protocol.annotate(np.concatenate(clip) / 256, some) for clip, some in zip(clips, who, strict=True)]


def sizes(golden):
    found = [key.removeprefix("maps") for key in golden if key.startswith("maps")]
    assert found
    return found


def by_torch(similarity, mode, aligned):
    return interpolate(torch.from_numpy(similarity)[None, None], (224, 224), mode=mode, align_corners=aligned)[0, 0]


def compared(name, maps):
    """Which maps to compare: not those of a few values, where the last bit of the resize decides the score ...

    ... but LVS and SSL-TIE enlarge constants without noise, and SSPL scores them as nothing; a spike or a rectangle is
    decided by the strict or loose comparison.
    """
    values = np.array([len(np.unique(some)) for some in maps])
    middle = np.median(maps.reshape(len(maps), -1), axis=1)
    mostly_flat = (values == 2) & (maps.min(axis=(1, 2)) == middle)
    rows, columns = maps.shape[1:]
    ordinary = values > rows * columns / 2
    if name in OPENCV:
        return ordinary | (values == 1) | (mostly_flat & (name != "sspl"))
    return ordinary


def varied(maps):
    """Which maps are not constant: the published resize leaves noise on constants, which stretching blows up."""
    return maps.max(axis=(1, 2)) > maps.min(axis=(1, 2))


@each_file
@each_set
@each_name
def test_annotations_agree_pixel_for_pixel(file, boxes_of, name):
    golden = load(file)
    ours = 2 * np.stack([gt.weight for gt in annotations(golden, PROTOCOLS[name], boxes_of)])
    theirs = golden[f"lvs/{boxes_of}/gt"].copy()
    if (name, boxes_of) == ("ssl-tie", "vggss"):
        differing = golden["tie/vggss/gt_differs"]
        all_of_tie = golden["tie/vggss/gt"]
        assert len(all_of_tie) in (len(differing), len(ours))
        theirs[differing] = all_of_tie if len(all_of_tie) == len(differing) else all_of_tie[differing]
        assert (np.flatnonzero((ours != golden["lvs/vggss/gt"]).any(axis=(1, 2))) == differing).all()
    differing = np.flatnonzero((ours != theirs).any(axis=(1, 2)))
    assert not differing.size, f"clips {differing.tolist()} differ"


@each_file
@each_set
@each_name
def test_scores_agree_clip_by_clip(file, boxes_of, name):
    golden, protocol = load(file), PROTOCOLS[name]
    gts = annotations(golden, protocol, boxes_of)
    theirs_name, mode, aligned = PUBLISHED[name]
    for size in sizes(golden):
        maps, theirs = golden[f"maps{size}"], golden[f"{theirs_name}/{boxes_of}/{size}/ciou"]
        chosen = compared(name, maps)
        assert chosen.sum() >= len(maps) / 2
        by_us = np.array([protocol.ciou(similarity, gt) for similarity, gt in zip(maps, gts, strict=True)])
        large = [by_torch(similarity, mode, aligned).numpy() for similarity in maps]
        exact = np.array([protocol.ciou(similarity, gt) for similarity, gt in zip(large, gts, strict=True)])
        np.testing.assert_allclose(by_us[chosen], theirs[chosen], atol=1e-3, err_msg=f"{size}x{size} maps")
        if name in OPENCV:
            np.testing.assert_allclose(exact[chosen], theirs[chosen], atol=1e-3, err_msg=f"{size}x{size} maps, torch")
        else:  # the published routine itself: equal on every map, constant and tied ones too
            np.testing.assert_allclose(exact, theirs, rtol=1e-12, err_msg=f"{size}x{size} maps, torch")


@each_file
@each_set
@pytest.mark.parametrize(("theirs_name", "alpha"), [("ez_test_obj", 0), ("ez_test_av_obj", None)])
def test_blends_with_an_object_map_agree(file, boxes_of, theirs_name, alpha):
    golden, protocol = load(file), PROTOCOLS["ez-vsl"]
    assert ogl.ALPHA["relative"] == float(golden["alpha"])
    gts = annotations(golden, protocol, boxes_of)
    for size in sizes(golden):
        theirs = golden[f"{theirs_name}/{boxes_of}/{size}/ciou"]
        for exact in (True, False):
            ours = []
            for similarity, objects, gt in zip(golden[f"maps{size}"], golden["obj7"], gts, strict=True):
                pair = (similarity, objects)
                large = [by_torch(some, "bilinear", True).numpy() if exact else protocol.enlarge(some) for some in pair]
                ours.append(protocol.ciou(ogl.blend(*large, "relative", alpha), gt))
            if exact:
                np.testing.assert_allclose(ours, theirs, rtol=1e-12, err_msg=f"{size}x{size} maps, torch")
            else:
                chosen = compared("ez-vsl", golden[f"maps{size}"]) & varied(golden["obj7"])
                np.testing.assert_allclose(np.array(ours)[chosen], theirs[chosen], atol=1e-3, err_msg=size)


@each_file
@each_set
def test_summaries_of_the_published_scores_agree(file, boxes_of):
    golden = load(file)
    keys = [key for key in golden if f"/{boxes_of}/" in key and key.endswith("/ciou")]
    assert len(keys) >= len(PUBLISHED)
    for key in keys:
        ours = [*metrics.summarise(golden[key]).values(), metrics.mean(golden[key])]
        assert ours == pytest.approx(golden[key.replace("/ciou", "/summary")], abs=1e-9), key


def slavc_scores(golden, name, alpha, exact):
    """Our cIoU and confidence of every clip; `exact`: the logits enlarged by torch and scaled, as published."""
    protocol, tau, negatives = PROTOCOLS[name], float(golden["tau"]), set(golden["neg_index"].tolist())
    boxes = from_json(golden["vggss_boxes"])
    cious, confidences = [], []
    for number, logits in enumerate(golden["logit_maps7"]):
        gt = protocol.annotate([] if number in negatives else boxes[number])
        if exact:
            large = by_torch(logits, "bicubic", True).numpy() * np.float32(tau)
            objects = by_torch(golden["obj7"][number], "bicubic", True).numpy()
        else:
            large, objects = protocol.enlarge(logits * np.float32(tau)), protocol.enlarge(golden["obj7"][number])
        blended = large if alpha == 1 else ogl.blend(large, objects, "cosine", alpha)
        cious.append(protocol.ciou(blended, gt))
        confidences.append(protocol.confidence(blended))
    return np.array(cious), np.array(confidences)


@each_slavc_file
@pytest.mark.parametrize("evaluator", SLAVC_TEST)
def test_slavc_scores_and_confidences_agree(file, evaluator):
    golden = load(file)
    assert ogl.ALPHA["cosine"] == float(golden["alpha"])
    name, alpha = SLAVC_TEST[evaluator]
    ordinary = compared("ez-vsl", golden["logit_maps7"])
    # With an absolute threshold only a map whose values lie on it depends on the last bit.
    away_from_0 = np.abs(golden["logit_maps7"]).min(axis=(1, 2)) > 0
    chosen = ordinary & varied(golden["obj7"]) if name == "slavc-median" else ordinary | away_from_0
    for exact in (True, False):
        cious, confidences = slavc_scores(golden, name, alpha, exact)
        np.testing.assert_allclose(cious[chosen], golden[f"{evaluator}/ciou"][chosen], atol=1e-3)
        np.testing.assert_allclose(confidences, golden[f"{evaluator}/conf"], atol=2e-6)


@each_slavc_file
@pytest.mark.parametrize("evaluator", ["slavc_train", *SLAVC_TEST])
def test_slavc_statistics_agree(file, evaluator):
    golden = load(file)
    ciou, confidence, boxes, area = (golden[f"{evaluator}/{column}"] for column in ("ciou", "conf", "nbox", "area"))
    ours = slavc.published(slavc.Detections(ciou, confidence, boxes > 0), area)
    assert [ours["loc_acc"], ours["ap"], ours["f1_at_half"]] == pytest.approx(golden[f"{evaluator}/p50_ap_f1"])
    theirs = from_json(golden[f"{evaluator}/stats"])
    assert len(theirs) == 4 * len(ours["subsets"])
    for subset, values in ours["subsets"].items():
        for column in ("precision", "ap", "auc"):
            expected = theirs[f"{'AP' if column == 'ap' else 'AUC' if column == 'auc' else 'Precision'}-{subset}"]
            assert values[column] == (None if expected is None else pytest.approx(expected, abs=1e-9)), (subset, column)
        printed = None if values["f1"] is None else " ".join(f"{100 * value:.1f}" for value in values["f1"])
        assert printed == theirs[f"F1-{subset}"], subset


@each_slavc_file
def test_slavc_training_scores_agree(file):
    """Its own script scores as EZ-VSL's training does: the median of a cubic map with samples as areas."""
    golden, protocol = load(file), PROTOCOLS["ez-vsl-train"]
    boxes, theirs = from_json(golden["vggss_boxes"]), golden["slavc_train/ciou"]
    chosen = set(np.flatnonzero(compared("ez-vsl-train", golden["logit_maps7"]))) - set(golden["neg_index"].tolist())
    for place in sorted(chosen):
        ours = protocol.ciou(golden["logit_maps7"][place], protocol.annotate(boxes[place]))
        assert ours == pytest.approx(theirs[place], abs=1e-3)
