"""EZ-VSL, and MarginNCE, whose numbers are those of the published formula in double precision."""

from dataclasses import replace

import torch
from parity.compare import Comparison
from parity.lvs import own, stored
from parity.networks import batch, filled, gradients, relative, running_statistics
from parity_recipes import from_json, weights

from avpipe.train.methods.ez_vsl import EZVSL, EZVSLConfig, ez_vsl_loss, object_map, published_names
from avpipe.train.methods.margin_nce import MarginNCEConfig, margin_nce_loss, pair_scores
from avpipe.train.networks.resnet import image_trunk
from avpipe.train.networks.similarity import similarity_maps

CONFIG = EZVSLConfig(init="random")
SAVL = {"absolute": 2e-4}


def forward(compare: Comparison) -> None:
    """File ezvsl_forward."""
    model = filled(EZVSL(CONFIG), published_names, compare)
    image, spec = batch("ezvsl", compare)
    for mode in ("eval", "train"):
        if not compare.holds(mode):
            continue
        model.train(mode == "train")
        features = model.image_features(image), model.audio_features(spec)
        loss, _ = ez_vsl_loss(*features, CONFIG)
        compare(f"{mode}_Savl", own(similarity_maps(*features)) / CONFIG.temperature, **SAVL)
        compare(f"{mode}_loss", loss, each=2e-5)
        if mode == "train":
            loss.backward()
            gradients(compare, model, published_names)
            running_statistics(compare, model, published_names)
    if compare.single and "obj_map" in compare.golden:
        trunk = image_trunk("random", stride14=False)
        state = weights(from_json(compare.golden["obj_state_spec"]))
        trunk.load_state_dict({name: state[name] for name in trunk.state_dict()})
        with torch.no_grad():
            compare("obj_map", object_map(trunk.eval()(image)), largest=1e-5)


def loss(compare: Comparison) -> None:
    """File ezvsl_loss."""
    image, audio = stored(compare)
    temperature = compare.golden["tau"].item()
    compare.exempt("tau")
    value, _ = ez_vsl_loss(image, audio, replace(CONFIG, temperature=temperature))
    value.backward()
    compare("loss", value, each=1e-5)
    compare("Slogits", similarity_maps(image, audio) / temperature, largest=1e-5)
    compare("gimg_norm", image.grad.double().norm(), each=1e-4)
    compare("gaud_norm", audio.grad.double().norm(), each=1e-4)
    compare("gaud", audio.grad, largest=1e-4)


def margin_nce(compare: Comparison) -> None:
    """File marginnce_loss: both anchors, every margin; its scores and losses are in double precision throughout."""
    golden = compare.golden
    settings = {"epsilon": "eps", "mask_temperature": "beta", "temperature": "tau"}
    config = MarginNCEConfig(init="random", **{name: golden[key].item() for name, key in settings.items()})
    compare.exempt("margins", *settings.values())
    image, audio = stored(compare)
    sim_BBHW = similarity_maps(image, audio)
    compare("alpha", sim_BBHW, absolute=1e-5)
    compare.against("S", pair_scores(sim_BBHW, config), golden["S"], largest=relative(compare, 1e-5))
    found: dict[str, list] = {"image": [], "audio": [], "both": []}
    for margin in golden["margins"]:
        for anchor, values in found.items():
            values.append(margin_nce_loss(image, audio, replace(config, margin=float(margin), anchor=anchor))[0].item())
    expected = {anchor: golden[f"loss_{anchor}_anchor"] for anchor in ("image", "audio")}
    expected["both"] = (expected["image"] + expected["audio"]) / 2
    for anchor, values in found.items():
        # Losses near 0 are no more exact than a cosine in single precision, divided by the temperature.
        rounding = 1e-6 if compare.single else 0.0
        compare.against(
            f"loss_{anchor}_anchor", values, expected[anchor], each=relative(compare, 1e-5), absolute=rounding
        )
    compare.exempt("S", "loss_image_anchor", "loss_audio_anchor")
