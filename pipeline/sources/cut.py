"""The clip out of a whole video, exactly: decoded and encoded anew, because a copy could start only at a key frame."""

import shutil
from pathlib import Path

import ffmpeg

from pipeline.media import END_TOLERANCE_S, MediaError
from pipeline.sources.probe import READ_ONLY_THIS, check_clip, probe


def ffmpeg_program() -> str:
    """The system's ffmpeg, else the one of the imageio-ffmpeg wheel."""
    program = shutil.which("ffmpeg")
    if program is None:
        import imageio_ffmpeg  # only machines without an ffmpeg need it

        program = imageio_ffmpeg.get_ffmpeg_exe()
    return program


def cut_clip(video: Path, start_s: float, end_s: float, target: Path) -> None:
    """Write `target` (mp4, H.264 and AAC) with the seconds [start_s, end_s) of `video`, as far as it has them.

    Near-lossless, so that the frame extracted later is that of the video. The result must begin at once and last as
    long as the video promises, within half a second. Raises MediaError: too_short where the video ends before the
    middle of the clip, corrupt where it does not hold what it promises, and those of `probe`.
    """
    held_s = min(end_s, probe(video).duration_s) - start_s
    if held_s < (end_s - start_s) / 2 - END_TOLERANCE_S:
        raise MediaError("too_short", f"the video ends {max(held_s, 0):.1f} s after {start_s:.0f} s")
    _encode(video, start_s, end_s, target)
    if target.stat().st_size < 1024:  # a container without a single packet
        raise MediaError("corrupt", f"the video holds nothing behind {start_s:.0f} s")
    check_clip(target, length_s=None)
    made_s = probe(target).duration_s
    if made_s < held_s - END_TOLERANCE_S:
        raise MediaError("corrupt", f"the cut gave {made_s:.2f} s of {held_s:.2f} s")


def _encode(video: Path, start_s: float, end_s: float, target: Path) -> None:
    source = ffmpeg.input(f"file:{video}", ss=start_s, t=end_s - start_s, **READ_ONLY_THIS)
    stream = source.output(
        f"file:{target}", format="mp4", vcodec="libx264", crf=18, preset="veryfast", acodec="aac", audio_bitrate="128k"
    ).global_args("-nostdin", "-loglevel", "error")
    try:
        stream.run(cmd=ffmpeg_program(), capture_stdout=True, capture_stderr=True, overwrite_output=True)
    except ffmpeg.Error as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["ffmpeg failed"]
        raise MediaError("corrupt", f"not cut: {lines[-1]}") from None
