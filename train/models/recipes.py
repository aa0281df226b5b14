"""Named recipes: a complete training set-up as one frozen value, with the source of its hyper-parameters."""

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.data.augment.views import TRAINING_VIEWS
from avpipe.train.methods import METHODS

# Allowed values of settings; 64-true is for comparisons with reference implementations.
CHOICES = {
    "optimizer": ("adam", "adamw"),
    "view": tuple(TRAINING_VIEWS),
    "precision": ("32-true", "bf16-mixed", "16-mixed", "64-true"),
    "negatives": ("all", "rank"),
    "mixing": ("none", "released", "paper"),
}
# A float frame of this side takes 50 MB; a checkpoint, which is untrusted, could ask for any size.
LARGEST_PX = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All settings of a training."""

    method: str
    """A key of avpipe.train.methods.METHODS."""
    options: Any
    """The method's own settings, an instance of its config class."""
    feature: str = "logspec"
    """Feature spec that the shards must hold."""
    image_px: int = 224
    """Side of the square input frame, in pixels."""
    view: str = "crop"
    """Augmentation of frames: `crop` (all but SSL-TIE), `appearance` (SSL-TIE), or another of TRAINING_VIEWS."""
    masking: bool = False
    """Whether ranges of windows and bands of the spectrogram are masked (SSL-TIE)."""
    batch_size: int
    """Clips per step, over all ranks."""
    epochs: int
    optimizer: str = "adam"
    """`adam`, or `adamw` with decoupled weight decay."""
    learning_rate: float
    weight_decay: float = 0.0
    seed: int = 0
    """Seed of the initial weights, the shuffle and the augmentation."""
    precision: str = "32-true"
    """Precision in Lightning Fabric's terms: 32-true, bf16-mixed, 16-mixed or 64-true."""
    accumulate: int = 1
    """Number of equal microbatches per step, for small devices; negatives come from the same microbatch."""
    negatives: str = "all"
    """With several processes: whether negatives come from `all` ranks or only from the same `rank`."""
    clip_norm: float = 0.0
    """Maximum norm of the gradient over all parameters; 0 disables clipping."""
    compile: bool = False
    """Whether to use torch.compile; needs a C++ compiler on CPUs."""
    mixing: str = "none"
    """Curriculum of SSL-TIE's audio mixing: none, `released` or `paper`, see avpipe.train.data.mixing.schedule."""
    validation: float = 0.0
    """Share of the videos held out to select the best epoch by the loss on them; 0 for none."""
    patience: int = 0
    """Epochs without improvement after which training stops; 0 disables early stopping."""
    checkpoint_steps: int = 500
    """Steps between checkpoints; one is also written after every epoch."""
    keep_epochs: int = 0
    """Interval in epochs of checkpoints to keep; 0 keeps only the last and the best."""

    def __post_init__(self):
        for name in ("image_px", "batch_size", "epochs", "checkpoint_steps", "accumulate"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        self._require(self.image_px <= LARGEST_PX, "image_px", f"at most {LARGEST_PX}")
        for name in ("patience", "keep_epochs", "clip_norm"):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        self._require(self.learning_rate > 0, "learning_rate", "above 0")
        self._require(0 <= self.validation < 1, "validation", "from 0 to below 1")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise AvpipeError(f"{name} {getattr(self, name)!r} is unknown; there are: {', '.join(choices)}")

    def _require(self, valid: bool, name: str, what: str) -> None:
        if not valid:
            raise AvpipeError(f"{name} must be {what}, not {getattr(self, name)}")

    def record(self) -> dict:
        """Return all settings as nested plain values, for checkpoints and logs."""
        return asdict(self)


def lvs() -> Recipe:
    """LVS as its paper trains it (section 5.3): Adam 1e-4, batch 256. It states no epochs; 20 is our choice."""
    return Recipe(method="lvs", options=METHODS["lvs"].config(), batch_size=256, epochs=20, learning_rate=1e-4)


def lvs_small() -> Recipe:
    """LVS from scratch on a few hundred synthetic clips, within minutes on a CPU; all settings are our choice.

    112 pixels give 7 × 7 maps; the spectrogram is average-pooled 4 × 4, as the audio trunk would take most of the time.
    """
    options = METHODS["lvs"].config(init="random", spec_pool=4)
    return Recipe(
        method="lvs", options=options, image_px=112, batch_size=16, epochs=4, learning_rate=3e-4, checkpoint_steps=50
    )


def ez_vsl() -> Recipe:
    """EZ-VSL as in its released `train.py`: Adam 1e-4, batch 128, 20 epochs (100 in its scripts for the 10k lists)."""
    options = METHODS["ez-vsl"].config()
    return Recipe(method="ez-vsl", options=options, batch_size=128, epochs=20, learning_rate=1e-4)


def margin_nce() -> Recipe:
    """MarginNCE (paper, section 4.2): Adam with weight decay, 20 epochs.

    The paper does not state decay (1e-4 is our choice), learning rate and batch (here as in EZ-VSL, whose network it
    uses).
    """
    options = METHODS["marginnce"].config()
    return Recipe(method="marginnce", options=options, batch_size=128, epochs=20, learning_rate=1e-4, weight_decay=1e-4)


def ssl_tie() -> Recipe:
    """SSL-TIE as in its released options and scripts: Adam 1e-4 with decay 1e-4, batch 32, 100 epochs (paper: 80).

    Sounds are mixed by the curriculum of the released script for the final model.
    """
    return Recipe(
        method="ssl-tie",
        options=METHODS["ssl-tie"].config(),
        feature="tie-mel",
        view="appearance",
        masking=True,
        mixing="released",
        batch_size=32,
        epochs=100,
        learning_rate=1e-4,
        weight_decay=1e-4,
    )


def sspl() -> Recipe:
    """SSPL with PCM as in its released `arguments_train.py`: AdamW, decay 1e-4, batch 256, 20 epochs.

    The paper does not specify its early stopping (section 4.2); validation share and patience are our choice.
    """
    return Recipe(
        method="sspl",
        options=METHODS["sspl"].config(),
        feature="vggish",
        optimizer="adamw",
        batch_size=256,
        epochs=20,
        learning_rate=5e-5,
        weight_decay=1e-4,
        validation=0.05,
        patience=5,
    )


def sspl_without_pcm() -> Recipe:
    """SSPL without PCM on VGG-Sound (supplement): learning rate 1e-2 (head) and 5e-3 (rest), 100 epochs."""
    options = METHODS["sspl"].config(pcm=False, rest_rate=0.5)
    return replace(sspl(), options=options, learning_rate=1e-2, epochs=100)


def vgg_h() -> Recipe:
    """VGG-H, the supervised baseline of retrieval; all settings are our choice."""
    return Recipe(method="vgg-h", options=METHODS["vgg-h"].config(), batch_size=128, epochs=20, learning_rate=1e-4)


def _small(recipe: Recipe, **options) -> Recipe:
    """Adapt a recipe to a few hundred synthetic clips, within minutes on a CPU; all settings are our choice."""
    return replace(
        recipe,
        options=replace(recipe.options, init="random", **options),
        image_px=112,
        batch_size=16,
        epochs=4,
        learning_rate=3e-4,
        weight_decay=0.0,
        checkpoint_steps=50,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "lvs": lvs,
    "lvs-small": lvs_small,
    "ez-vsl": ez_vsl,
    "ez-vsl-small": lambda: _small(ez_vsl(), stride14=True),
    "marginnce": margin_nce,
    "marginnce-small": lambda: _small(margin_nce(), stride14=True),
    "ssl-tie": ssl_tie,
    "ssl-tie-small": lambda: _small(ssl_tie(), spec_pool=4),
    "sspl": sspl,
    "sspl-small": lambda: replace(_small(sspl_without_pcm()), validation=0.0, patience=0),
    "sspl-without-pcm": sspl_without_pcm,
    "vgg-h": vgg_h,
}


def choose_recipe(name: str | None, method: str | None, changes: list[str]) -> tuple[str, Recipe]:
    """Return (name, recipe): the named recipe, else the published one of the method, else that of LVS.

    Raises AvpipeError as `get_recipe` does, and if the named recipe trains another method.
    """
    name = name or method or "lvs"
    recipe = get_recipe(name, changes)
    if method not in (None, recipe.method):
        raise AvpipeError(f"recipe {name!r} trains {recipe.method}, not {method}; give only one of the two")
    return name, recipe


def get_recipe(name: str, changes: list[str]) -> Recipe:
    """Return the named recipe with `key=value` changes to its fields or to those of its method.

    Raises AvpipeError for an unknown name or key (suggesting the closest) and for a value of the wrong type.
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


def summary(recipe: Recipe) -> str:
    """Return the recipe as one line of `key=value` settings."""
    record = recipe.record()
    settings = record.pop("options")
    return " ".join(f"{key}={value}" for key, value in (record | settings).items())
