"""The published protocols against the numbers that the published evaluators gave, clip by clip."""

import numpy as np
import pytest
from parity_recipes import from_json, load, parity_files

from train import metrics
from train.protocols import PROTOCOLS

PUBLISHED = {"lvs": "lvs", "ez-vsl": "ez_test_av"}
SETS = ("vggss", "flickr")

# Maps 30 to 39 are special. On these the outcome hangs on the last bit of the resize ...
SPECIAL = {30, 31, 32, 33, 34, 35, 36, 38, 39}
# ... except where strict comparison and the value of a constant, or mostly flat, map decide.
DECIDED = {"lvs": {30, 31, 32, 36, 38}, "ez-vsl": {32, 36, 38}}

each_file = pytest.mark.parametrize("file", parity_files("eval_protocols"))
each_set = pytest.mark.parametrize("boxes_of", SETS)
each_name = pytest.mark.parametrize("name", PUBLISHED)


def annotations(golden, protocol, boxes_of):
    """The annotation of every clip: boxes of VGG-SS are fractions, those of Flickr pixels of 256, by annotator."""
    clips = from_json(golden[f"{boxes_of}_boxes"])
    if boxes_of == "vggss":
        return [protocol.annotate(boxes) for boxes in clips]
    return [
        protocol.annotate(
            np.array([box for boxes in clip for box in boxes]) / 256,
            [annotator for annotator, boxes in enumerate(clip) for _ in boxes],
        )
        for clip in clips
    ]


@each_file
@each_set
@each_name
def test_annotations_agree_pixel_for_pixel(file, boxes_of, name):
    golden = load(file)
    ours = np.stack([gt.weight for gt in annotations(golden, PROTOCOLS[name], boxes_of)])
    differing = np.flatnonzero((2 * ours != golden[f"lvs/{boxes_of}/gt"]).any(axis=(1, 2)))
    assert not differing.size, f"clips {differing.tolist()} differ"


@each_file
@each_set
@each_name
def test_scores_agree_clip_by_clip(file, boxes_of, name):
    golden, protocol = load(file), PROTOCOLS[name]
    gts = annotations(golden, protocol, boxes_of)
    sizes = [key.removeprefix("maps") for key in golden if key.startswith("maps")]
    assert sizes
    for size in sizes:
        maps = golden[f"maps{size}"]
        ours = np.array([protocol.ciou(similarity, gt) for similarity, gt in zip(maps, gts, strict=True)])
        theirs = golden[f"{PUBLISHED[name]}/{boxes_of}/{size}/ciou"]
        compared = [i for i in range(len(maps)) if i not in SPECIAL - DECIDED[name]]
        np.testing.assert_allclose(ours[compared], theirs[compared], atol=1e-3, err_msg=f"{size}x{size} maps")


@each_file
@each_set
@each_name
def test_summaries_of_the_published_scores_agree(file, boxes_of, name):
    golden = load(file)
    stems = [key for key in golden if key.startswith(f"{PUBLISHED[name]}/{boxes_of}/") and key.endswith("/ciou")]
    assert stems
    for key in stems:
        ours = metrics.summarise(golden[key])
        theirs = golden[key.replace("/ciou", "/summary")][:2]
        assert [ours["ciou"], ours["auc"]] == pytest.approx(theirs, abs=1e-9)
