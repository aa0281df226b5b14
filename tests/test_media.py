"""The picture and the sound out of a clip, against decoding all of it; unusable files, each with its reason."""

import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from shared_files import SHARED

from avpipe.pipeline.media import ClipMedia, MediaError, read_clip

RATE = 16_000
REAL = sorted((SHARED / "clips").glob("*.mp4")) if SHARED and (SHARED / "clips").is_dir() else []
SKIP_REAL = pytest.mark.skip(reason="no real clips: set AVPIPE_SHARED to a folder that has clips/*.mp4")


def write_clip(
    path: Path,
    *,
    seconds: float = 4.0,
    sound_s: float | None = None,
    rate: Fraction | int = 10,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    options: dict | None = None,
    gop: int = 250,
    ticks: list[int] | None = None,
    audio_codec: str = "aac",
    sample_rate: int = 44_100,
    layout: str = "mono",
    movflags: str = "",
) -> Path:
    """A small clip in which no two frames and no two stretches of sound are alike; 0 s leaves a stream out.

    `ticks` are the presentation times of the frames in units of 1 / rate, one after the other if not given.
    """
    random_ = np.random.default_rng(1)
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        if ticks is None:
            ticks = list(range(round(seconds * rate)))
        video = _add_video(container, codec, rate, size, gop, options) if ticks else None
        sound_s = float(seconds if sound_s is None else sound_s)
        audio = container.add_stream(audio_codec, rate=sample_rate, layout=layout) if sound_s else None
        columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        for number, tick in enumerate(ticks):
            planes = columns * 2 + number * 5, rows * 3 + number * 7, np.full_like(rows, number * 11)
            frame = av.VideoFrame.from_ndarray(np.stack(planes, -1).astype(np.uint8), format="rgb24")
            frame.pts = tick
            container.mux(video.encode(frame))
        if video:
            container.mux(video.encode(None))
        if audio:
            channels = len(audio.layout.channels)
            wave = (random_.standard_normal((channels, round(sound_s * sample_rate))) * 0.1).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=layout)
            frame.sample_rate = sample_rate
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def _add_video(container, codec: str, rate, size: tuple[int, int], gop: int, options: dict | None):
    video = container.add_stream(codec, rate=rate)
    video.width, video.height, video.pix_fmt = *size, "yuv420p"
    video.codec_context.gop_size = gop
    video.codec_context.thread_count = 1
    video.options = options or {}
    return video


def all_frames(path: Path, until_s: float = np.inf) -> list[av.VideoFrame]:
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame)
            if frame.time > until_s:
                break
    return frames


