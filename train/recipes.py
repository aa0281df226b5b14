"""Named recipes: a whole training set-up as one frozen value, the source of each number beside it."""

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from pipeline.errors import AvpipeError
from train.methods import METHODS


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to train one method."""

    method: str
    """A key of train.methods.METHODS."""
    options: Any
    """The method's own settings, an instance of its config class."""
    feature: str = "logspec"
    """Feature spec that the shards must hold."""
    image_px: int = 224
    """Side of the square that the network sees, pixels."""
    batch_size: int
    """Clips a step, over all ranks."""
    epochs: int
    learning_rate: float
    """Of Adam."""
    weight_decay: float = 0.0
    """Of Adam."""
    seed: int = 0
    """Of the fresh weights, the shuffle and the augmentation."""
    precision: str = "32-true"
    """Lightning Fabric's name: 32-true, bf16-mixed or 16-mixed."""
    checkpoint_steps: int = 500
    """Steps between checkpoints; one is also written after every epoch."""

    def __post_init__(self):
        for name in ("image_px", "batch_size", "epochs", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise AvpipeError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise AvpipeError(f"learning_rate must be above 0, not {self.learning_rate}")
        if self.precision not in ("32-true", "bf16-mixed", "16-mixed"):
            raise AvpipeError(f"precision {self.precision!r} is unknown; there are: 32-true, bf16-mixed, 16-mixed")

    def record(self) -> dict:
        """All settings as nested plain values, for checkpoints and people."""
        return asdict(self)


def lvs() -> Recipe:
    """LVS as its paper trains it (section 5.3): Adam 1e-4, batch 256. It names no number of epochs; 20 is ours."""
    return Recipe(method="lvs", options=METHODS["lvs"].config(), batch_size=256, epochs=20, learning_rate=1e-4)


def lvs_small() -> Recipe:
    """LVS from scratch on a few hundred made-up clips within minutes on a CPU; all numbers are ours.

    112 pixels give 7×7 maps; the spectrogram is averaged 4×4, else the audio trunk takes most of the time.
    """
    options = METHODS["lvs"].config(init="random", spec_pool=4)
    return Recipe(
        method="lvs", options=options, image_px=112, batch_size=16, epochs=4, learning_rate=3e-4, checkpoint_steps=50
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"lvs": lvs, "lvs-small": lvs_small}


def get_recipe(name: str, changes: list[str]) -> Recipe:
    """A recipe by name with `key=value` changes to its own fields or to those of its method.

    Raises AvpipeError for an unknown name or key (naming the nearest) and for a value of the wrong type.
    """
    if name not in RECIPES:
        raise AvpipeError(f"there is no recipe {name!r}; {_nearest(name, RECIPES)}")
    recipe = RECIPES[name]()
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise AvpipeError(f"--set {change}: write key=value")
        recipe = _changed(recipe, key, text)
    return recipe


def _changed(recipe: Recipe, key: str, text: str) -> Recipe:
    own = {f.name for f in fields(recipe)} - {"method", "options"}
    of_method = {f.name for f in fields(recipe.options)}
    if key in own:
        return replace(recipe, **{key: _parse(key, text, getattr(recipe, key))})
    if key in of_method:
        value = _parse(key, text, getattr(recipe.options, key))
        return replace(recipe, options=replace(recipe.options, **{key: value}))
    raise AvpipeError(f"--set {key}: {recipe.method} has no such setting; {_nearest(key, own | of_method)}")


def _parse(key: str, text: str, current: Any) -> Any:
    kind = type(current)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise AvpipeError(f"--set {key}={text}: a value like {current!r} is expected") from None


def _nearest(name: str, names) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(names))}"
