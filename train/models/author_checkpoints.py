"""Load checkpoints saved by the repositories of four papers safely into our networks, mapping tensor names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.text import one_line
from avpipe.train.core.safe_load import read_saved
from avpipe.train.methods import METHODS, ez_vsl, lvs, sspl

IMAGE_PX = 224
WRAPPINGS = ("model_state_dict", "state_dict", "model")
"""Keys of the tensors in checkpoints of LVS, SSL-TIE, EZ-VSL and Lightning, which also hold other state."""
WRAPPERS = ("module", "_orig_mod")
"""Prefixes that DataParallel and torch.compile add to the names of a network's tensors."""
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
    """The checkpoint format of one repository."""

    method: str
    """A key of avpipe.train.methods.METHODS."""
    features: tuple[str, ...]
    """Feature specs that the network accepts, the published one first."""
    names: Callable[[Iterable[str]], dict[str, str]]
    """Map our state keys to the published ones."""
    never_read: tuple[str, ...] = ()
    """Prefixes of published names that no forward pass reads, or whose output is dropped."""


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
"""Prefix of a tensor name to the format that it identifies; the first match wins."""
FORMATS = {
    # The audio trunk is convolutional with a maximum over time, so it accepts 3 s of sound, not only 10 s.
    "lvs": Format(method="lvs", features=("logspec-10s", "logspec"), names=lvs.published_names, never_read=_RESNETS),
    "ez-vsl": Format(method="ez-vsl", features=("logspec",), names=ez_vsl.published_names),
    # LVS's network; other tensors in the files are never read, or their output is dropped.
    "ssl-tie": Format(
        method="ssl-tie", features=("tie-mel",), names=lvs.published_names, never_read=_RESNETS + _TIE_ONLY
    ),
    "sspl": Format(method="sspl", features=("vggish",), names=sspl.published_names, never_read=("net_sound.pproc.",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A network with published weights, and how well the file matched it."""

    format: str
    file: str
    network: nn.Module
    feature: str
    """The feature spec of its input."""
    matched: int
    """Number of our tensors that the file filled."""
    unused: list[str]
    """Names in the file that we do not know."""
    never_read: list[str]
    """Names in the file that the published code does not read either."""
    missing: list[str]
    """Published names that the file lacks without harm: batch norm's counters, absent before torch 0.4.1."""

    def record(self) -> dict[str, Any]:
        """Return the match as plain values: format, file, feature, matched, unused, never_read, missing."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "network"}

    def text(self) -> str:
        """Return the match as one or two lines of text."""
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
    """Load a checkpoint of LVS (`lvs`), EZ-VSL, SSL-TIE or SSPL: a file, or for SSPL the folder of its files.

    If the network accepts several feature specs, the first of them in `available` is chosen. SSPL is built with its PCM
    if the checkpoint has one. Raises AvpipeError for an unknown format, for a file that is damaged, could run code or
    has another format, and if tensors are missing or have another shape.
    Source: the saving and loading code of the four repositories (`test.py`, `train.py`, `main.py`).
    """
    if format_name not in FORMATS:
        raise AvpipeError(f"there is no format {format_name!r}; there are: {', '.join(FORMATS)}")
    layout = FORMATS[format_name]
    state = _read_sspl(path) if format_name == "sspl" else flat_state(read_saved(path), path)
    found = format_of(state)
    if found not in (None, format_name) and (found, format_name) != ("lvs", "ssl-tie"):
        raise AvpipeError(f"{path} is a checkpoint of {found}, not of {format_name}; use --format {found}")
    options: dict[str, Any] = {"init": "random"}  # the weights are loaded below
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
    """Return the format identified by tensor names, or None. SSL-TIE's names include all of LVS's."""
    return next((MARKERS[marker] for marker in MARKERS if any(name.startswith(marker) for name in names)), None)


def folder_name(path: Path, format_name: str) -> str:
    """Return the name of the results folder, `published-<format>-<folder>-<stem>`, of letters, digits, `_`, `-`, `.`.

    Folder and stem come from an untrusted path and must not lead out of the folder of runs; the folder is part of the
    name because the repositories call all their files `best.pth`.
    """
    absolute = Path(os.path.abspath(path))
    names = absolute.parent.name, SUFFIXES.sub("", absolute.name) or "checkpoint"
    safe = [re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[:64] for name in names]
    return "-".join(["published", format_name, *filter(None, safe)])


def flat_state(content: dict, path: Path) -> dict[str, Tensor]:
    """Return {published name: tensor} of a checkpoint, unwrapped, without prefixes of WRAPPERS and other values.

    One dictionary per network (SSPL) becomes names prefixed by the network. Raises AvpipeError, naming `path`, if there
    are no tensors.
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
    """Return the name of a tensor without the components added by WRAPPERS."""
    return ".".join(step for step in name.split(".") if step not in WRAPPERS)


def _without_attribute(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the attribute name that a LightningModule adds as a prefix, if there is one."""
    if format_of(state) is not None:
        return state
    for marker in MARKERS:
        prefix = next((name[: name.index(f".{marker}") + 1] for name in state if f".{marker}" in name), None)
        if prefix is not None:
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_sspl(path: Path) -> dict[str, Tensor]:
    """Return SSPL's tensors, prefixed by their networks, from the folder of its files or from a single file."""
    if not path.is_dir():
        state = flat_state(read_saved(path), path)
        if format_of(state) is None:
            raise AvpipeError(
                f"{path} has no names that begin with net_frame, net_sound or net_ssl_head; SSPL saves one file per "
                "network: give the folder of frame_best.pth, sound_best.pth, ssl_head_best.pth and any pcm_best.pth"
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
                f"{path} has several files for {network}: {', '.join(file.name for file in choice)}; keep one of them"
            )
        own = flat_state(read_saved(choice[0]), choice[0])
        state |= {f"{network}.{name.removeprefix(network + '.')}": value for name, value in own.items()}
    if not state:
        raise AvpipeError(f"{path} has no frame_best.pth, sound_best.pth or ssl_head_best.pth; give SSPL's checkpoints")
    return state


def _fill(network: nn.Module, names: dict[str, str], state: dict[str, Tensor], misfit: str) -> list[str]:
    """Load `state` into `network` and return the published names whose absence is harmless."""
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
            f"{misfit}: of {len(names)} tensors {len(wrong)} are missing or have another shape ({', '.join(wrong[:3])}"
            f"{more}); check --format and the file"
        )
    try:
        network.load_state_dict(own_state)
    except RuntimeError as error:
        raise AvpipeError(f"{misfit}: {str(error).strip().splitlines()[-1].strip()}") from None
    return missing


def _examples(names: list[str]) -> str:
    """Return the number of names, with the first three as examples."""
    if not names:
        return "0"
    return f"{len(names)} ({', '.join(one_line(name, 60) for name in names[:3])}{', …' if len(names) > 3 else ''})"
