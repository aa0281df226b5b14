"""What a synthetic clip shows and sounds like: eight kinds of object, each with its own look and timbre, and the scene.

A scene is one large object that sounds and two or three small silent ones of other kinds, all drifting over a changing
background. Everything random about it is drawn by `compose`; drawing a frame or rendering the sound adds nothing new,
so any frame can be drawn alone and the box comes from the very numbers that place the sprite.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import numpy as np
from PIL import Image

from avpipe.pipeline.synth import timbres
from avpipe.pipeline.synth.timbres import SAMPLE_RATE, Timbre

WIDTH, HEIGHT, SECONDS = 320, 240, 10
MASTER = 256  # side of the sprite that all sizes are scaled from: about that of the largest on show
ROAM = 40  # pixels that the background drifts to each side
CENTRE_S = SECONDS / 2

AREA = (0.235, 0.45)  # of the sounding box, share of the frame; 0.25 is the least that half a map can reach cIoU 0.5 on
SILENT_AREA = (0.04, 0.085)
# The exponent pushes the sounding object off the middle (1 would be uniform over all places that fit). At 0.75 a
# centred disc of half the frame scores about 0.40 cIoU@0.5: there is more to learn than "look at the middle".
OFF_CENTRE = 0.75
# Frames per second: few, because drawing and encoding them is what a clip costs; uneven, as in real videos.
RATES = (Fraction(5), Fraction(21, 4), Fraction(5000, 1001))

Mask = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y in [-1, 1], y down → bool (shape) or [0, 1] (texture)
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom outside


def _bell(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    body = (np.abs(x) < 0.62 + 0.3 * ((y + 1) / 2) ** 3) & (y < 0.6) & ((y > -0.5) | (x**2 + (y + 0.4) ** 2 < 0.37))
    rim = (np.abs(x) < 1) & (np.abs(y - 0.58) < 0.16)
    return body | rim | (x**2 + (y - 0.76) ** 2 < 0.05)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    to_tip = np.abs((np.arctan2(x, -y) / (2 * np.pi) * 5 + 0.5) % 1 - 0.5) * 2  # 0 at a tip, 1 half way to the next
    return np.hypot(x, y) < 1 - 0.45 * to_tip


def _gear(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius = np.hypot(x, y)
    return (radius < np.where(np.cos(10 * np.arctan2(y, x)) > 0, 1, 0.8)) & (radius > 0.25)


def _checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.floor(x * 2.5) + np.floor(y * 2.5)) % 2


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One class of object: its label, its look, and its timbre."""

    label: str
    timbre: Timbre
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    shape: Mask
    texture: Mask


KINDS = (
    Kind(
        label="bell ringing, small",  # the comma is meant: VGG-Sound has such labels, and they break naive CSV readers
        timbre=timbres.ringing,
        colours=((250, 200, 40), (150, 90, 10)),
        shape=_bell,
        texture=lambda x, y: (x + 1) / 2 * (np.abs(y - 0.58) > 0.05),
    ),
    Kind(
        label="star chirping",
        timbre=timbres.chirping,
        colours=((235, 30, 220), (255, 190, 255)),
        shape=_star,
        texture=lambda x, y: np.hypot(x, y) < 0.3,
    ),
    Kind(
        label="ring humming",
        timbre=timbres.humming,
        colours=((30, 70, 245), (120, 170, 255)),
        shape=lambda x, y: np.abs(np.hypot(x, y) - 0.71) < 0.29,
        texture=lambda x, y: (np.arctan2(y, x) / np.pi * 6) % 2 < 1,
    ),
    Kind(
        label="striped square buzzing",
        timbre=timbres.buzzing,
        colours=((225, 20, 20), (250, 250, 250)),
        shape=lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.98,
        texture=lambda x, y: (x * 3) % 1 < 0.45,
    ),
    Kind(
        label="cross ticking",
        timbre=timbres.ticking,
        colours=((20, 190, 50), (10, 90, 30)),
        shape=lambda x, y: np.minimum(np.abs(x), np.abs(y)) < 0.42,
        texture=lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.42,
    ),
    Kind(
        label="dotted disc hissing",
        timbre=timbres.hissing,
        colours=((245, 245, 245), (15, 15, 15)),
        shape=lambda x, y: np.hypot(x, y) < 1,
        texture=lambda x, y: np.hypot((x * 2.2) % 1 - 0.5, (y * 2.2) % 1 - 0.5) < 0.3,
    ),
    Kind(
        label="checked diamond whistling",
        timbre=timbres.whistling,
        colours=((0, 235, 235), (0, 60, 90)),
        shape=lambda x, y: np.abs(x) ** 1.25 + np.abs(y) ** 1.25 < 1,
        texture=_checks,
    ),
    Kind(
        label="gear rattling",
        timbre=timbres.rattling,
        colours=((255, 130, 0), (90, 50, 20)),
        shape=_gear,
        texture=lambda x, y: np.abs(np.hypot(x, y) - 0.45) < 0.12,
    ),
)


