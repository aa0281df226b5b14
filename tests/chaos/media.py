"""Damaged copies of clips: each ends in a refusal, or in the picture and the sound of the undamaged clip. By hand:

    python tests/chaos/media.py CLIPS_DIR [--rounds 2000] [--seed 0]

It prints how many were refused, equal and different; ends with 1 for a crash, a clip that takes longer than 30 seconds,
and a clip that differs although no decoder complained of it.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avpipe.pipeline.media import ClipMedia, MediaError, read_clip

RATE, MOST_S = 16_000, 30.0
# Of 255, as a mean over the picture; of the full scale, as a mean over the window.
PICTURE_APART, SOUND_APART = 1.0, 0.01


def mutant(whole: bytes, dice: random.Random) -> bytes:
    """One damaged copy: bytes changed, in the headers at both ends or anywhere, blocks moved or zeroed, or cut off."""
    content, kind = bytearray(whole), dice.randrange(5)
    near = dice.choice([64, 1000, 20_000, len(content)])
    if kind == 0:
        del content[dice.randrange(len(content)) :]
    elif kind == 1:
        start, length = dice.randrange(len(content)), dice.choice([16, 1000, 30_000])
        content[start : start + length] = bytes(length) if dice.random() < 0.5 else b""
    elif kind == 2:
        start, target = dice.randrange(len(content)), dice.randrange(len(content))
        content[target:target] = content[start : start + dice.choice([16, 1000, 30_000])]
    else:
        for _ in range(dice.choice([1, 3, 20, 300])):
            place = dice.randrange(min(near, len(content)))
            content[-place - 1 if kind == 3 else place] = dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])
    return bytes(content)


@dataclass(frozen=True)
class Sample:
    """What a clip gives: its picture, small, and the sound of its window."""

    rgb: np.ndarray
    window: np.ndarray

    @classmethod
    def of(cls, clip: ClipMedia) -> "Sample":
        first = max(round((min(clip.duration_s, 10.0) / 2 - 1.5 - clip.audio_start_s) * RATE), 0)
        window = clip.audio_i16[first : first + 3 * RATE] / 32768
        return cls(rgb=clip.geometry.rgb(clip.frame, 128).astype(float), window=window)

    def apart(self, other: "Sample") -> str:
        """How two samples differ, in words; empty where they do not."""
        if self.rgb.shape != other.rgb.shape or self.window.shape != other.window.shape:
            return "other sizes"
        picture, sound = np.abs(self.rgb - other.rgb).mean(), np.abs(self.window - other.window).mean()
        found = [f"picture by {picture:.1f}"] if picture > PICTURE_APART else []
        return "; ".join(found + ([f"sound by {sound:.3f}"] if sound > SOUND_APART else []))


def run(clips: list[Path], rounds: int, seed: int, folder: Path, say=lambda text: None) -> Counter:
    """Damage clips in turn; counts by outcome."""
    wholes = {path: (path.read_bytes(), Sample.of(read_clip(path, 10.0, 3.0, RATE))) for path in clips}
    outcomes: Counter = Counter()
    for number in range(rounds):
        dice = random.Random(f"{seed}:{number}")
        source = dice.choice(clips)
        content, whole = wholes[source]
        path = folder / f"{number}{source.suffix}"
        path.write_bytes(mutant(content, dice))
        begin = time.monotonic()
        try:
            found = Sample.of(read_clip(path, 10.0, 3.0, RATE)).apart(whole)
            outcome = "different" if found else "equal"
        except MediaError as error:
            outcome, found = f"refused: {error.reason}", error.detail
        except Exception as error:  # what the extraction would call unknown
            outcome, found = "crash", repr(error)
        if time.monotonic() - begin > MOST_S:
            outcome = "slow"
        outcomes[outcome] += 1
        if outcome in ("different", "crash", "slow"):
            say(f"{outcome} {seed}:{number} {source.name} {found}")
        if outcome not in ("different", "crash"):
            path.unlink()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that came out different")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        clips = sorted(path for path in arguments.clips.iterdir() if path.suffix in (".mp4", ".mkv", ".webm", ".ts"))
        outcomes = run(clips, arguments.rounds, arguments.seed, folder, print)
    print(dict(outcomes))
    return int(outcomes["different"] + outcomes["crash"] + outcomes["slow"] > 0)


if __name__ == "__main__":
    sys.exit(main())
