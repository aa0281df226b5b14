"""SSPL, with and without its PCM, against numbers that its published code gave."""

import numpy as np
import pytest
import torch
from parity_recipes import assert_check, deviation, field, from_json, load, normal, parity_files, weights
from test_parity_lvs import DOUBLE, DTYPES

from train.methods.sspl import SSPL, SSPLConfig, published_names, scaled, simsiam_loss
from train.similarity import own_maps

VARIANTS = pytest.mark.parametrize("variant", ["pcm", "nopcm"])
MODES = pytest.mark.parametrize("mode", ["eval", "train"])


def network(golden: dict, variant: str, dtype: torch.dtype) -> SSPL:
    published = weights(from_json(golden["state_spec"]))
    model = SSPL(SSPLConfig(init="random", pcm=variant == "pcm"))
    model.load_state_dict({own: published[name] for own, name in published_names(model.state_dict()).items()})
    return model.to(dtype)


def check(ours, golden: dict, key: str, dtype: torch.dtype, single: float) -> None:
    """Against the double-precision number where there is one and the port runs in double."""
    if dtype == torch.float64:
        if f"{key}_f64" in golden:
            assert deviation(ours, golden[f"{key}_f64"]) < DOUBLE, key
        return
    np.testing.assert_allclose(np.asarray(ours), golden[key], rtol=0, atol=single, err_msg=key)


@DTYPES
@MODES
@VARIANTS
@pytest.mark.parametrize("file", parity_files("sspl_forward"))
def test_forward_and_backward(file, variant, mode, dtype):
    golden = load(file)
    seed, batch = int(golden["seed"]), int(golden["B"])
    inputs = {"view1": (batch, 3, 224, 224), "view2": (batch, 3, 224, 224), "spect": (batch, 3, 1, 96, 64)}
    made = {name: field(seed, f"sspl/{name}", shape) for name, shape in inputs.items()}
    for name, value in made.items():
        assert_check(value, golden[f"{name}_check"])
    views = torch.from_numpy(np.stack([made["view1"], made["view2"]], axis=1)).to(dtype)
    patches = torch.from_numpy(made["spect"]).to(dtype).movedim(2, 1)
    model = network(golden, variant, dtype).train(mode == "train")
    loss, _ = model.loss(views, patches)
    key = f"{variant}_{mode}"
    check(loss.item(), golden, f"{key}_loss", dtype, 1e-6 if mode == "eval" else 5e-5)
    if mode == "train":
        compare_gradients(golden, f"{key}_grad", model, loss, dtype)
        return
    with torch.no_grad():
        embedding, audio = model.audio_features(patches)
        features = model.image_features(views[:, 0], embedding)
        check(own_maps(features, audio), golden, f"{key}_sim_map", dtype, 1e-5)
        check(model.attend(features, audio), golden, f"{key}_fav1", dtype, 2e-3)
        one = model.loss(views[:1], patches[:1])[0]  # a batch of one works
    assert torch.isfinite(one)
    if dtype == torch.float32:
        np.testing.assert_allclose(
            model.train().localize(views[:, 0], patches), golden[f"{key}_sim_map"], rtol=0, atol=1e-5
        )


def compare_gradients(golden: dict, key: str, model: SSPL, loss: torch.Tensor, dtype: torch.dtype) -> None:
    loss.backward()
    ours = {
        published: model.get_parameter(own).grad
        for own, published in published_names(dict(model.named_parameters())).items()
    }
    ours = {name: gradient for name, gradient in ours.items() if gradient is not None}
    names = from_json(golden[f"{key}_names"])
    assert set(ours) == set(names)  # and none for the frozen extractors
    norms = [ours[name].double().norm().item() for name in names]
    if dtype == torch.float64:
        np.testing.assert_allclose(norms, golden[f"{key}_norms_f64"], rtol=1e-8)
    else:
        np.testing.assert_allclose(norms, golden[f"{key}_norms"], rtol=5e-2)


@pytest.mark.parametrize("file", parity_files("sspl_forward"))
def test_both_extractors(file):
    golden = load(file)
    seed, batch = int(golden["seed"]), int(golden["B"])
    model = network(golden, "nopcm", torch.float32)
    with torch.no_grad():
        frame = model.frame(torch.from_numpy(field(seed, "sspl/view1", (batch, 3, 224, 224)))[:2])
        sound = model.sound(torch.from_numpy(field(seed, "sspl/spect", (batch, 3, 1, 96, 64)))[0])
        head = model.sound_head(sound)
    assert deviation(frame[0, :64], golden["vgg16_map_s0_c0_64"]) < 1e-5
    assert deviation(frame.double().mean((2, 3)), golden["vgg16_chan_mean"]) < 1e-5
    assert deviation(sound, golden["vggish_embed"]) < 1e-5
    assert deviation(head, golden["vggish_fc"]) < 1e-5


@DTYPES
@MODES
@VARIANTS
@pytest.mark.parametrize("file", parity_files("sspl_loss"))
def test_loss_on_made_up_features(file, variant, mode, dtype):
    golden = load(file)
    seed, shape = int(golden["seed"]), (int(golden["B"]), 512, 14, 14)
    smooth = field(seed, "sspl/fmsmooth", shape)
    maps = [normal(seed, f"sspl/{name}", shape) + smooth for name in ("fm1", "fm2")]
    for name, value in zip(("fm1", "fm2"), maps, strict=True):
        assert_check(value, golden[f"{name}_check"])
    model = network(golden, variant, dtype).train(mode == "train")
    embedding = torch.from_numpy(golden["aud_orig"]).to(dtype)
    audio = torch.from_numpy(golden["aud_trans"]).to(dtype).requires_grad_()
    features = [torch.from_numpy(value).to(dtype) for value in maps]
    if model.pcm is not None:
        features = [model.pcm(value, embedding) for value in features]
    projections = [model.projector(model.attend(value, audio)) for value in features]
    loss, _ = simsiam_loss(projections, [model.predictor(z) for z in projections], True)
    loss.backward()
    key = f"{variant}_{mode}"
    check(loss.item(), golden, f"{key}_loss", dtype, 1e-6 if mode == "eval" else 5e-5)
    sim_BHW = own_maps(features[0], audio).detach()
    check(sim_BHW, golden, f"{key}_sim1", dtype, 1e-5)
    if dtype == torch.float32:
        check(scaled(sim_BHW, "min-max"), golden, f"{key}_att1", dtype, 1e-4)
    assert audio.grad.norm().item() == pytest.approx(
        golden[f"{key}_gaud_trans_norm{'_f64' if dtype == torch.float64 else ''}"].item(),
        rel=1e-7 if dtype == torch.float64 else 5e-2,
    )