@lru_cache
def _master(number: int) -> Image.Image:
    """Draw kind `number` once, MASTER × MASTER RGBA, colour also outside the shape so that no dark edge bleeds in."""
    kind = KINDS[number]
    axis = (np.arange(MASTER) + 0.5) * 2 / MASTER - 1
    x, y = np.meshgrid(axis, axis)
    first, second = (np.array(colour, np.float32) for colour in kind.colours)
    colour = first + (second - first) * kind.texture(x, y)[..., None]
    alpha = kind.shape(x, y)[..., None] * 255.0
    return Image.fromarray(np.concatenate([colour, alpha], axis=2).astype(np.uint8))


def _sprite(rng: np.random.Generator, number: int, area: tuple[float, float]) -> Image.Image:
    """Draw kind `number`, a little turned, stretched, tinted; its box takes from area[0] to area[1] of the frame."""
    turned = _master(number).rotate(rng.uniform(-12, 12), Image.Resampling.BILINEAR, expand=True)
    turned = turned.crop(turned.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox())
    aspect = turned.width / turned.height * np.exp(rng.uniform(-0.18, 0.18))
    height = np.sqrt(rng.uniform(*area) * WIDTH * HEIGHT / aspect)
    scaled = turned.resize((round(aspect * height), round(height)), Image.Resampling.BOX)
    pixels = np.asarray(scaled) * np.append(rng.uniform(0.85, 1.1, 3), 1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True, kw_only=True)
class Actor:
    """One sprite and its way: left and top (pixels) are at `home` at the centre time and swing around it."""

    sprite: Image.Image
    home: np.ndarray
    swing: np.ndarray  # pixels, each axis
    pace: np.ndarray  # radians a second, each axis
    phase: np.ndarray

    def box(self, since_centre_s: float) -> Box:
        """Where the sprite is drawn `since_centre_s` seconds after the centre; may reach over the frame's edge."""
        offset = np.sin(self.pace * since_centre_s + self.phase) - np.sin(self.phase)
        left, top = (round(float(v)) for v in self.home + self.swing * offset)
        return left, top, left + self.sprite.width, top + self.sprite.height


