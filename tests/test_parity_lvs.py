"""LVS against numbers that its published code gave: maps, logits, losses, gradients, batch-norm statistics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from parity_recipes import assert_check, deviation, field, from_json, load, parity_files, weights

from train.methods.lvs import LVS, LVSConfig, lvs_logits, lvs_loss, published_names, similarity_maps

CONFIG = LVSConfig(init="random")
DOUBLE = 1e-9
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def build(golden: dict, dtype: torch.dtype) -> tuple[LVS, torch.Tensor, torch.Tensor]:
    """The network with the golden weights, and the golden batch."""
    seed, batch, frames = (int(golden[key]) for key in ("seed", "B", "T"))
    image = field(seed, "lvs/image", (batch, 3, 224, 224))
    spec = field(seed, "lvs/spec", (batch, 1, 257, frames))
    assert_check(image, golden["image_check"])
    assert_check(spec, golden["spec_check"])
    published = weights(from_json(golden["state_spec"]))
    model = LVS(CONFIG)
    model.load_state_dict({own: published[name] for own, name in published_names(model.state_dict()).items()})
    return model.to(dtype), torch.from_numpy(image).to(dtype), torch.from_numpy(spec).to(dtype)


def compare_outputs(golden: dict, mode: str, sim_BBHW: torch.Tensor, loss: torch.Tensor) -> None:
    own_BHW = sim_BBHW.detach().diagonal().movedim(-1, 0).numpy()
    logits_BK = lvs_logits(sim_BBHW, CONFIG).detach().numpy()
    if loss.dtype == torch.float32:
        np.testing.assert_allclose(own_BHW, golden[f"{mode}_A"][:, 0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(logits_BK, golden[f"{mode}_logits"], rtol=1e-5, atol=1e-3)
        assert loss.item() == pytest.approx(golden[f"{mode}_loss"].item(), rel=1e-5)
    else:
        assert deviation(own_BHW, golden[f"{mode}_A_f64"][:, 0]) < DOUBLE
        assert deviation(logits_BK, golden[f"{mode}_logits_f64"]) < DOUBLE
        assert loss.item() == pytest.approx(golden[f"{mode}_loss_f64"].item(), rel=DOUBLE)


def compare_gradients(golden: dict, model, dtype: torch.dtype, names_of=published_names) -> None:
    published = names_of(name for name, _ in model.named_parameters())
    ours = {name: model.get_parameter(own).grad for own, name in published.items()}
    names = from_json(golden["train_grad_names"])
    assert set(ours) == set(names)
    norms = [ours[name].double().norm().item() for name in names]
    if dtype == torch.float64:
        np.testing.assert_allclose(norms, golden["train_grad_norms_f64"], rtol=DOUBLE)
        return
    np.testing.assert_allclose(norms, golden["train_grad_norms"], rtol=5e-3)
    for name, norm, head in zip(names, norms, golden["train_grad_head"], strict=True):
        entries = ours[name].flatten()[: len(head)].double().numpy()
        np.testing.assert_allclose(entries, head[: len(entries)], rtol=5e-3, atol=5e-3 * norm, err_msg=name)


@DTYPES
@pytest.mark.parametrize("file", parity_files("lvs_forward"))
def test_forward_in_evaluation_mode(file, dtype):
    golden = load(file)
    if dtype == torch.float64 and "eval_loss_f64" not in golden:
        pytest.skip("this file holds no double-precision numbers")
    model, image, spec = build(golden, dtype)
    with torch.no_grad():
        image_features, audio_features = model.eval().image_features(image), model.audio_features(spec)
        loss, _ = lvs_loss(image_features, audio_features, CONFIG)
    compare_outputs(golden, "eval", similarity_maps(image_features, audio_features), loss)
    np.testing.assert_allclose(model.train().localize(image, spec), golden["eval_A"][:, 0], rtol=0, atol=1e-5)


@DTYPES
@pytest.mark.parametrize("file", parity_files("lvs_forward"))
def test_forward_and_backward_in_training_mode(file, dtype):
    golden = load(file)
    if dtype == torch.float64 and "train_loss_f64" not in golden:
        pytest.skip("this file holds no double-precision numbers")
    model, image, spec = build(golden, dtype)
    image_features, audio_features = model.train().image_features(image), model.audio_features(spec)
    loss, _ = lvs_loss(image_features, audio_features, CONFIG)
    loss.backward()
    compare_outputs(golden, "train", similarity_maps(image_features, audio_features), loss)
    compare_gradients(golden, model, dtype)
    published = published_names(name for name, _ in model.named_buffers())
    ours = {name: model.get_buffer(own) for own, name in published.items()}
    for key in (key for key in golden if key.startswith("rs_")):
        np.testing.assert_allclose(ours[key.removeprefix("rs_")], golden[key], rtol=1e-5, atol=1e-6, err_msg=key)


@DTYPES
@pytest.mark.parametrize("case", ["tri1_neg1", "tri0_neg1", "tri1_neg0", "tri0_neg0"])
@pytest.mark.parametrize("file", parity_files("lvs_loss"))
def test_loss_on_stored_features(file, case, dtype):
    golden = load(file)
    suffix = "" if dtype == torch.float32 else "_f64"
    config = replace(CONFIG, tri_map=case[3] == "1", hard_negatives=case[-1] == "1")
    if f"{case}_loss{suffix}" not in golden:
        pytest.skip("this file holds no double-precision numbers")
    image = torch.from_numpy(golden["img_f16"]).to(dtype).requires_grad_()
    audio = torch.from_numpy(golden["aud_f16"]).to(dtype).requires_grad_()
    loss, _ = lvs_loss(image, audio, config)
    loss.backward()
    sim_BBHW = similarity_maps(image, audio).detach()
    own_BHW, logits_BK = sim_BBHW.diagonal().movedim(-1, 0), lvs_logits(sim_BBHW, config)
    norms = {"gimg": image.grad.double().norm().item(), "gaud": audio.grad.double().norm().item()}
    if dtype == torch.float64:
        assert deviation(own_BHW, golden["A_f64"][:, 0]) < DOUBLE
        assert deviation(logits_BK, golden[f"{case}_logits_f64"]) < DOUBLE
        assert loss.item() == pytest.approx(golden[f"{case}_loss_f64"].item(), rel=DOUBLE)
        for name, norm in norms.items():
            assert norm == pytest.approx(golden[f"{case}_{name}_norm_f64"].item(), rel=DOUBLE)
        return
    np.testing.assert_allclose(own_BHW, golden["A"][:, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits_BK, golden[f"{case}_logits"], rtol=1e-5, atol=1e-3)
    assert loss.item() == pytest.approx(golden[f"{case}_loss"].item(), rel=1e-5)
    for name, norm in norms.items():
        assert norm == pytest.approx(golden[f"{case}_{name}_norm"].item(), rel=1e-4)
    if case == "tri1_neg1":
        assert deviation(audio.grad, golden["gaud"]) < 1e-4
        assert deviation(image.grad.mean(dim=1), golden["gimg_mean_c"]) < 1e-4
