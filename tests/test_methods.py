"""What all methods share: they train through the same loop, go on with the same losses, and learn what they should."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_fit import losses

from train import fit as fit_module
from train.checkpoint import LAST
from train.fit import fit
from train.frames import appearance_view
from train.loader import TrainingSamples, mask_feature
from train.methods import METHODS
from train.methods.lvs import LVSConfig, lvs_loss
from train.methods.sspl import SSPL, SSPLConfig
from train.recipes import get_recipe
from train.shards import open_shards
from train.similarity import similarity_maps
from train.warp import Warp, draw_warp

COMMON = ["image_px=32", "batch_size=8", "epochs=2", "checkpoint_steps=3", "feature=logspec"]
SMALL = {
    "ez-vsl-small": [],
    "marginnce-small": [],
    "ssl-tie-small": ["spec_pool=8"],
    "lvs-small": ["spec_pool=8", "objective=paper", "margin=-0.2"],
}


@pytest.fixture(scope="module")
def shards(done_root):
    return open_shards(done_root.shards / "synth_train")


@pytest.mark.parametrize("name", SMALL)
def test_a_method_trains_and_goes_on_with_the_same_losses(name, shards, tmp_path, monkeypatch):
    """Methods draw from torch's generator in their loss: its state is part of a checkpoint."""
    recipe = get_recipe(name, [*COMMON, *SMALL[name]])
    kept, save = tmp_path / "kept.pt", fit_module.save_checkpoint

    def save_and_keep(path, *args):
        save(path, *args)
        if args[-1] == 3:
            shutil.copy(path, kept)

    monkeypatch.setattr(fit_module, "save_checkpoint", save_and_keep)
    whole = fit(recipe, shards, tmp_path / "whole", workers=0)
    (tmp_path / "again").mkdir()
    shutil.copy(kept, tmp_path / "again" / LAST)
    shutil.copy(tmp_path / "whole" / "log.csv", tmp_path / "again")
    torch.manual_seed(99)
    again = fit(recipe, shards, tmp_path / "again", workers=0)
    assert (whole.steps, again.resumed_at) == (4, 3)
    assert losses(whole.run) == losses(again.run)


@pytest.mark.parametrize("margin", [0.2, -0.2])
def test_a_margin_moves_the_positive_alone(margin):
    image, audio = torch.randn(3, 8, 4, 4).abs(), torch.randn(3, 8).abs()
    plain, shifted = (lvs_loss(image, audio, LVSConfig(init="random", margin=m))[1] for m in (0.0, margin))
    assert shifted["positive"].item() == pytest.approx(plain["positive"].item() - margin, abs=1e-5)
    assert shifted["easy"] == plain["easy"] and shifted["hard"] == plain["hard"]


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


def test_rates_of_the_predictive_coding_module_do_not_decay():
    groups = SSPL(SSPLConfig(init="random")).parameter_groups(1.0)
    assert len(groups[2]["params"]) == 6 and groups[2]["weight_decay"] == 0
    assert all(parameter.shape == (1, 512, 1, 1) for parameter in groups[2]["params"])


def test_a_warp_without_anything_changes_nothing_and_a_flip_is_a_flip():
    image = torch.randn(2, 3, 224, 224)
    assert torch.allclose(Warp(torch.zeros(2), 1.0, False)(image), image, atol=1e-3)
    assert torch.allclose(Warp(torch.zeros(2), 1.0, True)(image), image.flip(-1), atol=1e-3)
    assert Warp(torch.zeros(2), 0.5, False)(image).shape == (2, 3, 112, 112)


def test_drawn_warps_have_whole_degrees_and_both_scales_and_flips():
    torch.manual_seed(0)
    drawn = [draw_warp(4, 30, torch.device("cpu")) for _ in range(60)]
    angles = torch.cat([warp.angles for warp in drawn])
    assert (angles == angles.round()).all() and angles.abs().max() <= 30 and len(angles.unique()) > 40
    assert {(warp.scale, warp.flip) for warp in drawn} == {(s, f) for s in (0.5, 1.0) for f in (True, False)}


def test_masks_are_stretches_at_the_lowest_value():
    feature = np.random.default_rng(0).random((1, 257, 670)).astype(np.float16) + 1
    shares = []
    for seed in range(60):
        masked = mask_feature(feature, np.random.default_rng(seed))
        low = (masked == feature.min())[0] & (feature != feature.min())[0]
        rows, columns = low.all(axis=1).sum(), low.all(axis=0).sum()
        assert rows < 36 and columns < 181
        assert (masked[0][~low] == feature[0][~low]).all()
        shares.append(bool(low.any()))
    assert 0.6 < np.mean(shares) < 0.95


def test_appearance_views_are_seeded_and_differ(done_root, shards):
    frame = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    views = [appearance_view(frame, 64, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert all(view.shape == (64, 64, 3) and view.dtype == np.uint8 for view in views)
    assert (views[0] == views[1]).all() and (views[0] != views[2]).any()
    two = TrainingSamples(shards=shards, feature="logspec", image_px=32, seed=0, views=METHODS["sspl"].views)[0, 0][0]
    assert two.shape == (2, 32, 32, 3) and (two[0] != two[1]).any()
