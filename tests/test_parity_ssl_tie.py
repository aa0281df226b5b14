"""SSL-TIE against numbers that its published code gave: transforms, both branches, totals, gradients."""

import numpy as np
import pytest
import torch
from parity_recipes import assert_check, deviation, field, from_json, load, parity_files, weights
from test_parity_lvs import DOUBLE, DTYPES, compare_gradients, compare_outputs

from train.methods.lvs import lvs_loss
from train.methods.ssl_tie import SSLTIE, SSLTIEConfig, published_names
from train.similarity import similarity_maps
from train.warp import Warp

CONFIG = SSLTIEConfig()
EQUIVARIANCE = [
    param for name in ("full_noflip", "half_flip", "half_noflip") for param in parity_files(f"ssltie_equiv_{name}")
]


def build(golden: dict, dtype: torch.dtype):
    seed, batch, frames = (int(golden[key]) for key in ("seed", "B", "T"))
    image = field(seed, "ssltie/image", (batch, 3, 224, 224))
    spec = field(seed, "ssltie/spec", (batch, 1, 257, frames))
    assert_check(image, golden["image_check"])
    assert_check(spec, golden["spec_check"])
    published = weights(from_json(golden["state_spec"]))
    model = SSLTIE(CONFIG)
    model.load_state_dict({own: published[name] for own, name in published_names(model.state_dict()).items()})
    return model.to(dtype), torch.from_numpy(image).to(dtype), torch.from_numpy(spec).to(dtype)


def warp_of(golden: dict) -> Warp:
    return Warp(torch.from_numpy(golden["angle"]), float(golden["scale"]), bool(golden["hflip"]))


@DTYPES
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("file", parity_files("ssltie_forward"))
def test_forward_of_one_branch(file, mode, dtype):
    golden = load(file)
    if dtype == torch.float64 and f"{mode}_loss_f64" not in golden:
        pytest.skip("this file holds no double-precision numbers")
    model, image, spec = build(golden, dtype)
    model.train(mode == "train")
    with torch.no_grad():
        image_features, audio_features = model.image_features(image), model.audio_features(spec)
        loss, _ = lvs_loss(image_features, audio_features, CONFIG)
    sim_BBHW = similarity_maps(image_features, audio_features)
    compare_outputs(golden, mode, sim_BBHW, loss)
    suffix = "" if dtype == torch.float32 else "_f64"
    best = sim_BBHW.flatten(2).amax(2)
    assert deviation(best, golden[f"{mode}_A0_ref{suffix}"]) < (1e-5 if dtype == torch.float32 else DOUBLE)
    if mode == "eval":
        np.testing.assert_allclose(model.localize(image, spec), golden["eval_A"][:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", EQUIVARIANCE)
def test_transform_of_frames_and_of_the_probe(file):
    golden = load(file)
    warp = warp_of(golden)
    image = torch.from_numpy(field(int(golden["seed"]), "ssltie/image", (int(golden["B"]), 3, 224, 224)))
    turned = warp(image)
    assert list(turned.shape) == golden["timage_shape"].tolist()
    np.testing.assert_allclose(turned[0, 0], golden["timage_first"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(turned[-1, 2], golden["timage_last"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(turned.double().mean((2, 3)), golden["timage_mean"], atol=1e-4)
    np.testing.assert_allclose(turned.double().std((2, 3), unbiased=False), golden["timage_std"], atol=1e-4)
    probe = torch.from_numpy(golden["probe_heatmap"])
    np.testing.assert_allclose(warp(probe), golden["probe_theatmap"], rtol=0, atol=5e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("file", EQUIVARIANCE)
def test_both_branches(file, mode):
    golden = load(file)
    model, image, spec = build(golden, torch.float32)
    model.train(mode == "train")
    total, parts = model.two_branch_loss(image, spec, warp_of(golden))
    expected = {"plain": "loss_cl", "warped": "loss_cl_ts", "geometric": "loss_ts"}
    for name, key in expected.items():
        assert parts[name].item() == pytest.approx(golden[f"{mode}_{key}"].item(), rel=2e-4), name
    assert total.item() == pytest.approx(golden[f"{mode}_total"].item(), rel=2e-4)
    if mode == "eval":
        with torch.no_grad():
            features = model.image_features(warp_of(golden)(image)), model.audio_features(spec)
        own = similarity_maps(*features).diagonal().movedim(-1, 0)
        np.testing.assert_allclose(own, golden["eval_A_ts"][:, 0], rtol=0, atol=2e-4)
        return
    assert total.item() == pytest.approx(golden["upstream_epoch_loss"].item(), rel=2e-4)
    total.backward()
    compare_gradients(golden, model, torch.float32, published_names)
