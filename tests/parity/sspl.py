"""SSPL with and without its PCM: both extractors, maps, fused features, projections, losses, gradients."""

import hashlib

import numpy as np
import torch
from parity.compare import Comparison
from parity.networks import gradients, running_statistics, watched
from parity_recipes import assert_check, field, from_json, normal, weights
from torch import Tensor, nn

from avpipe.train.methods.sspl import SSPL, SSPLConfig, published_names, scaled, simsiam_loss
from avpipe.train.networks.similarity import own_maps

CASES = [(variant, mode) for variant in ("pcm", "nopcm") for mode in ("eval", "train")]
MAP = {"absolute": 1e-5}
LOSS = {"eval": {"absolute": 1e-6}, "train": {"absolute": 5e-5}}
# Batch norm over so few clips makes what follows it ill-conditioned in training.
VECTOR = {"eval": {"largest": 1e-5}, "train": {"largest": 1e-3}}
HEAD = {"eval": {"largest": 1e-5}, "train": {"absolute": 5e-3}}
GRADIENT = 5e-2


class Remembered(nn.Module):
    """A frozen extractor that computes each batch once: its output depends on neither the mode nor the variant."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.outputs = network, {}

    def forward(self, batch: Tensor) -> Tensor:
        key = hashlib.sha256(batch.contiguous().numpy().tobytes()).digest()
        if key not in self.outputs:
            with torch.no_grad():
                self.outputs[key] = self.network(batch)
        return self.outputs[key].clone()


class Networks:
    """The network of each variant with the published weights, made out of one drawing of them."""

    def __init__(self, compare: Comparison):
        self.published = weights(from_json(compare.golden["state_spec"]))
        self.dtype = compare.dtype
        model = self._filled("nopcm")
        self.frame, self.sound, self.head = Remembered(model.frame), Remembered(model.sound), model.sound_head

    def _filled(self, variant: str) -> SSPL:
        with torch.device("meta"):  # fresh weights, which would be overwritten, take seconds to draw
            model = SSPL(SSPLConfig(init="random", pcm=variant == "pcm"))
        names = published_names(model.state_dict())
        state = {own: self.published[name].clone() for own, name in names.items()}
        model.load_state_dict(state, assign=True)
        return model.to(self.dtype)

    def __call__(self, variant: str, mode: str) -> SSPL:
        model = self._filled(variant)
        model.frame, model.sound = self.frame, self.sound
        return model.train(mode == "train")


def names_of_both(own_names) -> dict[str, str]:
    """Published names, where an extractor that is remembered has one more step in its own."""
    return {own: name for own, name in published_names(own_names).items() if ".network." not in own}


def forward(compare: Comparison) -> None:
    """File sspl_forward."""
    golden = compare.golden
    seed, count = int(golden["seed"]), int(golden["B"])
    shapes = {"view1": (count, 3, 224, 224), "view2": (count, 3, 224, 224), "spect": (count, 3, 1, 96, 64)}
    made = {name: field(seed, f"sspl/{name}", shape) for name, shape in shapes.items()}
    for name, value in made.items():
        assert_check(value, golden[f"{name}_check"])
    views = torch.from_numpy(np.stack([made["view1"], made["view2"]], axis=1)).to(compare.dtype)
    patches = torch.from_numpy(made["spect"]).to(compare.dtype).movedim(2, 1)
    networks = Networks(compare)
    if compare.single:
        extractors(compare, networks, views[:, 0], patches)
    for variant, mode in CASES:
        if compare.holds(f"{variant}_{mode}"):
            case(compare, networks, variant, mode, views, patches)


def extractors(compare: Comparison, networks: Networks, view: Tensor, patches: Tensor) -> None:
    """Some clips only, and some channels of the first."""
    golden = compare.golden
    with torch.no_grad():
        frame = networks.frame(view)[: len(golden["vgg16_chan_mean"])]
        sound = networks.sound(patches[:, 0].flatten(0, 1)[:, None])[: len(golden["vggish_embed"])]
        head = networks.head(sound)
    compare("vgg16_map_s0_c0_64", frame[0, :64], largest=1e-5)
    compare("vgg16_chan_mean", frame.double().mean((2, 3)), largest=1e-5)
    compare("vgg16_chan_std", frame.double().std((2, 3)), largest=1e-5)
    compare("vgg16_min", frame.min(), each=1e-5)
    compare("vggish_embed", sound, largest=1e-5)
    compare("vggish_fc", head, largest=1e-5)


def case(compare: Comparison, networks: Networks, variant: str, mode: str, views: Tensor, patches: Tensor) -> None:
    """One variant in one mode: what one call of the loss leaves behind, and its gradients."""
    model, key = networks(variant, mode), f"{variant}_{mode}"
    with watched(model.projector) as projector, watched(model.predictor) as predictor, watched(model.pcm) as pcm:
        loss, _ = model.loss(views, patches)
    with torch.no_grad():
        embedding, audio = model.audio_features(patches)
    features = pcm[0][1] if pcm else model.frame(views[:, 0])
    compare(f"{key}_loss", loss, **LOSS[mode])
    compare(f"{key}_sim_map", own_maps(features, audio), **MAP)
    for number in (1, 2):
        compare(f"{key}_fav{number}", projector[number - 1][0], **VECTOR[mode])
        for letter, calls in (("p", predictor), ("z", projector)):
            compare(f"{key}_{letter}{number}", calls[number - 1][1], part=lambda v: v[:, :256], **HEAD[mode])
    if pcm:
        compare(f"{key}_trans_s0_c0_64", features[0, :64], **VECTOR[mode])
        compare(f"{key}_trans_chan_mean", features.double().mean((2, 3)), **VECTOR[mode])
        compare(f"{key}_audio_orig", embedding, **MAP)
    if mode == "train":
        loss.backward()
        gradients(compare, model, names_of_both, key, GRADIENT)
        running_statistics(compare, model, names_of_both, f"{variant}_rs_")
    elif compare.single:
        with torch.no_grad():  # a batch of one, which the published code cannot take
            one, _ = model.eval().loss(views[:1], patches[:1])
        compare.against(f"{key} loss of a batch of one is finite", torch.isfinite(one), True)


def loss(compare: Comparison) -> None:
    """File sspl_loss: from the feature maps of the frames on."""
    golden = compare.golden
    seed, shape = int(golden["seed"]), (int(golden["B"]), 512, 14, 14)
    smooth = field(seed, "sspl/fmsmooth", shape)
    maps = [normal(seed, f"sspl/{name}", shape) + smooth for name in ("fm1", "fm2")]
    for name, value in zip(("fm1", "fm2"), maps, strict=True):
        assert_check(value, golden[f"{name}_check"])
    # An error message of the published code.
    compare.exempt("aud_orig", "aud_trans", "batch_of_one")
    networks = Networks(compare)
    for variant, mode in CASES:
        if compare.holds(f"{variant}_{mode}"):
            made_up(compare, networks(variant, mode), f"{variant}_{mode}", maps)


def made_up(compare: Comparison, model: SSPL, key: str, maps: list[np.ndarray]) -> None:
    mode = "train" if model.training else "eval"
    embedding, audio = (
        torch.from_numpy(compare.golden[name]).to(compare.dtype).requires_grad_() for name in ("aud_orig", "aud_trans")
    )
    features = [torch.from_numpy(value).to(compare.dtype) for value in maps]
    if model.pcm is not None:
        features = [model.pcm(value, embedding) for value in features]
        compare(f"{key}_trans1_s0_c0_32", features[0][0, :32], **VECTOR[mode])
        compare(f"{key}_trans1_chan_mean", features[0].double().mean((2, 3)), **VECTOR[mode])
    attended = [model.attend(value, audio) for value in features]
    projected = [model.projector(value) for value in attended]
    predicted = [model.predictor(value) for value in projected]
    value, _ = simsiam_loss(projected, predicted, True)
    value.backward()
    compare(f"{key}_loss", value, **LOSS[mode])
    for number, maps_BCHW in enumerate(features, start=1):
        sim_BHW = own_maps(maps_BCHW, audio)
        compare(f"{key}_sim{number}", sim_BHW, **MAP)
        compare(f"{key}_att{number}", scaled(sim_BHW, "min-max"), absolute=1e-4)
        compare(f"{key}_fav{number}", attended[number - 1], **VECTOR[mode])
    compare(f"{key}_p1", predicted[0], part=lambda v: v[:, :256], **HEAD[mode])
    compare(f"{key}_z2", projected[1], part=lambda v: v[:, :256], **HEAD[mode])
    compare(f"{key}_gaud_trans_norm", audio.grad.double().norm(), each=GRADIENT)
    compare(f"{key}_gaud_trans", audio.grad, largest=GRADIENT)
    if model.pcm is not None:
        compare(f"{key}_gaud_orig", embedding.grad, largest=GRADIENT)
