"""Cosine maps between frames and sounds, which all five localisation methods train on or output.

Index convention: i is the image, j the audio. Shapes: B batch, C channels, H × W positions of a feature map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(features: Tensor) -> Tensor:
    """Scale features to unit length over dimension 1 (the channels), in at least float32; zero vectors stay zero."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def similarity_maps(image_features_BCHW: Tensor, audio_features_BC: Tensor) -> Tensor:
    """Return sim_BBHW[i, j]: the cosine, in [-1, 1], of each position of image i with audio j (LVS, section 3.2).

    The features need not be normalised. Computed in at least float32 even under autocast, because the rounding of a
    bfloat16 cosine is too coarse for a threshold of softness .03.
    """
    with torch.autocast(image_features_BCHW.device.type, enabled=False):
        return torch.einsum("ichw,jc->ijhw", unit(image_features_BCHW), unit(audio_features_BC))


def own_maps(image_features_BCHW: Tensor, audio_features_BC: Tensor) -> Tensor:
    """Return map_BHW, the diagonal sim[i, i] of `similarity_maps`, without computing the other pairs."""
    with torch.autocast(image_features_BCHW.device.type, enabled=False):
        return (unit(image_features_BCHW) * unit(audio_features_BC)[:, :, None, None]).sum(dim=1)


def weighted_mean(map_HW: Tensor, weight_HW: Tensor) -> Tensor:
    """Average a map over its last two dimensions with the given weights."""
    return (map_HW * weight_HW).sum(dim=(-2, -1)) / weight_HW.sum(dim=(-2, -1))


def pooled_vectors(image_features_BCHW: Tensor) -> Tensor:
    """Return visual_BC of unit length: the mean of the unit vectors of all positions.

    SSL-TIE pools visual features for retrieval without naming the pooling. The dot product of this vector with an audio
    vector is the mean of their cosine map, up to a factor that depends only on the image.
    """
    return unit(unit(image_features_BCHW).mean(dim=(2, 3)))