def _actor(rng: np.random.Generator, sprite: Image.Image, off_centre: float) -> Actor:
    room = np.array([WIDTH - sprite.width, HEIGHT - sprite.height]) / 2
    place = rng.uniform(-1, 1, 2)
    return Actor(
        sprite=sprite,
        home=room * (1 + np.sign(place) * np.abs(place) ** off_centre),
        swing=rng.uniform(12, 30, 2),
        pace=rng.uniform(0.6, 1.4, 2),
        phase=rng.uniform(0, 2 * np.pi, 2),
    )


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """Two soft, slightly grainy colour fields that drift behind the objects and fade into each other."""

    fields: tuple[Image.Image, Image.Image]  # larger than the frame by ROAM on each side; a window drifts over each
    pace: np.ndarray  # (2, 2): field, axis; radians a second
    phase: np.ndarray  # (2, 2)

    @classmethod
    def compose(cls, rng: np.random.Generator) -> "Backdrop":
        """Draw the fields in muted colours, so that the objects stand out."""
        size = WIDTH + 2 * ROAM, HEIGHT + 2 * ROAM
        fields = []
        for _ in range(2):
            patches = rng.uniform(45, 185, (4, 5, 1)) + rng.uniform(-40, 40, (4, 5, 3))
            grain = Image.fromarray(rng.integers(40, 216, (80, 100, 3), dtype=np.uint8)).resize(
                size, Image.Resampling.BILINEAR
            )
            soft = Image.fromarray(patches.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
            fields.append(Image.blend(soft, grain, 0.1))
        return cls(fields=tuple(fields), pace=rng.uniform(0.3, 0.8, (2, 2)), phase=rng.uniform(0, 2 * np.pi, (2, 2)))

    def draw(self, time_s: float) -> Image.Image:
        """Draw it as it is `time_s` seconds into the clip: HEIGHT × WIDTH RGB."""
        swing = np.sin(self.pace * time_s + self.phase)
        corners = np.round(ROAM * (1 + swing)).astype(int).tolist()
        windows = (
            field.crop((left, top, left + WIDTH, top + HEIGHT))
            for field, (left, top) in zip(self.fields, corners, strict=True)
        )
        return Image.blend(*windows, 0.5 + 0.5 * float(swing[0, 0]))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A composed clip. Frame k shows it at k / rate seconds."""

    kind: Kind
    rate: Fraction
    sounding: Actor | None  # None draws the scene without it
    silent: tuple[Actor, ...]
    backdrop: Backdrop
    sound_seed: np.random.SeedSequence

    @property
    def frames(self) -> int:
        """Number of frames in the clip."""
        return round(SECONDS * self.rate)

    @property
    def centre_frame(self) -> int:
        """The last frame shown at or before the centre of the clip."""
        return int(CENTRE_S * self.rate)

    def draw(self, frame: int) -> Image.Image:
        """Draw frame number `frame` (0..frames-1): HEIGHT × WIDTH RGB."""
        picture = self.backdrop.draw(float(frame / self.rate))
        for actor in filter(None, (*self.silent, self.sounding)):  # the sounding one last: nothing may cover it
            picture.paste(actor.sprite, self._place(actor, frame)[:2], actor.sprite)
        return picture

    def box(self) -> list[float]:
        """Give the sounding object's box in the centre frame: xmin, ymin, xmax, ymax as fractions of the frame."""
        edges = np.array(self._place(self.sounding, self.centre_frame)) / (WIDTH, HEIGHT, WIDTH, HEIGHT)
        return [round(float(edge), 6) for edge in edges.clip(0, 1)]

    def muted(self) -> "Scene":
        """Give the same scene without the sounding object."""
        return replace(self, sounding=None)

    def sound(self) -> np.ndarray:
        """Render the sound: float32 (1 or 2 channels, SECONDS × SAMPLE_RATE) in -1..1, with faint noise in it."""
        rng = np.random.default_rng(self.sound_seed)
        tone = self.kind.timbre(rng, SECONDS * SAMPLE_RATE)
        tone *= rng.uniform(0.25, 0.8) / np.abs(tone).max()
        tone += np.float32(rng.uniform(0.001, 0.006)) * rng.standard_normal(tone.size, dtype=np.float32)
        channels = 1 if rng.uniform() < 0.7 else 2
        pan = rng.uniform(0.5, 1, (channels, 1)).astype(np.float32)
        return pan * tone.clip(-1, 1)

    def _place(self, actor: Actor, frame: int) -> Box:
        return actor.box(float((frame - self.centre_frame) / self.rate))


def compose(seed: tuple[int, int], number: int, classes: int) -> Scene:
    """Draw a scene in which kind `number` sounds and kinds out of the first `classes` others are silent."""
    looks, sound_seed = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(looks)
    sounding = _actor(rng, _sprite(rng, number, AREA), OFF_CENTRE)
    others = [k for k in range(classes) if k != number]
    count = rng.integers(2, 4)
    taken, silent = [sounding.box(0)], []
    for other in rng.choice(others, count, replace=len(others) < count):
        sprite = _sprite(rng, other, SILENT_AREA)
        places = [_actor(rng, sprite, 1) for _ in range(8)]
        best = min(places, key=lambda actor: sum(_overlap(actor.box(0), box) for box in taken))
        taken.append(best.box(0))
        silent.append(best)
    return Scene(
        kind=KINDS[number],
        rate=RATES[rng.integers(len(RATES))],
        sounding=sounding,
        silent=tuple(silent),
        backdrop=Backdrop.compose(rng),
        sound_seed=sound_seed,
    )
