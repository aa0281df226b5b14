"""Files as people have them, each kind in several forms: the picture and the sound that players show, or a reason."""

import struct
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest
from media_zoo import run_ffmpeg
from PIL import Image
from torture import NOISES, RATE, SIZE, alike, number_of, numbered_picture

from avpipe.pipeline.download.cut import cut_clip
from avpipe.pipeline.media import MediaError, read_clip, survey
from avpipe.pipeline.media.play import whole_sound
from avpipe.pipeline.media.probe import check_clip

pytestmark = pytest.mark.heavy
SECONDS = 5


@pytest.fixture(scope="module")
def master(tmp_path_factory) -> Path:
    """Five seconds of numbered pictures and of noise, all but lossless."""
    path = tmp_path_factory.mktemp("master") / "master.mkv"
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=25, options={"crf": "12", "preset": "ultrafast"})
        video.width, video.height = SIZE
        video.pix_fmt, video.codec_context.gop_size = "yuv420p", 40
        audio = file.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for number in range(SECONDS * 25):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        wave = NOISES[48_000][: SECONDS * 48_000].astype(np.float32)[None]
        sound = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        sound.sample_rate = 48_000
        file.mux(audio.encode(sound))
        file.mux(audio.encode(None))
    return path


def check(path: Path, picture: int | None = 62, begins_s: float = 1.0, silent: tuple[float, float] = (0, 0)) -> None:
    """The file's centre shows `picture`; its window plays the content from `begins_s` on, but for what is silent."""
    check_clip(path, None)
    clip = read_clip(path, 10.0, 3.0, RATE)
    if picture is not None:
        assert number_of(clip.geometry.rgb(clip.frame, SIZE[1])) == picture
    first = round((min(clip.duration_s, 10) / 2 - 1.5 - clip.audio_start_s) * RATE)
    window = clip.audio_i16[first : first + 3 * RATE] / 32768
    expected = NOISES[RATE][round(begins_s * RATE) :][: 3 * RATE].copy()
    expected[round(silent[0] * RATE) : round(silent[1] * RATE)] = 0
    assert alike(window, expected) > 0.85


def reason(path: Path, fetched: bool = True) -> str:
    """Why the extraction refuses a file, and so does the check of what was `fetched`."""
    with pytest.raises(MediaError) as caught:
        read_clip(path, 10.0, 3.0, RATE)
    if fetched:
        with pytest.raises(MediaError) as also:
            check_clip(path, 10.0)
        assert also.value.reason.replace("network", "corrupt") == caught.value.reason  # cut off on the way
    return caught.value.reason


COPY = ("-c:v", "copy", "-c:a", "aac")
WEBM = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-c:a", "libopus")


def made(master: Path, path: Path, *encode: str) -> Path:
    """The master in another file."""
    run_ffmpeg("-i", master, *(encode or COPY), path)
    return path


def replaced(path: Path, old: bytes, new: bytes, nth: int) -> Path:
    """The file with the nth `old` changed."""
    content, place = path.read_bytes(), -1
    for _ in range(nth):
        place = content.index(old, place + 1)
    path.write_bytes(content[:place] + new + content[place + len(old) :])
    return path


@pytest.mark.parametrize(
    ("name", "streams", "codec", "old", "new", "nth"),
    [
        ("clip.mov", "vaa", "pcm_s16le", b"sowt", b"zzzz", 1),
        ("clip.mov", "vaa", "pcm_s16le", b"sowt", b"zzzz", 2),
        ("clip.mkv", "vaa", "aac", b"A_AAC", b"A_ZZZ", 1),
        ("clip.mkv", "vaa", "aac", b"A_AAC", b"A_ZZZ", 2),
        ("clip.mp4", "vva", "aac", b"avc1", b"zzzz", 2),  # the first is the brand of the file
    ],
)
def test_a_stream_that_no_decoder_knows_beside_one_that_can_be_decoded(
    tmp_path, master, name, streams, codec, old, new, nth
):
    maps = [word for kind in streams for word in ("-map", f"0:{kind}")]
    check(replaced(made(master, tmp_path / name, *maps, "-c:v", "copy", "-c:a", codec), old, new, nth))


