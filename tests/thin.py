"""Networks of the real ones' form with a hundredth of their weights: for tests of what a training does around them."""

import sys
from collections.abc import Iterator

import pytest
from torch import Tensor, nn

SEEING, HEARING = 512, 128


def trunk(stride14: bool) -> nn.Sequential:
    """In the place of ResNet-18's: (B, 3, H, W) to (B, 512, H/32, W/32), H/16 with `stride14`; batch norm, ReLU."""
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False))
    network.add_module("bn1", nn.BatchNorm2d(64))
    network.add_module("relu", nn.ReLU(inplace=True))
    network.add_module("maxpool", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
    last = nn.Conv2d(64, SEEING, kernel_size=3, stride=4 if stride14 else 8, padding=1, bias=False)
    network.add_module("layer4", nn.Sequential(last, nn.BatchNorm2d(SEEING), nn.ReLU(inplace=True)))
    return network


def vgg_trunk(init: str, weights: str | None = None) -> nn.Sequential:
    """In the place of VGG-16's: (B, 3, H, W) to (B, 512, H/16, W/16)."""
    return nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, SEEING, kernel_size=4, stride=4))


class Vggish(nn.Module):
    """In the place of VGGish: (B, 1, 96, 64) to (B, 128)."""

    def __init__(self, init: str, weights: str | None = None):
        super().__init__()
        self.embeddings = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(12 * 8, HEARING), nn.ReLU())

    def forward(self, patches_B1TF: Tensor) -> Tensor:
        return self.embeddings(patches_B1TF)


def patch_networks(patch: pytest.MonkeyPatch) -> None:
    """From here on every method is built thin."""
    patch.setattr("avpipe.train.networks.resnet._trunk", trunk)
    patch.setattr("avpipe.train.methods.sspl.vgg16_trunk", vgg_trunk)
    patch.setattr("avpipe.train.methods.sspl.VGGish", Vggish)


@pytest.fixture(autouse=True, scope="module")
def thin_networks() -> Iterator[None]:
    """Of the modules that import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch_networks(patch)
        yield


if __name__ == "__main__":  # the command `avpipe`, with thin networks
    from avpipe.train.cli.main import main

    patch_networks(pytest.MonkeyPatch())
    sys.exit(main())
