"""Small files of every kind that a clip may be, made by the ffmpeg program, and what that program shows of them."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np

PROGRAM = imageio_ffmpeg.get_ffmpeg_exe()
X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "23"]
AAC = ["-c:a", "aac"]
OPUS = ["-c:a", "libopus"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How one file is made: pictures and noise, the encoder's arguments, then what is done to the finished file."""

    encode: tuple[str, ...]
    seconds: float = 4
    size: str = "96x64"
    rate: str = "10"
    sound: str = "44100:1"
    remux: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """Arguments before and after `-i`, for a copy without encoding."""


def kind(*encode: str, **change) -> Kind:
    return Kind(encode=encode, **change)


def remuxed(*before: str, after: tuple[str, ...] = (), **change) -> Kind:
    return kind(*X264, *AAC, remux=(before, after), **change)


ZOO = {
    "h264.mp4": kind(*X264, *AAC),
    "h264_long_gop.mkv": kind("-c:v", "libx264", "-preset", "medium", "-g", "999", *OPUS, sound="48000:2"),
    "h264.flv": kind(*X264, "-c:a", "libmp3lame", sound="44100:2"),
    "h264.ts": kind(*X264, "-c:a", "mp2", sound="48000:2"),
    "h264.avi": kind(*X264, "-c:a", "libmp3lame"),
    "h264_no_b.avi": kind(*X264, "-bf", "0", "-c:a", "pcm_s16le", sound="8000:1"),
    "hevc.mp4": kind("-c:v", "libx265", "-preset", "ultrafast", "-bf", "2", "-x265-params", "keyint=23", *AAC),
    "hevc_layers.mp4": kind("-c:v", "libx265", "-x265-params", "keyint=99:temporal-layers=1:b-adapt=0:bframes=3", *AAC),
    "vp9.webm": kind("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", *OPUS, sound="48000:1"),
    "av1.mp4": kind("-c:v", "libsvtav1", "-preset", "12", "-g", "20", *AAC),
    "av1.webm": kind("-c:v", "libsvtav1", "-preset", "12", "-g", "99", *OPUS, sound="48000:1"),
    "mpeg4.avi": kind("-c:v", "mpeg4", "-bf", "2", "-c:a", "libmp3lame"),
    "mjpeg.mov": kind("-c:v", "mjpeg", "-c:a", "pcm_s16le", sound="22050:1"),
    "wmv.asf": kind("-c:v", "wmv2", "-c:a", "wmav2", sound="44100:2"),
    "sound_8k.mp4": kind(*X264, *AAC, sound="8000:1"),
    "sound_96k.mkv": kind(*X264, "-c:a", "flac", sound="96000:2"),
    "sound_6_channels.mp4": kind(*X264, *AAC, sound="48000:6"),
    "short.mp4": kind(*X264, *AAC, seconds=0.2, rate="25"),
    "ntsc.mp4": kind(*X264, *AAC, rate="30000/1001"),
    "variable_rate.mkv": kind(*X264, *AAC, "-vf", "select='mod(n*n,7)-2'", "-fps_mode", "vfr", rate="25"),
    "odd_size.mp4": kind(*X264, "-pix_fmt", "yuv444p", *AAC, size="97x63"),
    "ten_bit.mp4": kind("-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le", *AAC),
    "full_range.mp4": kind(*X264, "-vf", "scale=out_range=full", "-color_range", "pc", *AAC),
    "bt709.mp4": kind(
        *X264, "-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", "-color_primaries", "bt709", *AAC
    ),
    "wide_pixels.mp4": kind(*X264, "-vf", "setsar=4/3", *AAC),
    "narrow_pixels.mkv": kind(*X264, "-vf", "setsar=8/9", *AAC),
    "turned_90.mp4": remuxed("-display_rotation", "90"),
    "turned_180.mp4": remuxed("-display_rotation", "180"),
    "turned_270.mov": remuxed("-display_rotation", "-90"),
    "mirrored.mp4": remuxed("-display_hflip"),
    "turned_and_mirrored.mp4": remuxed("-display_rotation", "90", "-display_hflip"),
    "turned_wide_pixels.mp4": kind(*X264, "-vf", "setsar=4/3", *AAC, remux=(("-display_rotation", "90"), ())),
    "edit_list.mp4": remuxed("-ss", "1.3", seconds=8),
    "cut_without_edits.mkv": remuxed("-ss", "1.3", seconds=8),
    "cut.flv": remuxed("-ss", "1.3", seconds=8),
    "negative_start.mkv": remuxed(after=("-output_ts_offset", "-0.7", "-avoid_negative_ts", "disabled")),
    "large_start.ts": remuxed(after=("-output_ts_offset", "5000")),
    "late_video.mp4": remuxed("-itsoffset", "0.7", after=("-map", "0:v", "-map", "1:a")),
    "fragmented.mp4": remuxed(after=("-movflags", "frag_keyframe+empty_moov")),
    "no_duration.mkv": remuxed(after=("-live", "1")),
    "two_pictures.mkv": remuxed(
        after=("-map", "0:v", "-map", "0:v", "-map", "0:a", "-disposition:0", "0", "-disposition:1", "default")
    ),
}


