"""The synthetic corpus: real files, lists that fit them, the same bytes each time, boxes and timbres with a meaning."""

import csv
import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.synth.corpus import encode, make_corpus, plan_corpus
from avpipe.pipeline.synth.scene import CENTRE_S, KINDS, SAMPLE_RATE, compose

pytestmark = pytest.mark.heavy
CLIPS, CLASSES, SEED = 8, 4, 3


def make(out: Path, workers: int = 1, **changes) -> list[int]:
    progress = []
    settings = {"clips": CLIPS, "classes": CLASSES, "seed": SEED, "test_fraction": 0.4} | changes
    make_corpus(out, workers=workers, on_done=progress.append, **settings)
    return progress


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth")
    make(out)
    return out


def digests(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(out: Path) -> list[list[str]]:
    with open(out / "lists/synth/synth.csv", newline="") as file:
        return list(csv.reader(file))


def boxes(out: Path) -> list[dict]:
    return json.loads((out / "lists/synth/synth_boxes.json").read_text())


def centre_picture(path: Path) -> np.ndarray:
    """The last frame shown at or before 5 s, by decoding from the start; (240, 320, 3) float."""
    with av.open(str(path)) as container:
        shown = [frame for frame in container.decode(video=0) if frame.time <= CENTRE_S]
    return shown[-1].to_ndarray(format="rgb24").astype(float)


def grid() -> np.ndarray:
    return (np.arange(224) + 0.5) / 224


def half_disc() -> np.ndarray:
    distance = np.hypot(*np.meshgrid(grid() - 0.5, grid() - 0.5))
    return distance <= np.sqrt(0.5 / np.pi)


def box_mask(box: list[float]) -> np.ndarray:
    inside = [(grid() >= low) & (grid() < high) for low, high in zip(box[:2], box[2:], strict=True)]
    return inside[1][:, None] & inside[0]


def test_streams_are_h264_and_aac_of_ten_seconds_behind_their_index(corpus):
    for path in sorted((corpus / "clips").glob("*.mp4"))[:4]:
        content = path.read_bytes()
        assert 0 < content.index(b"moov") < content.index(b"mdat")
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height, video.pix_fmt, audio.rate) == (320, 240, "yuv420p", 44_100)
            assert float(video.duration * video.time_base) == pytest.approx(10, abs=0.11)
            assert float(audio.duration * audio.time_base) == pytest.approx(10, abs=0.05)
            frames = list(container.decode(video))
        assert frames[0].time == 0
        assert av.video.frame.PictureType.B in {frame.pict_type for frame in frames}
        keys = [frame.time for frame in frames if frame.key_frame]
        assert len(keys) > 1
        assert min(abs(key - CENTRE_S) for key in keys) > 1.2


def test_lists_agree_with_the_files_and_have_a_label_with_a_comma(corpus):
    table = rows(corpus)
    ids = [f"{youtube_id}_{int(start):06d}" for youtube_id, start, _, _ in table]
    assert sorted(ids) == sorted(path.stem for path in (corpus / "clips").iterdir())
    tested = {clip_id: row[2] for clip_id, row in zip(ids, table, strict=True) if row[3] == "test"}
    assert {entry["file"]: entry["class"] for entry in boxes(corpus)} == tested
    assert len(tested) == 3
    assert {row[3] for row in table} == {"train", "test"}
    labels = {row[2] for row in table}
    assert labels == {kind.label for kind in KINDS[:CLASSES]} and any("," in label for label in labels)


def test_boxes_hold_exactly_what_sounds(corpus, tmp_path):
    """A clip and its twin without the sounding object, both decoded, differ within the box and up to its edges."""
    plan = {clip.clip_id: clip for clip in plan_corpus(CLIPS, CLASSES, SEED, 0.4)}
    for entry in boxes(corpus):
        clip = plan[entry["file"]]
        encode(compose(clip.seed, clip.kind, CLASSES).muted(), tmp_path / "twin.mp4")
        clip_picture = centre_picture(corpus / "clips" / f"{entry['file']}.mp4")
        differs = np.abs(clip_picture - centre_picture(tmp_path / "twin.mp4")).max(2) > 40
        # Only spots of 3 × 3 such pixels count: coding noise along the edges of the silent objects is thinner.
        thick = np.lib.stride_tricks.sliding_window_view(differs, (3, 3)).all((2, 3))
        columns, lines = (np.flatnonzero(thick.any(axis)) for axis in (0, 1))
        seen = [columns[0], lines[0], columns[-1] + 3, lines[-1] + 3]
        assert np.array(entry["bbox"][0]) * (320, 240, 320, 240) == pytest.approx(seen, abs=2.01)


def test_boxes_leave_room_between_floor_and_ceiling():
    edges = np.array([compose(clip.seed, clip.kind, 8).box() for clip in plan_corpus(150, 8, 1, 0.2)])
    area = (edges[:, 2:] - edges[:, :2]).prod(1)
    assert edges.min() >= 0
    assert edges.max() <= 1
    assert area.min() > 0.22
    assert area.max() < 0.46
    assert area.std() > 0.04
    assert ((edges[:, :2] + edges[:, 2:]) / 2).std(0).min() > 0.06
    half, masks = half_disc(), [box_mask(box) for box in edges]
    floor = np.mean([(half & mask).sum() / (half | mask).sum() >= 0.5 for mask in masks])
    assert 0.32 < floor < 0.48  # about 0.40, give or take what 150 clips leave open
    assert np.mean([mask.mean() >= 0.25 for mask in masks]) >= 0.88


