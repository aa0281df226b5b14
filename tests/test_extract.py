"""Clips into samples: what a sample holds, what becomes of bad files, what a second run does, what a crash costs."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from media_zoo import make, run_ffmpeg
from PIL import Image
from test_export import cached
from test_features import scipy_logspec
from test_kill import extract_part_with_a_deadly_clip
from test_media import all_sound, write_clip

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import file_sha256
from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.samples import index_members
from avpipe.pipeline.extract import stage
from avpipe.pipeline.extract.cache import Cache
from avpipe.pipeline.extract.stage import extract, make_sample, plan_extract
from avpipe.pipeline.features.audio_window import cut_window
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import SPECS, pcm_to_float
from avpipe.pipeline.manifest.build import build_manifest
from avpipe.pipeline.manifest.tables import Manifest
from avpipe.pipeline.media.shown import Geometry

SETTINGS = ExtractSettings()
MEMBERS = ["audio.flac", "frame.jpg", "logspec.npy", "meta.json"]


def clip_id(number: int) -> str:
    return f"abcdefghijk_{number:06d}"


def add_clip(root: Root, number: int | str, content: bytes) -> str:
    """A clip as the download stage leaves it."""
    name = number if isinstance(number, str) else clip_id(number)
    root.clips.mkdir(parents=True, exist_ok=True)
    root.clip_file(name).write_bytes(content)
    Ledger(root.ledger, "download").write([Outcome(clip_id=name, sha256=file_sha256(root.clip_file(name)))])
    return name


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[bytes]:
    """Four small clips, each of its own content."""
    folder = tmp_path_factory.mktemp("good")
    return [write_clip(folder / f"{k}.mp4", seconds=3.2 + k / 5, size=(96, 64)).read_bytes() for k in range(4)]


def outcomes(root: Root) -> dict[str, Outcome]:
    return Ledger(root.ledger, f"extract-{SETTINGS.name}").latest()


def files_with_times(*folders: Path) -> dict[str, int]:
    files = [path for folder in folders for path in folder.iterdir() if path.name != ".lock"]
    return {path.name: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(("seconds", "size"), [(10.0, (320, 180)), (4.1, (64, 120))])
def test_a_sample_holds_frame_sound_feature_and_facts(tmp_path, seconds, size):
    path = write_clip(tmp_path / "clip.mp4", seconds=seconds, size=size)
    sample = make_sample(path, SETTINGS)
    assert sorted(sample) == MEMBERS

    with av.open(str(path)) as container:
        duration_s = container.duration / av.time_base
        centre_s = min(duration_s, 10) / 2
        shown = [frame for frame in container.decode(video=0) if frame.time <= centre_s]
    picture = Image.open(io.BytesIO(sample["frame.jpg"]))
    assert (picture.format, picture.mode, min(picture.size)) == ("JPEG", "RGB", 256)
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], abs=0.01)
    lossless = Geometry().rgb(shown[-1], 256).astype(float)
    assert np.abs(np.asarray(picture).astype(float) - lossless).mean() < 6

    pcm, rate = soundfile.read(io.BytesIO(sample["audio.flac"]), dtype="int16")
    whole = all_sound(path)
    first = round(centre_s * 16_000) - 24_000
    assert (rate, pcm.shape) == (16_000, (48_000,))
    assert np.array_equal(pcm, whole[first : first + 48_000])

    feature = np.load(io.BytesIO(sample["logspec.npy"]))
    assert (feature.dtype, feature.shape) == (np.float16, (257, 200))
    assert np.abs(feature.astype(np.float64) - scipy_logspec(pcm / 32768)).max() < 1e-2

    assert json.loads(sample["meta.json"]) == {
        "audio_repeated": False,
        "audio_own_s": 3.0,
        "audio_s": 3.0,
        "audio_start_s": pytest.approx(first / 16_000, abs=1e-6),
        "duration_s": pytest.approx(duration_s, abs=1e-6),
        "frame_time_s": pytest.approx(shown[-1].time, abs=1e-6),
        "peak": pytest.approx(np.abs(pcm / 32768).max(), abs=1e-5),
        "rms": pytest.approx(np.sqrt(np.mean((pcm / 32768) ** 2)), abs=1e-5),
        "silent": False,
        "source_height": size[1],
        "source_width": size[0],
    }


@pytest.mark.parametrize("seconds", [10.0, 9.9, 2.0])
def test_a_feature_is_the_same_whichever_others_are_made_with_it(tmp_path, seconds):
    path = write_clip(tmp_path / "clip.mp4", seconds=seconds)
    together = ExtractSettings(features=tuple(SPECS))
    sample, whole = make_sample(path, together), all_sound(path)
    for name, spec in SPECS.items():
        alone = make_sample(path, ExtractSettings(features=(name,)))
        assert sample[f"{name}.npy"] == alone[f"{name}.npy"]
        assert np.load(io.BytesIO(alone[f"{name}.npy"])).shape == spec.shape
        assert json.loads(alone["meta.json"])["audio_s"] == spec.audio_s

    # By hand: both windows begin in the middle of the whole sound, or are its repetition.
    with av.open(str(path)) as container:
        centre = round(min(container.duration / av.time_base, 10) / 2 * 16_000)
    kept = whole[centre - 80_000 :][:160_000] if len(whole) >= centre + 80_000 else np.resize(whole, 160_000)
    three = whole[centre - 24_000 :][:48_000] if len(whole) >= 48_000 else np.resize(whole, 48_000)
    assert np.array_equal(soundfile.read(io.BytesIO(sample["audio.flac"]), dtype="int16")[0], kept)
    assert json.loads(sample["meta.json"])["audio_repeated"] == (len(whole) < 160_000)
    for name, window in (("logspec", three), ("vggish", three), ("tie-mel", kept)):
        expected = SPECS[name].compute(pcm_to_float(window)).astype(np.float16)
        assert np.array_equal(np.load(io.BytesIO(sample[f"{name}.npy"])), expected)


def test_sound_that_begins_late_gives_the_same_feature_whichever_others_are_made_with_it(tmp_path):
    early, late = write_clip(tmp_path / "early.mp4", seconds=10, sound_s=6), tmp_path / "late.mp4"
    run_ffmpeg("-i", early, "-itsoffset", "4", "-i", early, "-map", "0:v", "-map", "1:a", "-c", "copy", late)
    alone = make_sample(late, SETTINGS)
    assert alone["logspec.npy"] == make_sample(late, ExtractSettings(features=("logspec", "tie-mel")))["logspec.npy"]
    facts = json.loads(alone["meta.json"])
    assert not facts["audio_repeated"]
    assert facts["audio_start_s"] == pytest.approx(3.5)
    pcm = soundfile.read(io.BytesIO(alone["audio.flac"]), dtype="int16")[0]
    assert not pcm[: 16_000 // 2 - 800].any()
    assert np.array_equal(pcm[-39_000:], all_sound(late)[40_000 - 39_000 : 40_000])


def test_a_flickr_clip_is_its_whole_file(tmp_path, serial):
    content = write_clip(tmp_path / "clip.mp4", seconds=16).read_bytes()
    root, photo = Root(tmp_path), "4218371834"
    ids = [add_clip(root, photo, content), add_clip(root, 0, content)]
    extract(root, ids, SETTINGS, workers=1)
    times = {name: json.loads(sample["meta.json"])["frame_time_s"] for name, sample in cached(root).items()}
    assert times == {photo: 8.0, clip_id(0): 5.0}


def test_the_size_of_the_source_is_that_of_the_picture_shown(tmp_path):
    turned = make(tmp_path, "turned_wide_pixels.mp4")
    sample = make_sample(turned, SETTINGS)
    facts = json.loads(sample["meta.json"])
    assert (facts["source_width"], facts["source_height"]) == (64, 128)
    assert Image.open(io.BytesIO(sample["frame.jpg"])).size == (256, 512)


def test_all_features_at_once_reach_the_cache_and_are_found_again(tmp_path, good, serial):
    root, settings = Root(tmp_path), ExtractSettings(features=tuple(SPECS))
    extract(root, [add_clip(root, 0, good[0])], settings, workers=1)
    cache = Cache(root.cache / settings.name)
    assert settings.name.startswith("logmel+logspec+logspec-10s+tie-mel+vggish-")
    names = ["audio.flac", "frame.jpg", "meta.json", *(f"{name}.npy" for name in SPECS)]
    (found,) = cache.read(cache.table.to_pylist(), sorted(names))
    assert found == make_sample(root.clip_file(clip_id(0)), settings)
    assert index_members(cache.table.schema.remove_metadata()) == sorted(names)


def test_settings_have_a_folder_each_and_keep_as_much_sound_as_the_longest_feature_wants():
    lengths = {names: ExtractSettings(features=names).audio_s for names in [("vggish",), ("vggish", "tie-mel")]}
    assert lengths == {("vggish",): 3.0, ("vggish", "tie-mel"): 10.0}
    assert ExtractSettings(features=("tie-mel",)).record()["audio_s"] == 10.0
    assert ExtractSettings(features=("vggish", "logspec", "vggish")) == ExtractSettings(features=("logspec", "vggish"))
    changes = [{}, {"jpeg_quality": 80}, {"features": ("logspec-10s",)}, {"version": 99}]
    assert len({ExtractSettings(**change).name for change in changes}) == 4


@pytest.mark.parametrize(
    ("count", "start_s", "centre_s", "first"),
    [
        (160_000, 0.0, 5.0, 56_000),  # in the middle
        (160_000, 0.25, 5.0, 52_000),  # sound that begins later than the picture
        (100_000, 0.0, 5.0, 52_000),  # sound that ends before the window: its last three seconds
        (160_000, 0.0, 1.0, 0),  # a centre too near to the beginning
        (48_000, 0.0, 1.6, 0),  # just enough
    ],
)
def test_the_window_lies_around_the_centre_inside_what_there_is(count, start_s, centre_s, first):
    sound = np.random.default_rng(0).integers(-9000, 9000, count).astype(np.int16)
    window, facts = cut_window(sound, start_s, centre_s, SETTINGS)
    assert np.array_equal(window, sound[first : first + 48_000])
    assert facts["audio_start_s"] == pytest.approx(start_s + first / 16_000)
    assert not facts["audio_repeated"]
    assert not facts["silent"]


@pytest.mark.parametrize(("level", "silent"), [(0, True), (5, True), (40, False)])
def test_silence_is_told(level, silent):
    assert cut_window(np.full(48_000, level, np.int16), 0.0, 1.5, SETTINGS)[1]["silent"] is silent


@pytest.mark.heavy
def test_bad_files_become_rows_with_their_reason_and_the_others_are_done(tmp_path, good, monkeypatch):
    root = Root(tmp_path / "root")
    faststart = write_clip(tmp_path / "faststart.mp4", seconds=10, movflags="+faststart").read_bytes()
    halves = [good[0][: len(good[0]) // 2], faststart[: len(faststart) * 3 // 10]]
    bad = {
        "corrupt": [*halves, b"<html>gone</html>" * 99, b""],
        "no_audio": [write_clip(tmp_path / "mute.mp4", sound_s=0).read_bytes()],
        "no_video": [write_clip(tmp_path / "blind.mp4", seconds=0, sound_s=4).read_bytes()],
    }
    expected = {}
    for reason, contents in [(None, good), *bad.items()]:
        for content in contents:
            expected[add_clip(root, len(expected), content)] = reason
    absent = add_clip(root, 98, good[0])
    root.clip_file(absent).unlink()
    expected[absent] = "disk"
    seen = []
    monkeypatch.setattr("avpipe.pipeline.extract.cache_part.CLIPS_PER_PART", 3)
    plan = extract(root, [*sorted(expected), clip_id(99)], SETTINGS, workers=2, on_outcome=seen.extend)
    assert {o.clip_id: o.reason for o in seen} == expected
    assert {name: o.reason for name, o in outcomes(root).items()} == expected
    assert {o.reason for o in seen if o.permanent} == set(bad)
    assert all(o.detail for o in seen if o.reason)
    assert (len(plan.jobs), plan.finished, plan.failed_before, plan.not_downloaded) == (len(expected), 0, 0, 1)
    assert cached(root) == {name: make_sample(root.clip_file(name), SETTINGS) for name, r in expected.items() if not r}
    again = plan_extract(root, sorted(expected), SETTINGS)
    assert (again.jobs, again.finished) == ([], 4)
    assert again.failed_before == len(expected) - 4


def test_a_second_run_does_nothing_and_clips_that_arrive_later_are_added(tmp_path, good, serial):
    root = Root(tmp_path)
    folders = root.cache / SETTINGS.name, root.ledger / f"extract-{SETTINGS.name}"
    ids = [add_clip(root, k, content) for k, content in enumerate([*good[:2], b"no clip"])]
    extract(root, ids, SETTINGS, workers=1)
    before, seen = files_with_times(*folders), []
    plan = extract(root, ids, SETTINGS, workers=1, on_outcome=seen.append)
    assert (plan.jobs, plan.finished, plan.failed_before, seen) == ([], 2, 1, [])
    assert before == files_with_times(*folders) and len(before) == 3
    later = [add_clip(root, k, good[k - 1]) for k in (3, 4)]
    plan = extract(root, ids + later, SETTINGS, workers=1)
    assert [job.clip_id for job in plan.jobs] == later
    assert sorted(cached(root)) == ids[:2] + later
    assert before.items() < files_with_times(*folders).items()


def test_retry_tries_again_what_another_attempt_can_win(tmp_path, good, serial):
    root = Root(tmp_path)
    ids = [add_clip(root, k, good[k]) for k in range(3)]
    failures = [Outcome(clip_id=ids[0], reason="timeout", attempts=3), Outcome(clip_id=ids[1], reason="no_audio")]
    Ledger(root.ledger, f"extract-{SETTINGS.name}").write(failures)
    plan = extract(root, ids, SETTINGS, workers=1)
    assert ([job.clip_id for job in plan.jobs], plan.failed_before) == ([ids[2]], 2)
    plan = extract(root, ids, SETTINGS, workers=1, retry=True)
    assert ([job.clip_id for job in plan.jobs], plan.failed_before, plan.finished) == ([ids[0]], 1, 1)
    assert outcomes(root)[ids[0]].done
    assert outcomes(root)[ids[0]].attempts == 4


def test_a_changed_source_is_extracted_again_and_supersedes(tmp_path, good, serial):
    root = Root(tmp_path)
    ids = [add_clip(root, k, content) for k, content in enumerate([*good[:2], b"no clip"])]
    extract(root, ids, SETTINGS, workers=1)
    before = cached(root)
    assert outcomes(root)[ids[2]].reason == "corrupt"
    for number in (0, 2):
        add_clip(root, number, good[3])
    plan = extract(root, ids, SETTINGS, workers=1)
    assert [job.clip_id for job in plan.jobs] == [ids[0], ids[2]]
    after = cached(root)
    assert after[ids[1]] == before[ids[1]]
    assert after[ids[0]] == after[ids[2]] == make_sample(root.clip_file(ids[0]), SETTINGS) != before[ids[0]]
    assert outcomes(root)[ids[2]].done
    assert extract(root, ids, SETTINGS, workers=1).jobs == []


def test_two_extractions_at_once_and_one_of_nothing_are_refused(tmp_path, good, corpus):
    root, empty = Root(tmp_path), Root(tmp_path / "empty")
    name = add_clip(root, 0, good[0])
    folder = root.cache / SETTINGS.name
    with stage_lock(folder, "the extraction"), pytest.raises(AvpipeError, match="another process"):
        extract(root, [name], SETTINGS, workers=1)
    assert list(folder.glob("part-*")) == []
    build_manifest(corpus / "lists", empty.manifest)
    with pytest.raises(AvpipeError, match="none of 4 clips is downloaded yet"):
        extract(empty, Manifest.open(empty.manifest).split_ids("synth_test"), SETTINGS, workers=1)


def test_what_a_killed_run_left_is_cleaned(tmp_path, good, serial):
    root = Root(tmp_path)
    name = add_clip(root, 0, good[0])
    folder = root.cache / SETTINGS.name
    folder.mkdir(parents=True)
    (folder / f".part-000000-{name}.tar.77.tmp").write_bytes(b"half")
    (folder / f"part-000004-{name}.tar").write_bytes(b"no index beside it")
    extract(root, [name], SETTINGS, workers=1)
    assert sorted(path.name.split(".")[-1] for path in folder.glob("[!.]*")) == ["parquet", "tar"]
    assert list(folder.glob(".*.tmp")) == []
    assert list(cached(root)) == [name]


def test_a_damaged_part_is_named_and_not_passed_on(tmp_path, good, serial):
    root = Root(tmp_path)
    extract(root, [add_clip(root, 0, good[0])], SETTINGS, workers=1)
    (tar,) = (root.cache / SETTINGS.name).glob("part-*.tar")
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    with pytest.raises(AvpipeError, match=f"{tar.name}.*{clip_id(0)} is damaged"):
        cached(root)
    tar.unlink()
    with pytest.raises(AvpipeError, match="is missing"):
        cached(root)


@pytest.mark.heavy
def test_a_crashing_decoder_fails_its_clip_and_no_other(tmp_path, good, monkeypatch, request):
    root = Root(tmp_path)
    ids = [add_clip(root, k, content) for k, content in enumerate(good) if k > 0]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "extract_part", extract_part_with_a_deadly_clip)
        extract(root, ids, SETTINGS, workers=1)
    assert {name: o.reason for name, o in outcomes(root).items()} == dict.fromkeys(ids) | {clip_id(2): "decoder_crash"}
    assert sorted(cached(root)) == [clip_id(1), clip_id(3)]
    request.getfixturevalue("serial")
    assert extract(root, ids, SETTINGS, workers=1).jobs == []
    assert list((root.cache / SETTINGS.name).glob(".*.tmp")) == []
    extract(root, ids, SETTINGS, workers=1, retry=True)
    assert sorted(cached(root)) == ids
    assert outcomes(root)[clip_id(2)].attempts == 2