def run_ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([PROGRAM, "-nostdin", "-v", "error", "-y", *map(str, arguments)], check=True)


def make(folder: Path, name: str) -> Path:
    """Write one file of the zoo."""
    recipe, path = ZOO[name], folder / name
    rate, channels = recipe.sound.split(":")
    noise = f"anoisesrc=amplitude=0.3:sample_rate={rate}:duration={recipe.seconds}:seed="
    sounds = [part for k in range(int(channels)) for part in ("-f", "lavfi", "-i", f"{noise}{k}")]
    merged = "".join(f"[{k + 1}:a]" for k in range(int(channels))) + f"amerge=inputs={channels}[a]"
    sound = ["-map", "1:a"] if channels == "1" else ["-filter_complex", merged, "-map", "[a]"]
    pictures = f"testsrc2=size={recipe.size}:rate={recipe.rate}:duration={recipe.seconds}"
    pixels = [] if "-pix_fmt" in recipe.encode or "mjpeg" in recipe.encode else ["-pix_fmt", "yuv420p"]
    first = path if recipe.remux is None else path.with_suffix(f".first{path.suffix}")
    encode = ["-map", "0:v", *sound, "-threads", "1", *pixels, *recipe.encode]
    run_ffmpeg("-f", "lavfi", "-i", pictures, *sounds, *encode, first)
    if recipe.remux is not None:
        before, after = recipe.remux
        other = ["-i", first] if "-itsoffset" in before else []
        run_ffmpeg(*before, "-i", first, *other, "-c", "copy", *after, path)
        first.unlink()
    return path


def shown(path: Path, size: tuple[int, int]) -> tuple[list[float], float, np.ndarray]:
    """What ffmpeg shows of a file.

    Returns the times of its frames, s from the start; width over height as shown; the frames scaled to `size`,
    (N, H, W, 3) uint8. The sound is read too: without it the start would be that of the picture alone.
    """
    picture = f"showinfo,scale={size[0]}:{size[1]}:flags=bicubic"
    command = [PROGRAM, "-nostdin", "-i", path, "-an", "-vf", picture, "-fps_mode", "passthrough", "-pix_fmt", "rgb24"]
    done = subprocess.run([*command, "-f", "rawvideo", "-", "-vn", "-f", "null", "-"], capture_output=True, check=True)
    log = done.stderr.decode(errors="replace")
    found = re.findall(r"pts_time:(\S+).* sar:(\d+)/(\d+) s:(\d+)x(\d+)", log)
    across, down, width, height = (int(text) for text in found[0][1:])
    pictures = np.frombuffer(done.stdout, np.uint8).reshape(-1, size[1], size[0], 3)
    return [float(row[0]) for row in found], width * (across or 1) / (down or 1) / height, pictures


def heard(path: Path, rate: int) -> np.ndarray:
    """(N,) int16 mono that ffmpeg makes of the whole file's sound."""
    command = [PROGRAM, "-nostdin", "-v", "error", "-i", path, "-vn", "-ac", "1", "-ar", str(rate), "-f", "s16le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, "<i2")
