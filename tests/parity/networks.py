"""What the checks of all networks share: the published weights, the published batch, gradients, batch-norm buffers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from parity.compare import DOUBLE, Comparison
from parity_recipes import assert_check, field, from_json, weights
from torch import Tensor, nn


def filled(model: nn.Module, published_names: Callable, compare: Comparison) -> nn.Module:
    """The network with the published weights, in the precision of the comparison."""
    published = weights(from_json(compare.golden["state_spec"]))
    model.load_state_dict({own: published[name] for own, name in published_names(model.state_dict()).items()})
    return model.to(compare.dtype)


def batch(tag: str, compare: Comparison) -> tuple[Tensor, Tensor]:
    """Frames and spectrograms of a two-stream network, of the sizes that the file states."""
    golden = compare.golden
    seed, count, frames = (int(golden[key]) for key in ("seed", "B", "T"))
    image = field(seed, f"{tag}/image", (count, 3, 224, 224))
    spec = field(seed, f"{tag}/spec", (count, 1, 257, frames))
    assert_check(image, golden["image_check"])
    assert_check(spec, golden["spec_check"])
    return torch.from_numpy(image).to(compare.dtype), torch.from_numpy(spec).to(compare.dtype)


@contextmanager
def watched(module: nn.Module | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Input and output of each call of a layer within the block."""
    calls: list[tuple[Tensor, Tensor]] = []
    hook = module.register_forward_hook(lambda _, given, made: calls.append((given[0], made))) if module else None
    yield calls
    if hook:
        hook.remove()


def gradients(compare: Comparison, model: nn.Module, published_names: Callable, stem: str = "train", share=5e-3):
    """Norm and first entries of the gradient of every parameter that has one, and that no other has one.

    In single precision `share` is tolerated of each norm; for single entries, which scatter more, twice this share of
    the norm.
    """
    golden, key = compare.golden, f"{stem}_grad"
    named = published_names(dict(model.named_parameters()))
    ours = {name: model.get_parameter(own).grad for own, name in named.items()}
    ours = {name: gradient.double() for name, gradient in ours.items() if gradient is not None}
    names = from_json(golden[f"{key}_names"])
    compare.exempt(f"{key}_names")
    compare.against(f"{stem} parameters with a gradient", len(set(ours) ^ set(names)), 0)
    norms = np.array([ours[name].norm().item() if name in ours else np.nan for name in names])
    # Each norm by itself, because they span orders of magnitude.
    compare(f"{key}_norms", norms, each=share, double={"each": DOUBLE, "largest": DOUBLE / 10})
    if compare.single and f"{key}_head" in golden:
        heads = golden[f"{key}_head"]
        entries = np.zeros(heads.shape)
        for row, name in enumerate(names):
            if name not in ours:
                continue
            first = ours[name].flatten()[: heads.shape[1]]
            entries[row, : len(first)] = first.numpy()
        # In units of the norm of its tensor, so that no tensor hides behind a larger one.
        scale = golden[f"{key}_norms"][:, None]
        compare.exempt(f"{key}_head")
        compare.against(f"{key}_head / norm", entries / scale, heads / scale, absolute=2 * share)


def running_statistics(compare: Comparison, model: nn.Module, published_names: Callable, prefix: str = "rs_") -> None:
    """The batch-norm buffers that the file holds after the training forward; the port must have each of them."""
    if not compare.single:
        return
    named = published_names(dict(model.named_buffers()))
    ours = {name: model.get_buffer(own) for own, name in named.items()}
    for key in (key for key in compare.golden if key.startswith(prefix) and key not in compare.read):
        compare(key, ours[key.removeprefix(prefix)], each=1e-5, largest=1e-5)


def relative(compare: Comparison, single: float) -> float:
    """A tolerance for numbers that the file holds in double precision only."""
    return single if compare.single else DOUBLE
