"""Protocols against torch's resampling, sorting, loops over boxes and counting on a finer grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.evaluation import ogl
from avpipe.train.evaluation.protocols import PROTOCOLS

LVS, SSL_TIE, SSPL, EZ_VSL, EZ_VSL_TRAIN, SLAVC, SLAVC_MEDIAN, AVPIPE = PROTOCOLS.values()
HALF = 25_088
each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
each_of_a_share = pytest.mark.parametrize("protocol", [p for p in PROTOCOLS.values() if p.pixels], ids=lambda p: p.name)

# A sliver, a point, inverted, wholly outside, and the broken coordinates of the official list.
WITHOUT_AREA = [
    [0.3, 0.4, 0.3, 0.9],
    [0.5, 0.5, 0.5, 0.5],
    [0.8, 0.1, 0.2, 0.6],
    [-0.3, -0.2, -0.05, 0.7],
    [1.1, 0.2, 1.4, 0.7],
    [0.384375, 0.859375, 0.696875, -2.8823037615171176e16],
    [0.534375, 0.3375, -2.8823037615171176e16, 0.909375],
    [math.nan, 0.1, 0.5, 0.5],
    [0.1, 0.1, 0.5, math.nan],
]


def random_map(*shape):
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32)


TORCH_MODES = dict.fromkeys(PROTOCOLS, ("bilinear", False))
TORCH_MODES |= {"ez-vsl": ("bilinear", True), "ez-vsl-train": ("bicubic", False)}
TORCH_MODES |= dict.fromkeys(("slavc", "slavc-median"), ("bicubic", True))


@each_protocol
@pytest.mark.parametrize("shape", [(14, 14), (7, 7), (13, 17), (1, 5), (28, 224), (300, 9), (224, 224)])
def test_enlarge_is_that_of_torch(protocol, shape):
    image_11HW = torch.from_numpy(random_map(*shape).astype(np.float64))[None, None]
    mode, aligned = TORCH_MODES[protocol.name]
    expected = torch.nn.functional.interpolate(image_11HW, (224, 224), mode=mode, align_corners=aligned)
    enlarged = protocol.enlarge(random_map(*shape))
    assert enlarged.dtype == np.float32
    np.testing.assert_allclose(enlarged, expected[0, 0], atol=1e-6)


@each_protocol
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_map_that_is_not_finite_is_refused(protocol, value):
    similarity = random_map(14, 14)
    similarity[3, 4] = value
    with pytest.raises(AvpipeError, match="NaN or infinity"):
        protocol.predict(similarity)


@each_of_a_share
@pytest.mark.parametrize("size", [7, 14, 224])
def test_a_map_without_ties_predicts_the_largest_pixels(protocol, size):
    similarity = random_map(size, size)
    prediction = protocol.predict(similarity)
    assert prediction.shape == (224, 224) and prediction.dtype == bool
    assert prediction.sum() == protocol.pixels
    enlarged = protocol.enlarge(similarity)
    assert enlarged[prediction].min() > enlarged[~prediction].max()


@each_protocol
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
@settings(max_examples=20, deadline=None)
def test_scale_and_offset_of_a_map_do_not_matter_but_to_the_border_of_cosines(protocol, scale, shift):
    similarity = random_map(14, 14)
    if protocol is SLAVC:
        shift = 0
    changed = protocol.predict(similarity * np.float32(scale) + np.float32(shift))
    assert (changed ^ protocol.predict(similarity)).sum() <= 8  # rounding may swap neighbours at the threshold


def test_fixed_thresholds():
    ramp = np.linspace(-0.2, 0.9, 224 * 224, dtype=np.float32).reshape(224, 224)
    assert (SLAVC.predict(ramp) == (ramp >= 0)).all()
    assert (SSPL.predict(ramp) ^ (ramp >= 0.35)).sum() <= 1
    assert (SLAVC_MEDIAN.predict(ramp).ravel() == (np.arange(224 * 224) >= HALF)).all()


def test_confidence():
    ramp = np.linspace(-1, 1, 224 * 224, dtype=np.float32).reshape(224, 224)
    assert SLAVC.confidence(ramp) == SLAVC_MEDIAN.confidence(ramp) == pytest.approx(0.875, abs=1e-5)
    assert all(protocol.confidence(ramp) == 1 for protocol in (LVS, EZ_VSL, AVPIPE))


@given(hnp.arrays(np.float32, (7, 7), elements=st.sampled_from([-1, 0, 0.25, 2])))
@settings(max_examples=30, deadline=None)
def test_avpipe_predicts_exactly_half_and_breaks_ties_by_position(similarity):
    prediction = AVPIPE.predict(similarity)
    scaled = AVPIPE.scale(AVPIPE.enlarge(similarity)).ravel()
    largest = np.argsort(-scaled, kind="stable")[:HALF]
    assert (np.flatnonzero(prediction) == np.sort(largest)).all()


@pytest.mark.parametrize(
    ("protocol", "value", "pixels"),
    [(LVS, 0.37, 50_176), (LVS, 0, 50_176), (LVS, -0.2, 0)]
    + [(p, value, 50_176) for p in (EZ_VSL, EZ_VSL_TRAIN, SLAVC_MEDIAN) for value in (0.37, 0, -0.2)]
    + [(SSL_TIE, 0.37, 50_176), (SSL_TIE, -0.2, 0), (SLAVC, 0.37, 50_176), (SLAVC, 0, 50_176), (SLAVC, -0.2, 0)]
    + [(SSPL, value, 0) for value in (0.37, 0, -0.2)]
    + [(AVPIPE, value, HALF) for value in (0.37, 0, -0.2)],
)
def test_constant_maps(protocol, value, pixels):
    assert protocol.predict(np.full((14, 14), value, dtype=np.float32)).sum() == pixels


def test_maps_that_are_mostly_flat():
    spike = np.zeros((224, 224), dtype=np.float32)
    spike[100, 50:60] = 1
    assert (LVS.predict(spike) == (spike > 0)).all()
    assert EZ_VSL.predict(spike).all()
    assert (LVS.predict(1 - spike) == (spike == 0)).all(), "pixels at the maximum stay, however many"


CORNERS = st.floats(-0.5, 1.5)


@given(st.lists(st.tuples(CORNERS, CORNERS, CORNERS, CORNERS), max_size=4))
@settings(deadline=None)
def test_published_unions_truncate_corners(boxes):
    """Corners are truncated and the far edge is left to slicing; SSL-TIE alone lets it count negative ones, too."""
    for protocol in (LVS, SSL_TIE, SSPL, EZ_VSL, EZ_VSL_TRAIN, SLAVC):
        grid = np.zeros((224, 224))
        for box in boxes:
            xmin, ymin, xmax, ymax = (int(224 * (corner if protocol is SSL_TIE else max(corner, 0))) for corner in box)
            grid[ymin:ymax, xmin:xmax] = 1
        assert (protocol.annotate(boxes).weight == grid).all()


FINE = 5
FINE_CORNERS = st.integers(-2 * FINE, 226 * FINE)


@given(st.lists(st.tuples(FINE_CORNERS, FINE_CORNERS, FINE_CORNERS, FINE_CORNERS), max_size=6))
@settings(deadline=None)
def test_avpipe_union_has_exact_areas(fine_boxes):
    grid = np.zeros((224 * FINE, 224 * FINE))
    for box in fine_boxes:
        xmin, ymin, xmax, ymax = (max(corner, 0) for corner in box)
        grid[ymin:ymax, xmin:xmax] = 1
    shares = grid.reshape(224, FINE, 224, FINE).mean(axis=(1, 3))
    gt = AVPIPE.annotate(np.array(fine_boxes) / (224 * FINE)).weight
    np.testing.assert_allclose(gt, shares, atol=1e-7)
    assert ((gt > 0) == (shares > 0)).all(), "an edge on the pixel grid must not touch the pixel beyond"


@each_protocol
def test_boxes_without_area_add_nothing(protocol):
    good = [0.25, 0.125, 0.75, 0.5]
    for nothing in (protocol.annotate(WITHOUT_AREA), protocol.annotate([]), protocol.annotate([], [])):
        assert not nothing.weight.any() and not nothing.covered.any()
    assert (protocol.annotate([*WITHOUT_AREA, good]).weight == protocol.annotate([good]).weight).all()


@each_protocol
def test_votes(protocol):
    left, top, middle = [0, 0, 0.5, 1], [0, 0, 1, 0.5], [0.25, 0.25, 0.75, 0.75]
    annotation = protocol.annotate([left, top, middle], ["ann", "bob", "cy"])
    gt = annotation.weight
    assert (annotation.covered == (gt > 0)).all()
    assert {float(gt[y, x]) for y, x in [(200, 10), (10, 200), (130, 130)]} == {0.5}
    assert gt[10, 10] == gt[100, 100] == gt[100, 150] == 1
    assert gt[223, 223] == 0


def test_votes_of_one_annotator_and_negative_corners_count_as_published_only_there():
    boxes = [[0, 0, 0.5, 1], [0, 0, 1, 0.5]]
    assert AVPIPE.annotate(boxes, [7, 7]).weight[10, 10] == 0.5
    assert all(p.annotate(boxes, [7, 7]).weight[10, 10] == 1 for p in (LVS, EZ_VSL))
    negative = [[-0.25, 0, 0.5, 1]]
    assert AVPIPE.annotate(negative, [0]).weight[:, :112].all()
    assert not any(p.annotate(negative, [0]).weight.any() for p in (LVS, EZ_VSL))


def test_the_uncovered_part_of_an_edge_pixel_is_a_false_positive_only_where_areas_are_exact():
    half_a_pixel = [[0, 0, 0.5 / 224, 1]]  # covers half of each pixel of the first column
    edge = np.zeros((224, 224), dtype=np.float32)
    edge[:, :112] = 1
    assert AVPIPE.ciou(edge, AVPIPE.annotate(half_a_pixel)) == pytest.approx(112 / HALF)
    assert EZ_VSL.annotate(half_a_pixel).weight.sum() == 0


def test_blends():
    model, objects = random_map(224, 224), np.abs(random_map(224, 223)[:, [*range(223), 0]])
    for alpha, alone in ((1, model), (0, objects)):
        blended = ogl.blend(model, objects, "relative", alpha)
        assert (blended.min(), blended.max()) == (0, 1)
        assert (EZ_VSL.predict(blended) ^ EZ_VSL.predict(alone)).sum() <= 4
    stretched = [(some - some.min()) / np.ptp(some) for some in (model, objects)]
    half = ogl.blend(model, objects, "relative")
    np.testing.assert_allclose(half, ogl.blend(*stretched, "relative"), atol=1e-6)
    assert np.corrcoef(half.ravel(), (0.4 * stretched[0] + 0.6 * stretched[1]).ravel())[0, 1] > 0.999999
    cosine = ogl.blend(model, objects, "cosine")
    np.testing.assert_allclose((cosine + 1) / 2, 0.9 * (model + 1) / 2 + 0.1 * objects / 2.5, atol=1e-6)
