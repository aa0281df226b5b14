"""ResNet-18 trunks for frames and spectrograms: torchvision's network without its pooling and classifier.

Shapes: B batch, C channels (512), F frequency bins, T spectrogram frames, H × W positions of the feature map.
A trunk's state keys are torchvision's (`conv1.weight`, `layer4.1.bn2.bias`), so torchvision's weights load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from avpipe.train.networks.weights import RESNET18, fill, load_published

Init = Literal["imagenet", "random"]


def image_trunk(init: Init, *, stride14: bool, weights_file: str | Path | None = None) -> nn.Sequential:
    """Build the trunk for frames: image_B3HW (H, W in pixels) to a feature map (B, 512, H/32, W/32), after the ReLU.

    With `stride14` the last stage has stride 1: 224 × 224 pixels give 14 × 14 positions (H/16) instead of 7 × 7.
    `init="imagenet"` loads torchvision's ImageNet weights, from `weights_file` if given, else from torch's cache
    (`$TORCH_HOME/hub/checkpoints`), where they are downloaded on first use; `init="random"` uses torch's generator.

    Raises AvpipeError, saying what to do, if the ImageNet weights are not available.
    Source: LVS section 5.3 and the released model (stride 1); EZ-VSL's released model (stride unchanged).
    """
    trunk = _trunk(stride14)
    if init == "imagenet":
        state = load_published(RESNET18, weights_file)
        without_head = {name: value for name, value in state.items() if not str(name).startswith("fc.")}
        fill(trunk, without_head, RESNET18, weights_file)
    else:
        initialise(trunk)
    return trunk


def audio_trunk(*, stride14: bool) -> nn.Sequential:
    """Build the trunk for spectrograms: spec_B1FT to a feature map (B, 512, F/32, T/32), after the ReLU.

    With `stride14` the last stage has stride 1: F/16 × T/16, so 257 × 200 gives 17 × 13. One input channel. The
    weights are drawn from torch's generator, as no published set-up starts this trunk from pretrained ones.
    Source: the released models of LVS, SSL-TIE (stride 1) and EZ-VSL (stride unchanged).
    """
    trunk = _trunk(stride14)
    trunk.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    initialise(trunk)
    return trunk


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Initialise a network, in place, with the random weights that LVS, EZ-VSL and SSL-TIE start from.

    Convolutions: normal with variance 2 / fan-out. Batch norm: weight normal (1, .02), bias 0.
    Source: the released models.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Disable gradients and put every layer in evaluation mode, so that results do not depend on batch statistics.

    On exit each layer returns to the mode that it had before, including layers that were frozen on purpose.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _trunk(stride14: bool) -> nn.Sequential:
    # Imported here because torchvision takes longer to import than torch itself, and most commands build no network.
    from torchvision.models import resnet18

    network = resnet18(weights=None)
    if stride14:
        first = network.layer4[0]
        first.conv1.stride = first.downsample[0].stride = (1, 1)
    layers = OrderedDict(network.named_children())
    del layers["avgpool"], layers["fc"]
    return nn.Sequential(layers)