def test_sound_alone_that_no_decoder_knows_may_be_read_by_a_newer_one(tmp_path, master):
    assert reason(replaced(made(master, tmp_path / "clip.mkv"), b"A_AAC", b"A_ZZZ", 1)) == "setup"


MANY = {
    "sixteen.mkv": (16, ("-c:a", "pcm_s16le")),
    "twelve.mov": (12, ("-c:a", "pcm_s24le")),
    "twenty_four.mkv": (24, ("-c:a", "pcm_s16le")),
    "ambisonic.mkv": (4, ("-c:a", "libopus", "-mapping_family", "2", "-b:a", "400k")),
    "seven_one.mp4": (8, ("-c:a", "aac", "-b:a", "500k")),
}


@pytest.mark.parametrize("name", MANY)
def test_sound_of_many_channels_becomes_mono_also_in_a_cut(tmp_path, master, name):
    channels, encode = MANY[name]
    layout = {4: "ambisonic 1", 8: "7.1"}.get(channels, f"{channels}C")
    mixed = f"[0:a]pan={layout}|" + "|".join(f"c{k}=c0" for k in range(channels)) + "[a]"
    mix = ("-filter_complex", mixed, "-map", "0:v", "-map", "[a]", "-c:v", "copy")
    path = made(master, tmp_path / name, *mix, *encode)
    check(path)
    cut_clip(path, 0.4, 4.4, tmp_path / "cut.mp4")
    check(tmp_path / "cut.mp4", picture=60, begins_s=0.9)


@pytest.mark.parametrize(("name", "codec"), [("f64.mov", "pcm_f64le"), ("s64.mkv", "pcm_s64le"), ("u8.avi", "pcm_u8")])
def test_pcm_of_every_width_is_read(tmp_path, master, name, codec):
    video = ("-c:v", "mpeg4", "-b:v", "3M") if name.endswith("avi") else ("-c:v", "copy")
    check(made(master, tmp_path / name, *video, "-c:a", codec))


@pytest.mark.parametrize(("name", "codec"), [("sub.mkv", "srt"), ("sub.mp4", "mov_text"), ("sub.webm", "webvtt")])
def test_a_subtitle_that_is_longer_moves_no_centre(tmp_path, master, name, codec):
    text = "1\n00:00:00,500 --> 00:00:01,000\none\n\n2\n00:00:28,000 --> 00:00:29,500\ntwo\n"
    (tmp_path / "text.srt").write_text(text)
    encode = WEBM if name.endswith("webm") else COPY
    check(made(master, tmp_path / name, "-i", str(tmp_path / "text.srt"), *encode, "-c:s", codec))


def with_clap(path: Path, width: int, height: int, right_by: int, down_by: int) -> Path:
    """The mp4 with a clean aperture; its moov stands behind its mdat."""
    clap = struct.pack(">I4s8i", 40, b"clap", width, 1, height, 1, right_by, 1, down_by, 1)
    content = bytearray(path.read_bytes())
    entry = content.index(b"avc1", content.index(b"stsd")) - 4
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        place = content.index(name, content.index(b"moov")) - 4
        content[place : place + 4] = struct.pack(">I", struct.unpack(">I", content[place : place + 4])[0] + 40)
    size = struct.unpack(">I", content[entry : entry + 4])[0]
    content[entry : entry + 4] = struct.pack(">I", size + 40)
    path.write_bytes(content[: entry + size] + clap + content[entry + size :])
    return path


CROPS = [(120, 96, 0, 0), (100, 60, 10, -6), (82, 52, -6, 2)]


def by_ffmpeg(path: Path, folder: Path) -> np.ndarray:
    """The first picture as the ffmpeg program shows it, (H, W, 3)."""
    run_ffmpeg("-i", path, "-frames:v", "1", folder / "shown.png")
    return np.asarray(Image.open(folder / "shown.png").convert("RGB")).astype(float)


