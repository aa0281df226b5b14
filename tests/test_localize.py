"""Heat maps over videos: times, sound, values and colours of the result; files that are no videos with sound."""

import json
from dataclasses import replace
from pathlib import Path

import av
import media_zoo
import numpy as np
import pytest
import torch
from PIL import Image
from thin import thin_networks  # noqa: F401
from train_fixtures import avpipe

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.samples import feature_member
from avpipe.pipeline.features.specs import SPECS
from avpipe.pipeline.media.play import whole_sound
from avpipe.train.data.frames import normalise, squashed_view
from avpipe.train.data.open import open_shards
from avpipe.train.localize import video as lo
from avpipe.train.localize.painting import Heat
from avpipe.train.methods import METHODS
from avpipe.train.models.load import Model, trained_model

pytest_plugins = ["train_fixtures"]
ZOO = "h264.avi variable_rate.mkv short.mp4 turned_90.mp4 late_video.mp4 fragmented.mp4"
RARE = "h264.ts av1.webm ntsc.mp4 odd_size.mp4 wide_pixels.mp4 edit_list.mp4 negative_start.mkv sound_96k.mkv "
RARE += "sound_6_channels.mp4"


class Brightness(torch.nn.Module):
    """Maps that show how bright the picture is, plus how loud the sound: known without a training."""

    def localize(self, image_B3HW, spec_B1FT):
        return torch.nn.functional.avg_pool2d(image_B3HW.mean(1), 8) + 10 * spec_B1FT.mean(dim=(1, 2, 3))[:, None, None]


def bright(feature="logspec"):
    given = {"feature": feature, "feature_digest": SPECS[feature].digest}
    return Model(run=Path("bright"), network=Brightness(), image_px=32, **given)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(lo, "named_model", lambda *_: bright())


