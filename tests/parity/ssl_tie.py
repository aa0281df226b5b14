"""SSL-TIE: one branch, the transforms of frames and maps, both branches, totals, gradients."""

import torch
from parity.compare import Comparison
from parity.lvs import LOGITS, LOSS, MAP, outputs, own
from parity.networks import batch, filled, gradients, running_statistics, watched
from torch import Tensor

from avpipe.train.methods.lvs import lvs_logits, published_names
from avpipe.train.methods.ssl_tie import SSLTIE, SSLTIEConfig
from avpipe.train.networks.similarity import similarity_maps
from avpipe.train.networks.warp import CANVAS_PX, Warp

CONFIG = SSLTIEConfig()

# Transformed frames and maps, which differ this much between versions of the library that the published code calls.
WARPED_FRAME = {"absolute": 1e-3}
WARPED_MAP = {"absolute": 5e-5}
# Pooled cosines of .5 that are off by as much as these maps may be.
WARPED_LOGITS = {"each": 1e-4, "absolute": 1e-3}


def forward(compare: Comparison) -> None:
    """File ssltie_forward: one branch."""
    model = filled(SSLTIE(CONFIG), published_names, compare)
    image, spec = batch("ssltie", compare)
    for mode in ("eval", "train"):
        if not compare.holds(mode):
            continue
        model.train(mode == "train")
        with torch.no_grad():
            features = model.image_features(image), model.audio_features(spec)
            outputs(compare, mode, *features, CONFIG)
            compare(f"{mode}_A0_ref", similarity_maps(*features).flatten(2).amax(2), **MAP)
    # The statistics of a layer whose output the published network drops, and which the port leaves out.
    compare.exempt("rs_norm3.running_mean", "rs_norm3.running_var")
    running_statistics(compare, model, published_names)


def equivariance(compare: Comparison) -> None:
    """Files ssltie_equiv_<transform>."""
    golden = compare.golden
    model = filled(SSLTIE(CONFIG), published_names, compare)
    image, spec = batch("ssltie", compare)
    warp = Warp(torch.from_numpy(golden["angle"]), float(golden["scale"]), bool(golden["hflip"]))
    compare.exempt("angle", "scale", "scale_arr", "hflip", "lambda_te")
    # Two scalars about the probe, of which no definition is stated.
    compare.exempt("probe_loss_ts", "probe_loss_same")
    transforms(compare, warp, image)
    for mode in ("eval", "train"):
        model.train(mode == "train")
        both_branches(compare, mode, model, image, spec, warp)
    running_statistics(compare, model, published_names)


def transforms(compare: Comparison, warp: Warp, image: Tensor) -> None:
    """The matrices, the transformed frames and the transformed probe, none of which a network has touched."""
    golden = compare.golden
    compare("center", torch.full_like(torch.from_numpy(golden["center"]), CANVAS_PX / 2))
    compare("tf_matrices", pixel_matrices(warp), absolute=1e-4)
    turned = warp(image)
    compare("timage_shape", list(turned.shape))
    compare("timage_first", turned[0, 0], **WARPED_FRAME)
    compare("timage_last", turned[-1, 2], **WARPED_FRAME)
    compare("timage_mean", turned.double().mean((2, 3)), absolute=1e-4)
    compare("timage_std", turned.double().std((2, 3), correction=0), absolute=1e-4)
    compare("timage_zero_frac", (turned == 0).double().mean(), absolute=1e-4)
    probe = torch.from_numpy(golden["probe_heatmap"])
    compare.exempt("probe_heatmap")
    compare("probe_theatmap", warp(probe), **WARPED_MAP)


def pixel_matrices(warp: Warp) -> Tensor:
    """(B, 2, 3): where each pixel of the canvas goes, out of the port's grid of where each place comes from."""
    last = CANVAS_PX - 1
    to_unit = torch.tensor([[2 / last, 0, -1], [0, 2 / last, -1], [0, 0, 1]], dtype=torch.float64)
    inverse = warp._inverse().double()
    row = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64).expand(len(inverse), 1, 3)
    return (to_unit.inverse() @ torch.cat([inverse, row], dim=1).inverse() @ to_unit)[:, :2]


def both_branches(compare: Comparison, mode: str, model: SSLTIE, image: Tensor, spec: Tensor, warp: Warp) -> None:
    """Maps and losses of both views; in training the total's gradients, which flow into both maps."""
    with watched(model.image_trunk) as seen, watched(model.audio_trunk) as heard:
        total, parts = model.two_branch_loss(image, spec, warp)
    plain, warped = (
        similarity_maps(frame, sound.amax(dim=(2, 3))).detach()
        for (_, frame), (_, sound) in zip(seen, heard, strict=True)
    )
    compare(f"{mode}_A", own(plain), **MAP)
    compare(f"{mode}_A_ts", own(warped), **WARPED_MAP)
    compare(f"{mode}_tA", warp(own(plain)[:, None]), **WARPED_MAP)
    compare(f"{mode}_logits", lvs_logits(plain, CONFIG), **LOGITS)
    compare(f"{mode}_logits_ts", lvs_logits(warped, CONFIG), **WARPED_LOGITS)
    compare(f"{mode}_A0_ref_ts", warped.flatten(2).amax(2), **WARPED_MAP)
    names = {"plain": "loss_cl", "warped": "loss_cl_ts", "geometric": "loss_ts"}
    for name, key in names.items():
        compare(f"{mode}_{key}", parts[name], **LOSS)
    compare(f"{mode}_total", total, **LOSS)
    if mode == "train":
        compare("upstream_epoch_loss", total, **LOSS)
        total.backward()
        gradients(compare, model, published_names)
