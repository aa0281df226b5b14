"""EZ-VSL and MarginNCE against numbers of the published code, and of the published formula in double precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from parity_recipes import assert_check, deviation, field, from_json, load, parity_files, weights
from test_parity_lvs import DOUBLE, DTYPES, compare_gradients

from train.backbones import image_trunk
from train.methods.ez_vsl import EZVSL, EZVSLConfig, ez_vsl_loss, object_map, published_names
from train.methods.margin_nce import MarginNCEConfig, margin_nce_loss, pair_scores
from train.similarity import similarity_maps

CONFIG = EZVSLConfig(init="random")


def build(golden: dict, dtype: torch.dtype):
    seed, batch, frames = (int(golden[key]) for key in ("seed", "B", "T"))
    image = field(seed, "ezvsl/image", (batch, 3, 224, 224))
    spec = field(seed, "ezvsl/spec", (batch, 1, 257, frames))
    assert_check(image, golden["image_check"])
    assert_check(spec, golden["spec_check"])
    published = weights(from_json(golden["state_spec"]))
    model = EZVSL(CONFIG)
    model.load_state_dict({own: published[name] for own, name in published_names(model.state_dict()).items()})
    return model.to(dtype), torch.from_numpy(image).to(dtype), torch.from_numpy(spec).to(dtype)


@DTYPES
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("file", parity_files("ezvsl_forward"))
def test_forward_and_backward(file, mode, dtype):
    golden = load(file)
    suffix = "" if dtype == torch.float32 else "_f64"
    if f"{mode}_loss{suffix}" not in golden:
        pytest.skip("this file holds no double-precision numbers")
    model, image, spec = build(golden, dtype)
    model.train(mode == "train")
    image_features, audio_features = model.image_features(image), model.audio_features(spec)
    loss, _ = ez_vsl_loss(image_features, audio_features, CONFIG)
    own = similarity_maps(image_features, audio_features).detach().diagonal().movedim(-1, 0) / CONFIG.temperature
    if dtype == torch.float32:
        np.testing.assert_allclose(own, golden[f"{mode}_Savl"], rtol=0, atol=2e-4)
        assert loss.item() == pytest.approx(golden[f"{mode}_loss"].item(), rel=2e-5)
    else:
        assert deviation(own, golden[f"{mode}_Savl_f64"]) < DOUBLE
        assert loss.item() == pytest.approx(golden[f"{mode}_loss_f64"].item(), rel=DOUBLE)
    if mode == "eval":
        np.testing.assert_allclose(model.train().localize(image, spec), own * CONFIG.temperature, rtol=0, atol=1e-5)
        return
    loss.backward()
    compare_gradients(golden, model, dtype, published_names)
    buffers = {
        published: model.get_buffer(own) for own, published in published_names(dict(model.named_buffers())).items()
    }
    for key in (key for key in golden if key.startswith("rs_")):
        np.testing.assert_allclose(buffers[key.removeprefix("rs_")], golden[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("file", parity_files("ezvsl_forward"))
def test_the_object_prior_is_that_of_a_plain_resnet(file):
    golden = load(file)
    trunk = image_trunk("random", stride14=False)
    state = weights(from_json(golden["obj_state_spec"]))
    trunk.load_state_dict({name: state[name] for name in trunk.state_dict()})
    image = torch.from_numpy(field(int(golden["seed"]), "ezvsl/image", (int(golden["B"]), 3, 224, 224)))
    with torch.no_grad():
        prior = object_map(trunk.eval()(image))
    assert deviation(prior, golden["obj_map"][:, 0]) < 1e-5


@DTYPES
@pytest.mark.parametrize("file", parity_files("ezvsl_loss"))
def test_loss_on_stored_features(file, dtype):
    golden = load(file)
    suffix = "" if dtype == torch.float32 else "_f64"
    image, audio = (torch.from_numpy(golden[key]).to(dtype).requires_grad_() for key in ("img_f16", "aud_f16"))
    loss, _ = ez_vsl_loss(image, audio, replace(CONFIG, temperature=golden["tau"].item()))
    loss.backward()
    logits = similarity_maps(image, audio).detach() / golden["tau"].item()
    tolerance = 1e-4 if dtype == torch.float32 else DOUBLE
    assert loss.item() == pytest.approx(golden[f"loss{suffix}"].item(), rel=tolerance / 10)
    assert deviation(logits, golden[f"Slogits{suffix}"]) < tolerance / 10
    for name, value in (("gimg", image), ("gaud", audio)):
        assert value.grad.double().norm().item() == pytest.approx(golden[f"{name}_norm{suffix}"].item(), rel=tolerance)
    assert deviation(audio.grad, golden["gaud"]) < 1e-4


@DTYPES
@pytest.mark.parametrize("file", parity_files("marginnce_loss"))
def test_margin_nce_on_stored_features(file, dtype):
    golden = load(file)
    image, audio = (torch.from_numpy(golden[key]).to(dtype) for key in ("img_f16", "aud_f16"))
    settings = {"epsilon": "eps", "mask_temperature": "beta", "temperature": "tau"}
    config = MarginNCEConfig(init="random", **{name: golden[key].item() for name, key in settings.items()})
    tolerance = 1e-5 if dtype == torch.float32 else DOUBLE
    sim_BBHW = similarity_maps(image, audio)
    assert deviation(sim_BBHW, golden["alpha"]) < 1e-5
    assert deviation(pair_scores(sim_BBHW, config), golden["S"]) < tolerance
    for number, margin in enumerate(golden["margins"]):
        found = {}
        for anchor in ("image", "audio", "both"):
            loss, _ = margin_nce_loss(image, audio, replace(config, margin=float(margin), anchor=anchor))
            found[anchor] = loss.item()
        expected = {name: golden[f"loss_{name}_anchor"][number] for name in ("image", "audio")}
        for name, value in (expected | {"both": sum(expected.values()) / 2}).items():
            assert found[name] == pytest.approx(value, rel=1e-4 if dtype == torch.float32 else DOUBLE)
