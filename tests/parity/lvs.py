"""LVS: maps, logits, losses, gradients, batch-norm statistics."""

from dataclasses import replace

import torch
from parity.compare import Comparison
from parity.networks import batch, filled, gradients, running_statistics
from torch import Tensor

from avpipe.train.methods.lvs import LVS, LVSConfig, lvs_logits, lvs_loss, published_names
from avpipe.train.networks.similarity import similarity_maps

CONFIG = LVSConfig(init="random")
MAP = {"absolute": 1e-5}
LOGITS = {"each": 1e-5, "absolute": 1e-3}
LOSS = {"each": 1e-5}


def forward(compare: Comparison) -> None:
    """File lvs_forward."""
    model = filled(LVS(CONFIG), published_names, compare)
    image, spec = batch("lvs", compare)
    if compare.holds("eval_"):
        with torch.no_grad():
            features = model.eval().image_features(image), model.audio_features(spec)
            outputs(compare, "eval", *features)
        map_BHW = own(similarity_maps(*features))
        # Lowest, mean and highest value of the maps, whatever the name says.
        compare("eval_img_feat_stats", torch.stack([map_BHW.min(), map_BHW.mean(), map_BHW.max()]), **MAP)
    if compare.holds("train_", "rs_"):
        features = model.train().image_features(image), model.audio_features(spec)
        outputs(compare, "train", *features).backward()
        gradients(compare, model, published_names)
        running_statistics(compare, model, published_names)


def outputs(compare: Comparison, mode: str, image: Tensor, audio: Tensor, config: LVSConfig = CONFIG) -> Tensor:
    """What both modes of a network have, that of SSL-TIE too; returns the loss."""
    sim_BBHW = similarity_maps(image, audio)
    loss, _ = lvs_loss(image, audio, config)
    compare(f"{mode}_A", own(sim_BBHW), **MAP)
    compare(f"{mode}_logits", lvs_logits(sim_BBHW, config), **LOGITS)
    compare(f"{mode}_loss", loss, **LOSS)
    if f"{mode}_Pos" in compare.golden:
        tri_map(compare, f"{mode}_", own(sim_BBHW))
    return loss


def tri_map(compare: Comparison, prefix: str, own_BHW: Tensor) -> None:
    """What is called sounding and what background; both sigmoids have a slope of up to 1 / (4 · .03) in the map."""
    tolerance = {"absolute": 1e-5 / (4 * CONFIG.mask_temperature)}
    compare(f"{prefix}Pos", torch.sigmoid((own_BHW - CONFIG.epsilon_p) / CONFIG.mask_temperature), **tolerance)
    compare(f"{prefix}Neg", torch.sigmoid((CONFIG.epsilon_n - own_BHW) / CONFIG.mask_temperature), **tolerance)


def own(sim_BBHW: Tensor) -> Tensor:
    return sim_BBHW.detach().diagonal().movedim(-1, 0)


def loss(compare: Comparison) -> None:
    """File lvs_loss: every setting of the loss on stored features."""
    for case in ("tri1_neg1", "tri0_neg1", "tri1_neg0", "tri0_neg0"):
        if not compare.holds(case):
            continue
        config = replace(CONFIG, tri_map=case[3] == "1", hard_negatives=case[-1] == "1")
        image, audio = stored(compare)
        value, _ = lvs_loss(image, audio, config)
        value.backward()
        sim_BBHW = similarity_maps(image, audio).detach()
        compare(f"{case}_logits", lvs_logits(sim_BBHW, config), **LOGITS)
        compare(f"{case}_loss", value, **LOSS)
        compare(f"{case}_gimg_norm", image.grad.double().norm(), each=1e-4)
        compare(f"{case}_gaud_norm", audio.grad.double().norm(), each=1e-4)
        if case == "tri1_neg1":
            compare("A", own(sim_BBHW), **MAP)
            tri_map(compare, "", own(sim_BBHW))
            compare("gaud", audio.grad, largest=1e-4)
            compare("gimg_mean_c", image.grad.mean(dim=1), largest=1e-4)


def stored(compare: Comparison) -> list[Tensor]:
    """The features of a loss-level file, as leaves of the graph."""
    values = (torch.from_numpy(compare.golden[key]) for key in ("img_f16", "aud_f16"))
    return [value.to(compare.dtype).requires_grad_() for value in values]
