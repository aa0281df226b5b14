"""Parts of the methods by themselves: margins, objectives, transforms, fusions, what learns at which rate."""

import contextlib

import pytest
import torch

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.features.specs import SPECS
from avpipe.train.methods import METHODS
from avpipe.train.methods.lvs import LVSConfig, lvs_loss
from avpipe.train.methods.ssl_tie import SSLTIE, SSLTIEConfig
from avpipe.train.methods.sspl import SSPL, SSPLConfig
from avpipe.train.methods.vgg_h import VGGH, VGGHConfig
from avpipe.train.models.recipes import get_recipe
from avpipe.train.networks.similarity import similarity_maps
from avpipe.train.networks.warp import Warp, draw_warp

pytestmark = pytest.mark.heavy

pytest_plugins = ["train_fixtures"]


def test_the_papers_objective_is_its_formula():
    """LVS, section 3.4, by plain loops."""
    image, audio = torch.randn(3, 8, 4, 4).abs().double(), torch.randn(3, 8).abs().double()
    config = LVSConfig(init="random", objective="paper")
    sim = similarity_maps(image, audio)
    total = 0.0
    for i in range(3):
        own = sim[i, i]
        sounding, background = torch.sigmoid((own - 0.65) / 0.03), 1 - torch.sigmoid((own - 0.4) / 0.03)
        positive = (sounding * own).sum() / sounding.sum()
        negative = (background * own).sum() / background.sum() + sum(sim[i, j].mean() for j in range(3) if j != i)
        total -= torch.log(torch.exp(positive) / (torch.exp(positive) + torch.exp(negative)))
    assert lvs_loss(image, audio, config)[0].item() == pytest.approx(total.item() / 3, rel=1e-9)


@pytest.mark.heavy
def test_sspl_learns_all_but_its_extractors_each_at_its_rate():
    model = SSPL(SSPLConfig(init="random", pcm=False)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = model.parameter_groups(1e-2)
    assert [group["lr"] for group in groups] == pytest.approx([1e-2, 4e-3, 4e-3])
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=1e-4)
    loss, parts = model.loss(torch.randn(2, 2, 3, 64, 64), torch.randn(2, 1, 3, 96, 64))
    loss.backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"projector", "predictor", "sound_head"}
    assert not model.frame.training and parts["spread"] > 0
    with torch.device("meta"):
        rates = SSPL(SSPLConfig(init="random")).parameter_groups(1.0)[2]
    assert len(rates["params"]) == 6 and rates["weight_decay"] == 0, "those of its predictive coding do not decay"
    assert all(parameter.shape == (1, 512, 1, 1) for parameter in rates["params"])


def test_a_warp_without_anything_changes_nothing_and_a_flip_is_a_flip():
    image = torch.randn(2, 3, 224, 224)
    assert torch.allclose(Warp(torch.zeros(2), 1.0, False)(image), image, atol=1e-3)
    assert torch.allclose(Warp(torch.zeros(2), 1.0, True)(image), image.flip(-1), atol=1e-3)
    assert Warp(torch.zeros(2), 0.5, False)(image).shape == (2, 3, 112, 112)


def test_a_warp_is_the_same_under_autocast():
    image, warp = torch.rand(2, 3, 224, 224), Warp(torch.tensor([7.0, -23.0]), 0.5, True)
    with torch.autocast("cpu", torch.bfloat16):
        cast = warp(image)
    assert torch.equal(cast, warp(image))


def test_drawn_warps_have_whole_degrees_and_both_scales_and_flips():
    torch.manual_seed(0)
    drawn = [draw_warp(4, 30, torch.device("cpu")) for _ in range(60)]
    angles = torch.cat([warp.angles for warp in drawn])
    assert (angles == angles.round()).all() and angles.abs().max() <= 30 and len(angles.unique()) > 40
    assert {(warp.scale, warp.flip) for warp in drawn} == {(s, f) for s in (0.5, 1.0) for f in (True, False)}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("fusion", "first", "second"),
    [("attention", 1, 0), ("concatenate", 1 / 9, 8 / 9), ("multiply", 1 / 9, 0), ("add", 1 + 1 / 9, 8 / 9)],
)
def test_sspl_fuses_as_its_table_says(fusion, first, second):
    model = SSPL(SSPLConfig(init="random", pcm=False, fusion=fusion)).eval()
    audio = torch.eye(512)[:2]
    image = torch.eye(512)[2:4, :, None, None].repeat(1, 1, 3, 3)  # what is seen is orthogonal to what is heard ...
    image[:, :, 1, 2] = audio  # ... but at one of nine places
    fused = model.fuse(image, audio)
    assert model.projector(fused).shape == (2, 2048)
    for clip in (0, 1):
        assert fused[clip, clip].item() == pytest.approx(first, abs=1e-5)
        assert fused[clip, clip + 2].item() == pytest.approx(second, abs=1e-5)
        assert fused[clip].sum().item() == pytest.approx(first + second + (fusion == "concatenate"), abs=1e-4)
    with pytest.raises(AvpipeError, match="fusion must be one of attention, concatenate, multiply, add"):
        SSPLConfig(fusion="glue")


def test_vgg_h_learns_labels_and_has_no_maps():
    torch.manual_seed(0)
    model = VGGH(VGGHConfig(classes=3))
    optimizer, spec, label = torch.optim.Adam(model.parameters(), 1e-3), torch.randn(6, 1, 65, 40), torch.arange(6) % 3
    first = model.loss(torch.empty(6), spec, label)[0].item()
    for _ in range(8):
        loss, parts = model.loss(torch.empty(6), spec, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2 and parts["accuracy"] == 1
    assert torch.allclose(model.embed_audio(spec).norm(dim=1), torch.ones(6))
    with pytest.raises(AvpipeError, match="is audio-only: it has no maps"):
        model.localize(torch.empty(6), spec)


def test_small_frames_warp_to_the_size_of_the_other_map():
    """16 does not divide half of 112 pixels: the map of the half frame is larger than half of the map."""
    torch.manual_seed(0)
    model = SSLTIE(SSLTIEConfig(spec_pool=8))
    warp = Warp(angles=torch.tensor([10.0, -20.0]), scale=0.5, flip=True)
    loss, parts = model.two_branch_loss(torch.randn(2, 3, 112, 112), torch.randn(2, 1, 257, 100), warp)
    assert loss.isfinite() and parts["geometric"] > 0
    assert warp.chunk(1, 2) == Warp(angles=warp.angles[1:], scale=0.5, flip=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_stays_on_its_device_and_never_waits_for_it(name, monkeypatch):
    """Meta tensors refuse to meet the host's, and to be asked for a number, for which a GPU would have to be waited."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    recipe, method = get_recipe(name, ["init=random"]), METHODS[name]
    network = method.network(recipe.options).to("meta").train()
    views = (method.views,) if method.views > 1 else ()
    image = torch.empty((4, *views, 3, 224, 224), device="meta")
    spec = torch.empty((4, 1, *SPECS[recipe.feature].shape), device="meta")
    labels = [torch.zeros(4, dtype=torch.long, device="meta")] if method.labelled else []
    loss, parts = network(image, spec, *labels)
    loss.backward()
    assert loss.is_meta and all(part.is_meta for part in parts.values())
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
