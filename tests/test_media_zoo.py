"""Frame and sound of every kind of file against what the ffmpeg program shows and plays of it; what is refused."""

from fractions import Fraction

import av
import numpy as np
import pytest
from media_zoo import X264 as X264_FAST
from media_zoo import ZOO, heard, make, run_ffmpeg, shown
from test_media import RATE, X264, all_sound, assert_same_as_decoding_everything, reason_of, sound_before, write_clip

from avpipe.pipeline.media import MediaError, container, read_clip, survey

pytestmark = pytest.mark.heavy


def coarse(rgb: np.ndarray) -> np.ndarray:
    """Means of blocks of 4 x 4 pixels: how colour is interpolated between pixels is each program's own."""
    height, width = rgb.shape[0] // 4 * 4, rgb.shape[1] // 4 * 4
    return rgb[:height, :width].astype(float).reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))


@pytest.mark.parametrize("name", ZOO)
def test_frame_and_sound_are_those_that_ffmpeg_shows_and_plays(tmp_path, name):
    path = make(tmp_path, name)
    clips = [read_clip(path, clip_s, 3.0, RATE) for clip_s in (60, 3.5, 2.2, 1.7)]
    size = clips[0].geometry.displayed_size(clips[0].frame)
    times, aspect, pictures = shown(path, size)
    if path.suffix == ".avi":  # it keeps no presentation times, and ffmpeg shows pictures when they are decoded
        times = [number / float(Fraction(ZOO[name].rate)) for number in range(len(times))]
    assert size[0] / size[1] == pytest.approx(aspect, rel=0.6 / min(size))
    whole, theirs = all_sound(path), heard(path, RATE).astype(int)
    for clip, clip_s in zip(clips, (60, 3.5, 2.2, 1.7), strict=True):
        centre_s = min(clip.duration_s, clip_s) / 2
        wanted = max(k for k, time in enumerate(times) if time <= centre_s + 1e-4)
        assert clip.frame_time_s == pytest.approx(times[wanted], abs=2e-3)
        ours = coarse(clip.geometry.rgb(clip.frame, min(size)))
        apart = {k: np.abs(ours - coarse(pictures[k])).mean() for k in range(len(times)) if abs(k - wanted) < 3}
        assert min(apart, key=apart.get) == wanted
        assert apart[wanted] < 4.5
        assert np.abs((ours - coarse(pictures[wanted])).mean((0, 1))).max() < 2
        first = sound_before(clip, path)
        end = first + len(clip.audio_i16)
        silence = max(end - len(whole), 0) if name == "late_video.mp4" else 0
        assert np.array_equal(clip.audio_i16, np.pad(whole[first:end], (0, silence)))
        assert len(clip.audio_i16) >= min(3 * RATE, len(whole))
        if len(whole) - len(theirs) > RATE // 20:  # without asking for more, ffmpeg closes gaps
            continue
        end -= silence
        if end > len(theirs):  # it cuts the padding of the last packet, and ends in the resampler's silence
            assert end - len(theirs) < 1024
            end = len(theirs) - 50
        assert np.abs(clip.audio_i16[: end - first] - theirs[first:end]).max() <= 2


@pytest.mark.parametrize("case", ["b_frames_one_key_frame", "variable_rate", "sound_shorter_than_video"])
def test_more_packets_than_are_held_change_nothing(tmp_path, case, monkeypatch):
    monkeypatch.setattr(survey, "HELD_BYTES", 3000)
    assert_same_as_decoding_everything(write_clip(tmp_path / "clip.mp4", **X264[case]), [10, 3.3, 2.4, 1.1])


def test_a_cover_picture_is_no_video(tmp_path):
    clip, cover = write_clip(tmp_path / "clip.mp4"), tmp_path / "cover.jpg"
    run_ffmpeg("-i", clip, "-frames:v", "1", cover)
    attached = ("-c", "copy", "-disposition:v", "attached_pic")
    run_ffmpeg("-i", clip, "-i", cover, "-map", "0:a", "-map", "1:v", *attached, tmp_path / "song.mp4")
    assert reason_of(tmp_path / "song.mp4") == "no_video"
    both = ("-map", "1:v", "-map", "0:v", "-map", "0:a", "-c", "copy", "-disposition:0", "attached_pic")
    run_ffmpeg("-i", clip, "-i", cover, *both, tmp_path / "both.mp4")
    frame = read_clip(clip, 10, 3.0, RATE).frame
    assert np.array_equal(read_clip(tmp_path / "both.mp4", 10, 3.0, RATE).frame.to_ndarray(), frame.to_ndarray())


def test_a_long_file_has_its_centre_in_the_middle(tmp_path):
    path = tmp_path / "clip.mkv"
    pictures, sound = "testsrc2=size=32x32:rate=2:duration=600", "anoisesrc=sample_rate=8000:duration=600"
    run_ffmpeg(
        "-f", "lavfi", "-i", pictures, "-f", "lavfi", "-i", sound, *X264_FAST, "-g", "9999", "-c:a", "pcm_s16le", path
    )
    clip = read_clip(path, np.inf, 3.0, RATE)
    assert (clip.duration_s, clip.frame_time_s) == (pytest.approx(600, abs=0.2), pytest.approx(300, abs=0.5))
    assert 298 < clip.audio_start_s <= 298.5
    assert 301.5 <= clip.audio_start_s + len(clip.audio_i16) / RATE < 303


def test_files_that_name_other_files_are_refused(tmp_path):
    write_clip(tmp_path / "whole.ts", codec="mpeg2video", rate=25)
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nwhole.ts\n#EXT-X-ENDLIST\n"
    for name, text in {"hls.mp4": playlist, "concat.mp4": "ffconcat version 1.0\nfile whole.ts\n"}.items():
        (tmp_path / name).write_text(text)
        assert reason_of(tmp_path / name) == "corrupt"
    with av.open(str(tmp_path / "concat.mp4")) as container:  # without our limits it would be read
        assert container.streams.video


def test_absurd_pictures_are_refused(tmp_path):
    for size, words in (("9000x8000", "9000x8000|Invalid argument"), ("4000x32", "picture of 4000x32")):
        path, sound = tmp_path / f"{size}.mkv", ("-f", "lavfi", "-i", "anoisesrc=duration=1")
        picture = ("-f", "lavfi", "-i", f"color=size={size}:rate=2:duration=1")
        run_ffmpeg(*picture, *sound, "-c:v", "mjpeg", "-q:v", "31", "-c:a", "aac", path)
        with pytest.raises(MediaError, match=words) as caught:
            read_clip(path, 10, 3.0, RATE)
        assert caught.value.reason == "corrupt"


def test_a_picture_that_grows_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "MAX_PIXELS", 200 * 100)
    assert read_clip(write_clip(tmp_path / "fits.mp4"), 10, 3.0, RATE).frame.width == 96
    small, large, both = (tmp_path / f"{name}.ts" for name in ("small", "large", "both"))
    write_clip(small, seconds=1, codec="mpeg2video", rate=25)
    write_clip(large, seconds=4, codec="mpeg2video", rate=25, size=(320, 240))
    both.write_bytes(small.read_bytes() + large.read_bytes())
    assert reason_of(both) == "corrupt"
