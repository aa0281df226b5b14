"""One file per paper: network and loss. Every method has `loss`, `localize` and `embed` and a config class."""

from dataclasses import dataclass

from torch import nn

from train.methods.lvs import LVS, LVSConfig


@dataclass(frozen=True, slots=True)
class Method:
    """A method: its network and the dataclass of its settings."""

    network: type[nn.Module]
    config: type


METHODS = {"lvs": Method(network=LVS, config=LVSConfig)}