def all_sound(path: Path) -> np.ndarray:
    """All of the sound as it is played: each unbroken stretch resampled as a whole, silence in the gaps between."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    begins, end_s, last = [], None, None
    for number, frame in enumerate(frames):
        kind = frame.sample_rate, frame.layout.name
        if number == 0 or kind != last or (frame.time is not None and frame.time - end_s > 0.1):
            begins.append(number)
        start_s = end_s if frame.time is None or number not in begins else frame.time
        end_s, last = (start_s or 0.0) + frame.samples / frame.sample_rate, kind
    whole = np.empty(0, np.int16)
    for first, following in zip(begins, [*begins[1:], len(frames)], strict=True):
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        blocks = [b.to_ndarray()[0] for f in [*frames[first:following], None] for b in resampler.resample(f)]
        gap = round(((frames[first].time or 0.0) - (frames[0].time or 0.0)) * RATE) - len(whole)
        whole = np.concatenate([whole, np.zeros(max(gap, 0) if gap > RATE // 20 else 0, np.int16), *blocks])
    return whole


def sound_before(clip: ClipMedia, path: Path) -> int:
    """Samples of the whole sound before those of a clip."""
    with av.open(str(path)) as container:
        first_s = next(container.decode(audio=0)).time - container.start_time / av.time_base
    return round((clip.audio_start_s - first_s) * RATE)


def assert_same_as_decoding_everything(path: Path, clip_lengths_s: list[float], until_s: float = np.inf) -> None:
    """For each length, the frame is the last with time <= half of it, and the sound a part around it."""
    frames, sound = all_frames(path, until_s), all_sound(path)
    with av.open(str(path)) as container:
        duration_s, start_s = container.duration / av.time_base, container.start_time / av.time_base
        rate = container.streams.video[0].average_rate
    for clip_s in clip_lengths_s:
        centre_s = min(duration_s, clip_s) / 2
        times = [frame.time - start_s for frame in frames]
        if path.suffix == ".avi":  # keeps no presentation times: pictures come one a tick
            times = [number / float(rate) for number in range(len(frames))]
        place = max((k for k in range(len(frames)) if times[k] <= centre_s + 1e-6), key=lambda k: times[k])
        wanted = frames[place]
        clip = read_clip(path, clip_s, 3.0, RATE)
        assert clip.frame_time_s == pytest.approx(times[place])
        assert np.array_equal(clip.frame.to_ndarray(), wanted.to_ndarray())
        assert clip.duration_s == pytest.approx(duration_s)
        assert clip.audio_i16.dtype == np.int16
        before = sound_before(clip, path)
        own = sound[max(before, 0) :][: len(clip.audio_i16)]
        silence = max(-before, 0), len(clip.audio_i16) - max(-before, 0) - len(own)
        assert np.array_equal(clip.audio_i16, np.pad(own, silence))
        assert max(silence) == 0 or max(silence) > RATE // 2
        end_s = clip.audio_start_s + len(clip.audio_i16) / RATE
        assert (clip.audio_start_s <= centre_s - 1.5 and end_s >= centre_s + 1.5) or (
            before == 0 and (len(clip.audio_i16) >= 3 * RATE or len(clip.audio_i16) == len(sound))
        )


def vary(count: int) -> list[int]:
    steps = np.random.default_rng(2).integers(1, 9, count)
    return [0, *np.cumsum(steps).tolist()]


X264 = {
    "b_frames_one_key_frame": {"rate": 25, "options": {"x264-params": "bframes=3:b-pyramid=normal:keyint=999"}},
    "open_gop": {"rate": 25, "options": {"x264-params": "open-gop=1:keyint=10:bframes=3:scenecut=0"}, "gop": 10},
    "no_b_frames": {"options": {"x264-params": "bframes=0:keyint=7"}},
    "key_frames_only": {"options": {"x264-params": "keyint=1"}},
    "variable_rate": {"rate": 50, "ticks": vary(40), "options": {"x264-params": "bframes=2:keyint=15"}},
    "ntsc": {"rate": Fraction(30000, 1001), "options": {"x264-params": "bframes=2:keyint=40"}},
    "video_shorter_than_sound": {"seconds": 1.2, "sound_s": 4},
    "sound_shorter_than_video": {"seconds": 4, "sound_s": 1.7},
    "two_seconds": {"seconds": 2},
    "stereo_48k": {"seconds": 5, "sample_rate": 48_000, "layout": "stereo"},
}
LENGTHS_S = [10, 3.6, 3.3, 2.96, 2.4, 2.0, 1.77, 1.1, 0.7]


@pytest.mark.parametrize("case", X264)
def test_h264_gives_what_decoding_everything_gives(tmp_path, case):
    assert_same_as_decoding_everything(write_clip(tmp_path / "clip.mp4", **X264[case]), LENGTHS_S)


@pytest.mark.parametrize("path", REAL or [pytest.param(None, marks=SKIP_REAL)], ids=lambda path: path and path.stem)
def test_real_clips_give_what_decoding_everything_gives(path):
    # Frames come in the order of their times: none later than 5.5 s can be the one at five.
    assert_same_as_decoding_everything(path, [10], until_s=5.5)


def test_a_frame_at_the_very_centre_is_taken(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", rate=10)
    assert read_clip(path, 3.0, 3.0, RATE).frame_time_s == 1.5
    assert read_clip(path, 2.4, 3.0, RATE).frame_time_s == 1.2  # half of the float 2.4 is less than 12 / 10
    assert read_clip(path, 2.9999, 3.0, RATE).frame_time_s == pytest.approx(1.4)


def test_sound_whose_format_changes_midway_is_read_on(tmp_path):
    mono, stereo, both = tmp_path / "mono.ts", tmp_path / "stereo.ts", tmp_path / "both.ts"
    write_clip(mono, seconds=2, codec="mpeg2video", rate=25)
    write_clip(stereo, seconds=2, codec="mpeg2video", rate=25, layout="stereo")
    both.write_bytes(mono.read_bytes() + stereo.read_bytes())
    first, second = (read_clip(path, 60, 10, RATE).audio_i16 for path in (mono, stereo))
    together = read_clip(both, 60, 60, RATE).audio_i16
    assert np.array_equal(together[: len(first) - 100], first[:-100])  # resampler and decoder end in silence
    assert len(together) == pytest.approx(len(first) + len(second), abs=RATE // 10)


def reason_of(path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(path, 10, 3.0, RATE)
    assert caught.value.detail
    return caught.value.reason


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def test_what_cannot_be_used_has_its_reason(tmp_path):
    path = tmp_path / "clip.mp4"
    for content in (b"", b"404 Not Found\n" * 50, bytes(5000)):
        path.write_bytes(content)
        assert reason_of(path) == "corrupt"
    assert reason_of(cut(write_clip(path), 0.7)) == "corrupt"  # its index stood at the end
    for share in (0.2, 0.4):
        assert reason_of(cut(write_clip(path, seconds=10, movflags="+faststart"), share)) == "corrupt"
    assert reason_of(write_clip(path, sound_s=0)) == "no_audio"
    assert reason_of(write_clip(path, seconds=0, sound_s=4)) == "no_video"
    head, sample_table = write_clip(path).read_bytes().split(b"stsd", 1)
    path.write_bytes(head + b"stsd" + sample_table.replace(b"avc1", b"zzzz", 1))
    assert reason_of(path) == "setup"  # another decoder may know it
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_clip(path, 10, 3.0, RATE)


def test_a_file_that_breaks_off_after_what_is_needed_is_as_good_as_whole(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", seconds=10, movflags="+faststart")
    whole = read_clip(path, 10, 3.0, RATE)
    broken = read_clip(cut(path, 0.85), 10, 3.0, RATE)
    assert broken.frame_time_s == whole.frame_time_s
    assert np.array_equal(broken.frame.to_ndarray(), whole.frame.to_ndarray())
    assert np.array_equal(broken.audio_i16, whole.audio_i16)


def test_media_errors_cross_process_borders():
    error = pickle.loads(pickle.dumps(MediaError("no_audio", "the file has no audio stream")))
    assert (error.reason, error.detail, str(error)) == ("no_audio", *["the file has no audio stream"] * 2)


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((320, 240), (341, 256)), ((96, 160), (256, 427)), ((64, 64), (256, 256)), ((640, 360), (455, 256))],
)
def test_scaling_keeps_the_whole_picture(tmp_path, size, scaled):
    path = write_clip(tmp_path / "clip.mp4", seconds=1, size=size)
    clip = read_clip(path, 10, 3.0, RATE)
    frame, ours = clip.frame, clip.geometry.rgb(clip.frame, 256)
    assert ours.dtype == np.uint8
    assert ours.shape == (scaled[1], scaled[0], 3)
    theirs = frame.to_image().resize(scaled, Image.Resampling.BICUBIC)
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).mean() < 4
