"""The two frozen extractors of SSPL: VGG-16 for frames and VGGish for log-mel patches.

Shapes: B batch, P patches, C channels, H × W positions, T × F windows and bands of a patch.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from avpipe.train.networks.weights import VGG16, VGGISH, fill, load_published

EMBEDDING = 128
# Channels of VGGish's convolutions; "M" is a max-pooling that halves height and width.
VGGISH_LAYERS = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M")
# Layers of torchvision's VGG-16 up to conv5_3, without the ReLU after it.
UP_TO_CONV5_3 = 29


def vgg16_trunk(init: str, weights: str | Path | None = None) -> nn.Sequential:
    """Build VGG-16 up to conv5_3: image_B3HW to a signed feature map (B, 512, H/16, W/16).

    `init` is "imagenet" or "random". Source: SSPL's released `frame_net.py`. Raises AvpipeError if the weights are not
    available.
    """
    from torchvision.models import vgg16

    trunk = vgg16(weights=None).features[:UP_TO_CONV5_3]
    if init == "imagenet":
        state = load_published(VGG16, weights)
        names = {f"features.{name}": name for name in trunk.state_dict()}
        fill(trunk, {names[name]: value for name, value in state.items() if name in names}, VGG16, weights)
    return trunk


class VGGish(nn.Module):
    """VGGish: map each 96 × 64 patch of `vggish` features to a vector of 128 values, after a ReLU.

    Source: the PyTorch port that SSPL uses (torchvggish), without its post-processing.
    """

    def __init__(self, init: str, weights: str | Path | None = None):
        """Build the network; `init="imagenet"` loads the published weights (AudioSet), "random" draws new ones."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for size in VGGISH_LAYERS:
            if size == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, size, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels = size
        self.features = nn.Sequential(*layers)
        sizes = (512 * 6 * 4, 4096, 4096, EMBEDDING)
        pairs = itertools.pairwise(sizes)
        self.embeddings = nn.Sequential(
            *[layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU(inplace=True))]
        )
        if init == "imagenet":
            fill(self, load_published(VGGISH, weights), VGGISH, weights)

    def forward(self, patches_B1TF: Tensor) -> Tensor:
        """Map (B, 1, 96, 64) to (B, 128). The linear layers expect channels last, as in the TensorFlow original."""
        return self.embeddings(self.features(patches_B1TF).permute(0, 2, 3, 1).flatten(1))


def freeze(network: nn.Module) -> None:
    """Disable gradients, dropout and batch statistics for good, whatever the mode of the enclosing module."""
    network.requires_grad_(False).eval()
    network.train = lambda mode=True: network  # .train() of an enclosing module must not undo this


def patch_means(values_BPC: Tensor) -> Tensor:
    """Return the mean over the patches of each clip, (B, C)."""
    return torch.mean(values_BPC, dim=1)
