"""Checkpoints that the four papers' repositories saved: read safely, renamed, and loaded into our networks."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.core.safe_load import read_saved
from avpipe.train.core.text import one_line
from avpipe.train.methods import METHODS, ez_vsl, lvs, sspl

IMAGE_PX = 224
WRAPPINGS = ("model_state_dict", "state_dict", "model")
"""Keys under which LVS, SSL-TIE, EZ-VSL and Lightning keep their tensors, beside optimiser and scores."""
WRAPPERS = ("module", "_orig_mod")
"""What DataParallel and torch.compile put before the names of a network's tensors."""
SSPL_NETWORKS = {
    "frame": "net_frame",
    "sound": "net_sound",
    "pcm": "net_pc",
    "pc": "net_pc",
    "ssl_head": "net_ssl_head",
}
SSPL_FILE = re.compile(r"(?:net_)?(frame|sound|pcm|pc|ssl_head)(?:_\w+)?\.(?:pth|pt)(?:\.tar)?", re.ASCII)
SUFFIXES = re.compile(r"(\.(pth|pt|tar|ckpt|pkl))+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How one repository names and saves what it trained."""

    method: str
    """A key of avpipe.train.methods.METHODS."""
    features: tuple[str, ...]
    """Feature specs that the network reads, the published one first."""
    names: Callable[[Iterable[str]], dict[str, str]]
    """Our state names to the published ones."""
    never_read: tuple[str, ...] = ()
    """Beginnings of published names that no forward pass reads, or whose output is dropped."""


_RESNETS = (
    *("imgnet.conv1_a.", "imgnet.conv1_flow.", "imgnet.fc."),
    *("audnet.conv1.", "audnet.conv1_flow.", "audnet.fc."),
)
_TIE_ONLY = ("vision_fc1.", "conv3.", "norm3.")
MARKERS = {
    "net_": "sspl",
    "img_proj.": "ez-vsl",
    **dict.fromkeys(_TIE_ONLY, "ssl-tie"),
    "audnet.conv1_a.": "lvs",
}
"""Beginnings of names of tensors that tell the format, the first that is there."""
FORMATS = {
    # The audio trunk is convolutional with a maximum over time, so 3 s of sound go through it as well as its own 10 s.
    "lvs": Format(method="lvs", features=("logspec-10s", "logspec"), names=lvs.published_names, never_read=_RESNETS),
    "ez-vsl": Format(method="ez-vsl", features=("logspec",), names=ez_vsl.published_names),
    # LVS's network; what else is in the files is never read, or its output is dropped.
    "ssl-tie": Format(
        method="ssl-tie", features=("tie-mel",), names=lvs.published_names, never_read=_RESNETS + _TIE_ONLY
    ),
    "sspl": Format(method="sspl", features=("vggish",), names=sspl.published_names, never_read=("net_sound.pproc.",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A network with published weights, and how well the file fitted it."""

    format: str
    file: str
    network: nn.Module
    feature: str
    """The feature spec that it is to read."""
    matched: int
    """Tensors of ours that the file filled."""
    unused: list[str]
    """Names in the file that we do not know."""
    never_read: list[str]
    """Names in the file that the published code does not read either."""
    missing: list[str]
    """Published names that the file lacks and no score needs: batch norm's counters, absent before torch 0.4.1."""

    def record(self) -> dict[str, Any]:
        """The match as plain values: format, file, feature, matched, unused, never_read, missing."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "network"}

    def text(self) -> str:
        """The match in one or two lines for a person."""
        known = f"{len(self.never_read)} known, never read"
        counters = f", {len(self.missing)} batch norm counters missing (harmless)" if self.missing else ""
        lines = [
            f"{self.file} ({self.format}): {self.matched} tensors matched{counters}; {_examples(self.unused)} unused"
            f"; {known}; it reads {self.feature}"
        ]
        if self.format == "ssl-tie" and not any(name.startswith(_TIE_ONLY) for name in self.never_read):
            lines.append(f"it has none of SSL-TIE's own {', '.join(_TIE_ONLY)}; an LVS checkpoint needs --format lvs")
        return "\n".join(lines)


def load_published_checkpoint(path: Path, format_name: str, available: Collection[str] = ()) -> Loaded:
    """Load a checkpoint of LVS (`lvs`), EZ-VSL, SSL-TIE or SSPL: the file, or for SSPL the folder of its files.

    `held` are the feature specs at hand: of several that the network can read, the first of them is chosen. SSPL is
    taken with its PCM if the checkpoint has one. Raises AvpipeError for an unknown format, for a file that is damaged,
    could run code or belongs to another format, and where tensors are missing or have another shape.
    Source: the saving and loading code of the four repositories (`test.py`, `train.py`, `main.py`).
    """
    if format_name not in FORMATS:
        raise AvpipeError(f"there is no format {format_name!r}; there are: {', '.join(FORMATS)}")
    layout = FORMATS[format_name]
    state = _read_sspl(path) if format_name == "sspl" else flat_state(read_saved(path), path)
    found = format_of(state)
    if found not in (None, format_name) and (found, format_name) != ("lvs", "ssl-tie"):
        raise AvpipeError(f"{path} is a checkpoint of {found}, not of {format_name}; use --format {found}")
    options: dict[str, Any] = {"init": "random"}  # the weights follow at once
    if format_name == "sspl":
        options["pcm"] = any(name.startswith("net_pc.") for name in state)
    method = METHODS[layout.method]
    network = method.network(method.config(**options))
    names = layout.names(network.state_dict())
    missing = _fill(network, names, state, f"{path} does not fit {format_name}")
    unmatched = sorted(set(state) - set(names.values()))
    return Loaded(
        format=format_name,
        file=str(path),
        network=network,
        feature=next((feature for feature in layout.features if feature in available), layout.features[0]),
        matched=len(names) - len(missing),
        unused=[name for name in unmatched if not name.startswith(layout.never_read)],
        never_read=[name for name in unmatched if name.startswith(layout.never_read)],
        missing=missing,
    )


def format_of(names: Collection[str]) -> str | None:
    """The format that names of tensors belong to; None where they tell nothing. SSL-TIE's contain all of LVS's."""
    return next((MARKERS[marker] for marker in MARKERS if any(name.startswith(marker) for name in names)), None)


def folder_name(path: Path, format_name: str) -> str:
    """Name of the results' folder: `published-<format>-<folder>-<stem>`, of letters, digits, `_`, `-` and `.` alone.

    Both come from an untrusted file name and must not lead out of the folder of runs; the folder's name is there as
    the repositories call all their files `best.pth`.
    """
    absolute = Path(os.path.abspath(path))
    names = absolute.parent.name, SUFFIXES.sub("", absolute.name) or "checkpoint"
    safe = [re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:64] for name in names]
    return "-".join(["published", format_name, *filter(None, safe)])


def flat_state(content: dict, path: Path) -> dict[str, Tensor]:
    """Tensors by their published names: out of their wrapping, without the prefixes of WRAPPERS, the rest left out.

    A dictionary for each network (SSPL) becomes names with the network before them. Raises AvpipeError where there is
    no tensor; `path` is for its sentence.
    """
    wrapped = next((content[key] for key in WRAPPINGS if isinstance(content.get(key), dict)), content)
    flat: dict[Any, Any] = {}
    for key, value in wrapped.items():
        network = SSPL_NETWORKS.get(str(key).removeprefix("net_"))
        flat |= (
            {f"{network}.{name}": v for name, v in value.items()}
            if network and isinstance(value, dict)
            else {key: value}
        )
    state = {
        plain_name(name): value for name, value in flat.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not state:
        keys = ", ".join(one_line(key, 60) for key in list(content)[:5]) or "nothing"
        raise AvpipeError(f"{path} holds no tensors by name (but {keys}); give a checkpoint of the published code")
    return _without_attribute(state)


def plain_name(name: str) -> str:
    """The name of a tensor without the steps that wrappers of networks put into it, see WRAPPERS."""
    return ".".join(step for step in name.split(".") if step not in WRAPPERS)


def _without_attribute(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names without that of the attribute under which a LightningModule holds the network, where there is one."""
    if format_of(state) is not None:
        return state
    for marker in MARKERS:
        prefix = next((name[: name.index(f".{marker}") + 1] for name in state if f".{marker}" in name), None)
        if prefix is not None:
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_sspl(path: Path) -> dict[str, Tensor]:
    """SSPL's tensors under the prefixes of its networks, from the folder of its files or from one file with all."""
    if not path.is_dir():
        state = flat_state(read_saved(path), path)
        if format_of(state) is None:
            raise AvpipeError(
                f"{path} has no names that begin with net_frame, net_sound or net_ssl_head; SSPL saves a file for each "
                "network: give the folder of frame_best.pth, sound_best.pth, ssl_head_best.pth and maybe pcm_best.pth"
            )
        return state
    files: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if match := SSPL_FILE.fullmatch(file.name):
            files.setdefault(SSPL_NETWORKS[match[1]], []).append(file)
    state = {}
    for network, choice in files.items():
        choice = [file for file in choice if "_best" in file.name] or choice
        if len(choice) > 1:
            raise AvpipeError(
                f"{path} has several files for {network}: {', '.join(file.name for file in choice)}; leave one of them"
            )
        own = flat_state(read_saved(choice[0]), choice[0])
        state |= {f"{network}.{name.removeprefix(network + '.')}": value for name, value in own.items()}
    if not state:
        raise AvpipeError(f"{path} has no frame_best.pth, sound_best.pth or ssl_head_best.pth; give SSPL's checkpoints")
    return state


def _fill(network: nn.Module, names: dict[str, str], state: dict[str, Tensor], misfit: str) -> list[str]:
    """Load `state` into `network` and return the published names that are missing without harm."""
    own_state = network.state_dict()
    wrong, missing = [], []
    for own, value in own_state.items():
        theirs = state.get(names[own])
        if theirs is None and own.endswith(".num_batches_tracked"):
            missing.append(names[own])
        elif theirs is None:
            wrong.append(f"{names[own]} is missing")
        elif theirs.shape != value.shape:
            wrong.append(f"{names[own]} has shape {tuple(theirs.shape)}, not {tuple(value.shape)}")
        else:
            own_state[own] = theirs
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise AvpipeError(
            f"{misfit}: of {len(names)} tensors {len(wrong)} are missing or of another shape ({', '.join(wrong[:3])}"
            f"{more}); check --format and the file"
        )
    try:
        network.load_state_dict(own_state)
    except RuntimeError as error:
        raise AvpipeError(f"{misfit}: {str(error).strip().splitlines()[-1].strip()}") from None
    return missing


def _examples(names: list[str]) -> str:
    """A count, with the first three of its names."""
    if not names:
        return "0"
    return f"{len(names)} ({', '.join(one_line(name, 60) for name in names[:3])}{', …' if len(names) > 3 else ''})"
