"""One file per paper: network, loss and config. All methods have `loss`, `localize`, `embed` and `embed_audio`."""

from dataclasses import dataclass

from torch import nn

from avpipe.train.methods.ez_vsl import EZVSL, EZVSLConfig
from avpipe.train.methods.lvs import LVS, LVSConfig
from avpipe.train.methods.margin_nce import MarginNCE, MarginNCEConfig
from avpipe.train.methods.ssl_tie import SSLTIE, SSLTIEConfig
from avpipe.train.methods.sspl import SSPL, SSPLConfig
from avpipe.train.methods.vgg_h import VGGH, VGGHConfig


@dataclass(frozen=True, slots=True)
class Method:
    """A method: its network and its config class."""

    network: type[nn.Module]
    config: type
    views: int = 1
    """Number of views of each frame that the loss takes."""
    labelled: bool = False
    """Whether the loss also takes the clips' classes."""


METHODS = {
    "lvs": Method(network=LVS, config=LVSConfig),
    "ez-vsl": Method(network=EZVSL, config=EZVSLConfig),
    "marginnce": Method(network=MarginNCE, config=MarginNCEConfig),
    "ssl-tie": Method(network=SSLTIE, config=SSLTIEConfig),
    "sspl": Method(network=SSPL, config=SSPLConfig, views=2),
    "vgg-h": Method(network=VGGH, config=VGGHConfig, labelled=True),
}