def lag_s(one, other, rate=16_000):
    """Seconds by which the second sound is late, by the peak of their correlation."""
    length = 2 * max(len(one), len(other))
    spectrum = np.fft.rfft(other.astype(float), length) * np.fft.rfft(one.astype(float), length).conj()
    lag = int(np.argmax(np.fft.irfft(spectrum, length)))
    return (lag - length if lag > length // 2 else lag) / rate


def test_a_clip_gets_maps_that_are_the_networks_own(done_root, trained, tmp_path):
    clip = sorted(done_root.clips.glob("*.mp4"))[0]
    out, picture, maps = tmp_path / "new" / "out.mp4", tmp_path / "out.png", tmp_path / "out.npz"
    result = json.loads(avpipe(trained, "localize", clip, "-o", out, "--picture", picture, "--maps", maps, "--json"))
    kept = np.load(maps)
    assert kept["maps"].dtype == np.float16 and kept["maps"].shape[0] == len(kept["times_s"]) == result["maps"]
    assert (np.diff(kept["times_s"]) >= lo.EVERY_S - 0.001).all() and kept["times_s"][0] == 0

    sound = media_zoo.heard(clip, 16_000)
    with av.open(str(clip)) as container:
        frames = {frame.time: frame.to_image() for frame in container.decode(video=0)}
    network = trained_model(trained.runs / "small").network
    for place in (0, 20, len(kept["times_s"]) - 1):
        time_s = float(kept["times_s"][place])
        scaled = frames[min(frames, key=lambda t: abs(t - time_s))].resize((341, 256), Image.Resampling.BICUBIC)
        first = min(max(round(time_s * 16_000) - 24_000, 0), len(sound) - 48_000)
        spec = SPECS["logspec"].compute(sound[first : first + 48_000] / np.float32(32768))
        view = torch.from_numpy(squashed_view(scaled, 32).copy())[None]
        expected = network.localize(normalise(view), torch.from_numpy(spec)[None, None])[0].numpy()
        np.testing.assert_allclose(kept["maps"][place], expected, atol=0.01)  # two programs decode and scale

    sheet = np.asarray(Image.open(picture).convert("RGB"))
    assert sheet.shape[1] > 800 and sheet.std() > 20
    assert result["width"], result["height"] == (320, 240)
    assert list(tmp_path.rglob(".*")) == []


def test_the_sound_around_the_centre_is_the_features_that_extraction_stores(done_root):
    shards = open_shards(done_root.shards / "synth_train")
    clip = done_root.clip_file(shards.clip_ids[0])
    sound_i16, start_s = whole_sound(clip, 16_000)
    meta = json.loads(shards.read(0, "meta.json"))
    feature = lo.network_audio(sound_i16, min(meta["duration_s"], 10.0) / 2 - start_s, SPECS["logspec"])
    assert (feature[0] == shards.array(0, feature_member("logspec"))).all()


@pytest.mark.heavy
@pytest.mark.parametrize("name", ZOO.split() + [pytest.param(name, marks=pytest.mark.slow) for name in RARE.split()])
def test_times_shape_and_sound_stay(name, tmp_path, stub):
    video, out = media_zoo.make(tmp_path, name), tmp_path / "out.of.no.kind"
    result = lo.localize(None, video, out)
    before_s, aspect, _ = media_zoo.shown(video, (64, 64))
    if video.suffix == ".avi":  # it keeps no presentation times, and ffmpeg shows pictures when they are decoded
        before_s = [time_s - before_s[0] for time_s in before_s]
    gap_s = 0.177 if name == "fragmented.mp4" else 0.0  # ffmpeg closes the gap behind its first packet of sound
    after_s, new_aspect, pictures = media_zoo.shown(out, (64, 64))
    assert after_s == pytest.approx(before_s, abs=0.001) and result["frames"] == len(before_s)
    assert new_aspect == pytest.approx(aspect, abs=0.04) and pictures.std() > 20
    with av.open(str(out)) as container:
        (video_out,), (sound_out,) = container.streams.video, container.streams.audio
        assert container.format.name.startswith("mov")
        assert (video_out.codec.name, sound_out.codec.name) == ("h264", "aac")
        assert video_out.pix_fmt == "yuv420p" and video_out.width % 2 == video_out.height % 2 == 0
    one, other = media_zoo.heard(video, 16_000), media_zoo.heard(out, 16_000)
    assert len(one) / 16_000 + gap_s == pytest.approx(len(other) / 16_000, abs=0.05)
    sound_starts_s = next(time_s for frame, time_s, _ in lo.decoded(video, True) if isinstance(frame, av.AudioFrame))
    assert lag_s(one, other) == pytest.approx(sound_starts_s + gap_s, abs=0.003)  # `heard` begins where the sound does


def write_film(path, shade, seconds, rate=10, size=(64, 48), hertz=16_000):
    """A video of grey frames, `shade(t)`, whose sound is half silent, then noise."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"crf": "1", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=hertz, layout="mono")
        for number in range(round(seconds * rate)):
            frame = np.full((size[1], size[0], 3), shade(number / rate), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        noise = np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * hertz)).astype(np.float32)
        noise[: len(noise) // 2] = 0
        for first in range(0, len(noise), 1024):
            block = av.AudioFrame.from_ndarray(noise[None, first : first + 1024], format="fltp", layout="mono")
            block.rate, block.pts = hertz, first
            container.mux(audio.encode(block))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def test_maps_follow_the_moment_and_are_blended_between(tmp_path):
    film = write_film(tmp_path / "film.mp4", lambda t: 20 if t < 3 else 220, seconds=8)
    found = lo.video_maps(film, bright())
    level = found.maps.mean(axis=(1, 2))
    assert len(level) == 40 and found.frames == 80 and found.rate() == 10
    assert level[:15].max() + 1 < level[15:20].min()  # the picture brightens at 3 s
    assert level[15:20].max() < level[-1]  # the sound starts at 4 s, and is noise in all of the last 3 s
    middle = (found.times_s[3] + found.times_s[4]) / 2
    np.testing.assert_allclose(found.at(middle), (found.maps[3] + found.maps[4]) / 2, atol=1e-6)
    assert (found.at(-1) == found.maps[0]).all() and (found.at(99) == found.maps[-1]).all()
    assert (found.at(found.times_s[5]) == found.maps[5]).all()


@pytest.mark.parametrize(("seconds", "feature"), [(0.9, "logspec"), (2, "tie-mel"), (4, "logspec-10s")])
def test_short_sound_is_repeated(tmp_path, seconds, feature):
    found = lo.video_maps(write_film(tmp_path / "film.mp4", lambda t: 128, seconds), bright(feature))
    assert len(found.times_s) == -(-seconds * 10 // 2) and np.ptp(found.maps.mean(axis=(1, 2))) < 0.5


@pytest.mark.heavy
def test_a_large_picture_is_made_smaller(tmp_path, stub):
    film = write_film(tmp_path / "film.mp4", lambda t: 128, seconds=0.5, size=(1440, 810))
    result = lo.localize(None, film, tmp_path / "out.mp4")
    assert (result["width"], result["height"]) == (1280, 720)
    assert media_zoo.shown(tmp_path / "out.mp4", (16, 9))[1] == pytest.approx(16 / 9)


def test_cold_places_stay_clear_and_hot_ones_turn_red():
    frame = np.full((60, 80, 3), 100, np.uint8)
    map_HW = np.zeros((6, 8), np.float32)
    map_HW[:, 4:] = 1
    painted = Heat.of(np.stack([map_HW, map_HW - 1, map_HW + 1])).paint(frame, map_HW - 1)
    assert (painted[:, :20] == 100).all()
    painted = Heat(low=0, high=1).paint(frame, map_HW)
    assert painted.shape == frame.shape and (painted[:, :20] == 100).all()
    assert (painted[:, -20:, 0] > 80).all() and (painted[:, -20:, 1:] < 60).all()
    assert (Heat(low=1, high=1).paint(frame, np.ones((6, 8), np.float32)) == 100).all()


def damaged(tmp_path, kind):
    """A file of some kind that no heat map can be made of."""
    path = tmp_path / f"{kind}.mp4"
    if kind == "text":
        path.write_text("not a video " * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind in ("mute", "blind"):
        whole = media_zoo.make(tmp_path, "h264.mp4")
        media_zoo.run_ffmpeg("-i", whole, "-an" if kind == "mute" else "-vn", "-c", "copy", path)
    elif kind == "half":
        media_zoo.run_ffmpeg("-i", media_zoo.make(tmp_path, "h264.mp4"), "-c", "copy", "-movflags", "faststart", path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("gone", "does not exist; give a video file"),
        ("folder", "is a folder"),
        ("text", r"cannot be used \(not decodable"),
        ("empty", r"cannot be used \(not decodable"),
        ("mute", "the file has no audio stream"),
        ("blind", "the file has no video stream"),
        ("half", r"cannot be used \(.*(ends at|not decodable)"),
    ],
)
def test_what_is_no_video_with_sound_is_one_sentence(tmp_path, stub, kind, sentence):
    video, out = damaged(tmp_path, kind), tmp_path / "out.mp4"
    with pytest.raises(AvpipeError, match=sentence) as raised:
        lo.localize(None, video, out)
    assert "\n" not in str(raised.value) and not out.exists() and not list(tmp_path.glob(".*"))


def test_wrong_outputs_and_models_are_sentences(tmp_path, trained, monkeypatch):
    film = write_film(tmp_path / "film.mp4", lambda t: 128, seconds=1)
    (tmp_path / "link.mp4").symlink_to(film)
    (tmp_path / "file").touch()
    before = film.read_bytes()
    for arguments, sentence in (
        (["-o", film], "is the input"),
        (["-o", tmp_path / "link.mp4"], "is the input"),
        (["-o", tmp_path / "out.mp4", "--maps", film], "is the input"),
        (["-o", tmp_path / "out.mp4", "--maps", tmp_path / "out.mp4"], "given for two outputs"),
        (["-o", tmp_path], "is a folder"),
        (["-o", tmp_path / "file" / "out.mp4"], "cannot be written"),
        (["-o", tmp_path / "out.mp4", "--checkpoint", "small", "--baseline", "object"], "give either"),
        (["-o", tmp_path / "out.mp4", "--baseline", "centre"], "the same disc"),
        (["-o", tmp_path / "out.mp4", "--checkpoint", "other"], "there is no run 'other'"),
    ):
        with pytest.raises(AvpipeError, match=sentence):
            avpipe(trained, "localize", film, *arguments)
    deaf = METHODS["vgg-h"].network(METHODS["vgg-h"].config())
    for model, sentence in (
        (replace(bright(), network=deaf), "vgg-h is audio-only"),
        (replace(bright(), feature_digest="00000000"), "needs logspec 00000000, not this version's"),
    ):
        monkeypatch.setattr(lo, "named_model", lambda *_, model=model: model)
        with pytest.raises(AvpipeError, match=sentence):
            lo.localize(None, film, tmp_path / "out.mp4")
    assert film.read_bytes() == before and not (tmp_path / "out.mp4").exists()