@pytest.mark.parametrize(("crop", "suffix"), list(zip(CROPS, ("mp4", "mkv", "mp4"), strict=True)))
def test_what_a_container_crops_is_cropped_as_players_do(tmp_path, master, crop, suffix):
    path = with_clap(made(master, tmp_path / "clip.mp4"), *crop)
    if suffix == "mkv":
        path = made(path, tmp_path / "clip.mkv", "-c", "copy")
    theirs = by_ffmpeg(path, tmp_path)
    assert theirs.shape[:2] == (crop[1], crop[0])  # this ffmpeg crops
    clip = read_clip(path, 0.02, 3.0, RATE)
    assert clip.geometry.displayed_size(clip.frame) == (crop[0], crop[1])
    ours = clip.geometry.rgb(clip.frame, min(crop[:2])).astype(float)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).mean() < 6
    cut_clip(path, 0.5, 4.5, tmp_path / "cut.mp4")
    cut = read_clip(tmp_path / "cut.mp4", 10, 3.0, RATE)
    width, height = cut.geometry.displayed_size(cut.frame)
    assert width in (crop[0], crop[0] - 1) and height in (crop[1], crop[1] - 1)  # H.264 in 4:2:0 has no odd sides


@pytest.mark.parametrize("rect", ["2,0,6,0", "10,4,0,2", "0,6,2,0"])
def test_a_crop_in_the_bit_stream_is_not_moved_to_where_copying_is_quicker(tmp_path, master, rect):
    left, top, right, bottom = map(int, rect.split(","))
    gray = []
    for name, extra in (("clip.mp4", f":crop-rect={rect}"), ("whole.mp4", "")):
        path = made(master, tmp_path / name, "-c:v", "libx264", "-x264-params", f"qp=2{extra}", "-c:a", "aac")
        gray.append(read_clip(path, 10, 3.0, RATE).frame.to_ndarray(format="gray").astype(int))
    assert np.array_equal(gray[0], gray[1][top : SIZE[1] - bottom, left : SIZE[0] - right])


STILL = ("-loop", "1", "-framerate", "25", "-t", "0.04")