def test_workers_do_not_change_a_byte(corpus, tmp_path):
    assert sum(make(tmp_path, workers=2)) == CLIPS
    assert digests(tmp_path) == digests(corpus)


def test_a_caller_that_stops_does_not_wait_for_the_rest(tmp_path):
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path, 40, workers=2, on_done=stop)
    assert len(list((tmp_path / "clips").glob("*.mp4"))) < 12
    assert not (tmp_path / "lists").exists()


def test_a_continued_run_makes_only_what_is_missing_and_another_corpus_other_clips(tmp_path):
    folder = tmp_path / "one"
    make(folder, clips=3)
    whole = digests(folder)
    first, second, _ = sorted((folder / "clips").iterdir())
    kept = second.stat().st_mtime_ns
    first.unlink()
    first.with_name(f".{first.name}.1.tmp").write_bytes(b"torn")  # as a killed run leaves it
    (folder / "lists/synth/synth.csv").unlink()
    make(folder, clips=3)
    assert digests(folder) == whole
    assert second.stat().st_mtime_ns == kept < first.stat().st_mtime_ns
    with pytest.raises(AvpipeError, match="other settings"):
        make(folder, seed=SEED + 1)
    assert digests(folder) == whole
    make(tmp_path / "two", clips=2, seed=SEED + 1)
    assert not set(digests(tmp_path / "two").values()) & set(whole.values())


def test_ids_look_like_youtube_ones_and_differ_beyond_case():
    clips = plan_corpus(5000, 8, 0, 0.2)
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert all(len(clip.youtube_id) == 11 and set(clip.youtube_id) <= allowed for clip in clips)
    assert len({clip.clip_id.casefold() for clip in clips}) == 5000
    assert any(clip.youtube_id.startswith("-") for clip in clips)


def test_classes_are_balanced_in_both_splits():
    for clips, fraction in ((100, 0.2), (41, 0.33), (2, 0.1), (2, 0.9)):
        plan = plan_corpus(clips, 4, 0, fraction)
        for split in ("train", "test"):
            counts = np.bincount([clip.kind for clip in plan if clip.official_split == split], minlength=4)
            assert counts.sum() >= 1
            assert np.ptp(counts) <= 1


def log_spectrum(number: int, kind: int) -> np.ndarray:
    """Mean and spread over time of the log spectrum, 32 bands to 8 kHz, of the middle 3 s; level taken out."""
    sound = compose((9, number), kind, len(KINDS)).sound().mean(0)
    middle = sound[int(3.5 * SAMPLE_RATE) : int(6.5 * SAMPLE_RATE)]
    frames = np.lib.stride_tricks.sliding_window_view(middle, 2048)[::1024] * np.hanning(2048)
    power = np.abs(np.fft.rfft(frames))[:, : int(8000 / SAMPLE_RATE * 2048)] ** 2
    bands = np.log(
        np.add.reduceat(power, np.unique(np.geomspace(1, power.shape[1] - 1, 32).astype(int)), axis=1) + 1e-3
    )
    return np.concatenate([bands.mean(0) - bands.mean(), bands.std(0)])


def test_classes_can_be_told_apart_by_ear():
    kinds = np.repeat(np.arange(len(KINDS)), 8)
    features = np.array([log_spectrum(number, kind) for number, kind in enumerate(kinds)])
    known = np.arange(len(kinds)) % 2 == 0
    centroids = np.array([features[known & (kinds == kind)].mean(0) for kind in range(len(KINDS))])
    distance = ((features[~known, None] - centroids) ** 2).sum(2)
    assert (distance.argmin(1) == kinds[~known]).mean() >= 0.9
    # …and yet no two clips of a class are alike.
    for kind in range(len(KINDS)):
        assert features[kinds == kind].std(0).max() > 0.2


def test_sound_stays_in_range_and_is_never_silent():
    for kind in range(len(KINDS)):
        sound = compose((5, kind), kind, len(KINDS)).sound()
        assert sound.shape in {(1, 10 * SAMPLE_RATE), (2, 10 * SAMPLE_RATE)}
        assert 0.1 < np.abs(sound).max() <= 1
        seconds = np.abs(sound[0]).reshape(10, -1).max(1)
        assert seconds.min() > 0.25 * seconds.max()


def test_impossible_settings_are_refused_before_anything_is_written(tmp_path):
    for changes, word in (
        ({"clips": 1}, "at least 2"),
        ({"classes": 1}, f"2 to {len(KINDS)}"),
        ({"classes": len(KINDS) + 1}, f"2 to {len(KINDS)}"),
        ({"seed": -1}, "seed"),
        ({"test_fraction": 1.0}, "between 0 and 1"),
    ):
        with pytest.raises(AvpipeError, match=word):
            make(tmp_path / "none", **changes)
    assert not (tmp_path / "none").exists()
