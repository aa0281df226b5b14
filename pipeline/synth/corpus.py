"""The synthetic corpus: real H.264/AAC files with known boxes, and lists in the official formats.

It stands in for VGG-Sound and VGG-SS wherever the real clips cannot be had: demo, tests, benchmarks. The same settings
give the same bytes for any number of workers, so a clip that is already there is never made again.

    out/synth.json                    the settings, written first
    out/clips/<clip_id>.mp4           ten seconds, 320 × 240
    out/lists/synth/synth.csv         as VGG-Sound: youtube_id, start_seconds, label, train|test; no header
    out/lists/synth/synth_boxes.json  as VGG-SS: boxes of the test clips in the frame shown at 5 s
"""

import base64
import csv
import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import av
import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write, remove_leftovers
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.synth.scene import HEIGHT, KINDS, SAMPLE_RATE, WIDTH, Scene, compose
from avpipe.pipeline.work.base import announced, chunks
from avpipe.pipeline.work.run import FailedItem, run_parts

VERSION = 1  # of the look of the clips: raise it with any change that alters their bytes
CLIPS_PER_PART = 4  # for a worker at a time: its start costs more than a clip, and the bar should move
KEY_FRAME_S = 10 / 3  # key frames at 0, 3.3 and 6.7 s: the centre is as far from one as it can be, so a lazy seek shows


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """What `make_corpus` made (or found finished)."""

    clips: int
    train: int
    test: int
    classes: int
    seconds: float  # wall-clock time of this call


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """One clip as its settings define it, before anything is drawn."""

    youtube_id: str
    start_s: int
    seed: tuple[int, int]  # corpus seed, number of the clip
    kind: int  # which of KINDS sounds
    official_split: str  # "train" or "test"

    @property
    def clip_id(self) -> str:
        """The id that avpipe uses throughout."""
        return f"{self.youtube_id}_{self.start_s:06d}"


def make_corpus(
    out: Path,
    clips: int,
    classes: int = 8,
    seed: int = 0,
    workers: int = 1,
    test_fraction: float = 0.2,
    on_done: Callable[[int], None] = lambda clips: None,
) -> CorpusSummary:
    """Make `clips` clips and their lists under `out`, or finish an interrupted run with the same settings.

    Args:
        out: folder, made if missing.
        clips: number of clips, train and test together, at least 2.
        classes: number of kinds of object, 2 to len(KINDS); balanced within train and within test.
        seed: any integer from 0 on; other seeds give other clips and other ids.
        workers: processes. They are spawned: a script needs its `if __name__ == "__main__"`.
        test_fraction: share of test clips, between 0 and 1; each split gets at least one clip.
        on_done: called here, in the calling process, with the number of clips just finished.

    Raises:
        AvpipeError: a setting is out of range, `out` holds a corpus made with other settings, or another process is
            making it.
    """
    started = time.perf_counter()
    _check(clips, classes, seed, test_fraction)
    out = Path(out)
    settings = {"version": VERSION, "clips": clips, "classes": classes, "seed": seed, "test_fraction": test_fraction}
    plan = plan_corpus(clips, classes, seed, test_fraction)
    with stage_lock(out, "the synthetic corpus"):
        _claim(out / "synth.json", settings)
        boxes = _make_clips(out / "clips", plan, classes, workers, on_done)
        test = _write_lists(out / "lists" / "synth", plan, boxes)
    elapsed = time.perf_counter() - started
    return CorpusSummary(clips=clips, train=clips - test, test=test, classes=classes, seconds=elapsed)


def plan_corpus(clips: int, classes: int, seed: int, test_fraction: float) -> list[PlannedClip]:
    """Spread test clips evenly over the numbers 0..clips-1 and deal out the classes in turn within each split."""
    wanted = min(max(round(clips * test_fraction), 1), clips - 1)
    dealt = {"train": 0, "test": 0}
    plan, used = [], set()
    for number in range(clips):
        split = "test" if (number + 1) * wanted // clips > number * wanted // clips else "train"
        youtube_id, start_s = _identity(seed, number, used)
        kind = dealt[split] % classes
        dealt[split] += 1
        plan.append(
            PlannedClip(youtube_id=youtube_id, start_s=start_s, seed=(seed, number), kind=kind, official_split=split)
        )
    return plan