@pytest.mark.parametrize("name", ["still.mp4", "still.mkv", "still.mov", "still.flv"])
def test_one_picture_and_sound_is_a_clip_in_every_container(tmp_path, master, name):
    picture = made(master, tmp_path / "one.png", "-frames:v", "1")
    encode = ("-map", "0:v", "-map", "1:a", "-c:a", "aac", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    run_ffmpeg(*STILL, "-i", picture, "-i", master, *encode, tmp_path / name)
    check(tmp_path / name, picture=0)


OTHERS = {
    "start.ts": COPY,
    "clip.mpg": ("-c:v", "mpeg2video", "-b:v", "4M", "-c:a", "mp2"),
    "clip.asf": ("-c:v", "wmv2", "-b:v", "3M", "-c:a", "wmav2"),
    "clip.ogg": ("-c:v", "libtheora", "-q:v", "9", "-c:a", "libvorbis"),
    "clip.flv": COPY,
    "clip.avi": ("-c:v", "mpeg4", "-b:v", "3M", "-bf", "2", "-c:a", "libmp3lame"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_container_gets_the_same_answer_by_every_way_in(tmp_path, master, name):
    path = made(master, tmp_path / name, *OTHERS[name])
    check_clip(path, 5.0)
    clip = read_clip(path, 10.0, 3.0, RATE)
    assert number_of(clip.geometry.rgb(clip.frame, SIZE[1])) in (61, 62, 63)  # silent samples come before the sound
    check(path, picture=None)


BROKEN = {"clip.webm": WEBM, "clip.mp4": (*COPY, "-movflags", "+faststart"), "clip.mkv": COPY, "clip.flv": COPY}
BROKEN |= {name: OTHERS[name] for name in ("clip.asf", "clip.avi")}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_off_before_its_centre_is_refused_whatever_holds_it(tmp_path, master, name):
    path = made(master, tmp_path / name, *BROKEN[name])
    content = path.read_bytes()
    for share in (0.2, 0.35, 0.45):
        path.write_bytes(content[: int(len(content) * share)])
        assert reason(path) == "corrupt", share


@pytest.mark.parametrize("name", ["gap.mp4", "gap.mkv", "gap.ts", "gap.flv"])
def test_a_gap_in_the_sound_is_silence_also_in_a_cut(tmp_path, master, name):
    lost = ("-c", "copy", "-bsf:a", "noise=drop='between(pts*tb\\,1.6\\,2.6)'")
    path = made(made(master, tmp_path / "whole.mkv"), tmp_path / name, *lost)
    check(path, picture=None if name[-2:] in ("ts", "lv") else 62, silent=(0.6, 1.6))
    sound_i16, begins_s = whole_sound(path, RATE)  # what localize hears
    window = sound_i16[round((1.0 - begins_s) * RATE) :][: 3 * RATE] / 32768
    expected = NOISES[RATE][RATE : 4 * RATE].copy()
    expected[round(0.6 * RATE) : round(1.6 * RATE)] = 0
    assert alike(window, expected) > 0.85
    cut_clip(path, 0.4, 4.4, tmp_path / "cut.mp4")
    check(tmp_path / "cut.mp4", picture=None, begins_s=0.9, silent=(0.7, 1.7))


def test_a_stream_that_begins_late_in_the_file_is_found(tmp_path, master, monkeypatch):
    path, late = tmp_path / "a.flv", ("-itsoffset", "2", "-i", str(master), "-map", "0:v", "-map", "1:a")
    flags = bytearray(made(master, path, *late, *COPY).read_bytes())
    flags[4] = 1  # the header names the picture alone
    path.write_bytes(flags)
    whole = survey.open_media
    monkeypatch.setattr(survey, "open_media", lambda path, probe=None: whole(path, probe or {"probesize": "4000"}))
    clip = read_clip(path, 10.0, 3.0, RATE)
    assert clip.audio_start_s == pytest.approx(2.0, abs=0.05) and len(clip.audio_i16) >= 3 * RATE


HARMS = {
    "half of the key frame": lambda data, size: data[: size // 2] + bytes(size - size // 2),
    "its last fifth": lambda data, size: data[: size * 4 // 5] + bytes(size - size * 4 // 5),
    "its beginning": lambda data, size: bytes(40) + data[40:],
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_damaged_reference_before_the_centre_is_refused_also_by_a_cut(tmp_path, master, suffix):
    path = made(master, tmp_path / f"clip.{suffix}")
    whole = path.read_bytes()
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    for number, (name, harm) in product((40, 45), HARMS.items()):
        data = packets[number]
        path.write_bytes(whole.replace(data, harm(data, len(data)), 1))
        assert reason(path, fetched=False) == "corrupt", (number, name)
        with pytest.raises(MediaError):
            cut_clip(path, 1.0, 4.0, tmp_path / "cut.mp4")


@pytest.mark.parametrize("settings", ["intra-refresh=1:bframes=0:keyint=50", "open-gop=1:bframes=3:keyint=20"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_cut_begins_where_decoding_can(tmp_path, master, settings, suffix):
    encode = ("-c:v", "libx264", "-x264-params", f"scenecut=0:{settings}", "-c:a", "aac")
    cut_clip(made(master, tmp_path / f"clip.{suffix}", *encode), 1.0, 4.2, tmp_path / "cut.mp4")
    clip = read_clip(tmp_path / "cut.mp4", 10.0, 3.0, RATE)
    assert number_of(clip.geometry.rgb(clip.frame, SIZE[1])) in (64, 65)


def test_two_files_damaged_in_one_way_are_both_refused(tmp_path, master):
    content = bytearray(made(master, tmp_path / "a.flv").read_bytes())
    content[len(content) // 3 : len(content) // 3 + 3000] = bytes(3000)
    for name in ("a.flv", "b.flv"):
        (tmp_path / name).write_bytes(content)
        assert reason(tmp_path / name, fetched=False) == "corrupt"
