"""The clip out of a whole video, exactly: decoded and encoded anew, because a copy could start only at a key frame."""

import shutil
from pathlib import Path

import ffmpeg

from pipeline.media import MediaError


def ffmpeg_program() -> str:
    """The system's ffmpeg, else the one of the imageio-ffmpeg wheel."""
    program = shutil.which("ffmpeg")
    if program is None:
        import imageio_ffmpeg  # only machines without an ffmpeg need it

        program = imageio_ffmpeg.get_ffmpeg_exe()
    return program


def cut_clip(video: Path, start_s: float, end_s: float, target: Path) -> None:
    """Write `target` (mp4, H.264 and AAC) with the seconds [start_s, end_s) of `video`.

    Near-lossless, so that the frame extracted later is that of the video. Raises MediaError: too_short where the video
    ends before the clip begins, else corrupt.
    """
    source = ffmpeg.input(f"file:{video}", ss=start_s, t=end_s - start_s)
    stream = source.output(
        f"file:{target}", format="mp4", vcodec="libx264", crf=18, preset="veryfast", acodec="aac", audio_bitrate="128k"
    ).global_args("-nostdin", "-loglevel", "error")
    try:
        stream.run(cmd=ffmpeg_program(), capture_stdout=True, capture_stderr=True, overwrite_output=True)
    except ffmpeg.Error as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
        raise MediaError("corrupt", f"not cut: {lines[-1]}") from None
    if target.stat().st_size < 1024:  # a container without a single packet
        raise MediaError("too_short", f"the video ends before {start_s:.0f} s")