def _make_clips(folder: Path, plan: list[PlannedClip], classes: int, workers: int, on_done) -> list[list[float]]:
    """Make the clips that are missing; give the boxes of all in the order of the plan."""
    folder.mkdir(exist_ok=True)
    remove_leftovers(folder)
    boxes: dict[str, list[float]] = {}
    for made in run_parts(make_clips, chunks([(folder, clip, classes) for clip in plan], CLIPS_PER_PART), workers):
        if isinstance(made, FailedItem):
            raise AvpipeError(f"{folder}: a clip could not be made ({made.detail}); run the command again")
        boxes |= made
        on_done(len(made))
    return [boxes[clip.clip_id] for clip in plan]


def make_clips(tasks: list[tuple[Path, PlannedClip, int]]) -> dict[str, list[float]]:
    """Run in a worker: make several clips; their boxes by clip id."""
    return {clip.clip_id: make_clip(folder, clip, classes) for folder, clip, classes in announced(tasks)}


def make_clip(folder: Path, clip: PlannedClip, classes: int) -> list[float]:
    """Write one clip into `folder` unless it is there; give its box at 5 s (xmin, ymin, xmax, ymax, fractions)."""
    scene = compose(clip.seed, clip.kind, classes)
    path = folder / f"{clip.clip_id}.mp4"
    if not path.exists():
        with atomic_write(path) as unfinished:
            encode(scene, unfinished)
    return scene.box()


def encode(scene: Scene, path: Path) -> None:
    """Encode a scene as mp4: H.264 with B-frames, AAC, index at the front; no clock time, no version, one thread."""
    bitexact = {"flags": "+bitexact"}
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        video = container.add_stream("libx264", rate=scene.rate)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.gop_size = round(KEY_FRAME_S * scene.rate)
        video.codec_context.thread_count = 1
        # The fastest preset: sizes stay the same as with "superfast" on pictures this simple, in half the time.
        video.options = bitexact | {"preset": "ultrafast", "crf": "30", "bf": "2", "sc_threshold": "0"}
        sound = scene.sound()
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout=("mono", "stereo")[len(sound) - 1])
        audio.bit_rate = 64_000 * len(sound)
        audio.options = bitexact | {"aac_coder": "fast", "cutoff": "9000"}  # at 16 kHz nothing above 8 kHz is left
        for k in range(scene.frames):
            frame = av.VideoFrame.from_image(scene.draw(k))
            frame.pts = k
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=audio.layout.name)
        samples.sample_rate = SAMPLE_RATE
        container.mux(audio.encode(samples))
        container.mux(audio.encode(None))


def _check(clips: int, classes: int, seed: int, test_fraction: float) -> None:
    if clips < 2:
        raise AvpipeError(f"A synthetic corpus of {clips} clips cannot be split: ask for at least 2.")
    if not 2 <= classes <= len(KINDS):
        raise AvpipeError(f"A synthetic corpus of {classes} classes cannot be drawn: ask for 2 to {len(KINDS)}.")
    if seed < 0:
        raise AvpipeError(f"The seed of a synthetic corpus is {seed}: give 0 or more.")
    if not 0 < test_fraction < 1:
        raise AvpipeError(f"The test fraction of a synthetic corpus is {test_fraction}: give a number between 0 and 1.")


def _claim(path: Path, settings: dict) -> None:
    """Note the settings in `path` before the first clip, or make sure that they are those noted there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(settings, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if found != settings:
        raise AvpipeError(
            f"{path} notes a corpus made with other settings ({found}) than those asked for ({settings}): "
            "give another folder, the same settings, or remove this one."
        )


def _identity(seed: int, number: int, used: set[str]) -> tuple[str, int]:
    """Derive a YouTube-like id and a start second; ids in `used` are avoided, as is one that differs only in case."""
    for attempt in count():
        digest = hashlib.sha256(f"{seed} {number} {attempt}".encode()).digest()
        youtube_id = base64.urlsafe_b64encode(digest)[:11].decode()
        if youtube_id.lower() not in used:
            used.add(youtube_id.lower())
            return youtube_id, digest[-1]


def _write_lists(folder: Path, plan: list[PlannedClip], boxes: list[list[float]]) -> int:
    """Write both lists into `folder`; give the number of test clips."""
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    rows = ((c.youtube_id, c.start_s, KINDS[c.kind].label, c.official_split) for c in plan)
    csv.writer(table, lineterminator="\n").writerows(rows)
    boxed = [
        {"file": clip.clip_id, "class": KINDS[clip.kind].label, "bbox": [box]}
        for clip, box in zip(plan, boxes, strict=True)
        if clip.official_split == "test"
    ]
    for name, text in (("synth_boxes.json", json.dumps(boxed, indent=1) + "\n"), ("synth.csv", table.getvalue())):
        with atomic_write(folder / name) as unfinished:
            unfinished.write_text(text)
    return len(boxed)
