"""CPU time of making one sample: avpipe against the scripts that papers use, on the same clips in the same run.

    python tests/benchmarks/extract.py CLIPS_DIR [--rounds 5] [--json FILE]

Every way makes, of each clip, a JPEG of the frame at its centre, three seconds of mono sound at 16 kHz and their
spectrogram. The ways take turns clip by clip on one core; what counts is CPU time, of child processes too, in
milliseconds: the median over the rounds for each clip, then the mean over the clips. The run also checks that avpipe's
frame and sound are those of decoding everything, and says which frames the others take.
"""

import argparse
import importlib.util
import io
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# One core is compared: one thread each.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import av
import numpy as np
import soundfile
from common import cpu_seconds
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.signal import spectrogram

from avpipe.pipeline.core.ledger import Ledger, Outcome
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.core.samples import encode_jpeg
from avpipe.pipeline.download.cut import ffmpeg_program
from avpipe.pipeline.extract import cache_part, stage
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import pcm_to_float
from avpipe.pipeline.media import read_clip
from avpipe.pipeline.media.shown import Geometry

RATE, SETTINGS = 16_000, ExtractSettings()
# Clips that one worker gets at a time where workers are compared: small, so that both end at about the same time.
PART = 4
FLOOR = "floor: decoding alone"


def ffmpeg_commands(clip: Path, folder: Path) -> None:
    """What most repositories do: one command for the frame, one for the sound, then SciPy."""
    picture, sound = folder / "frame.jpg", folder / "sound.wav"
    program = [ffmpeg_program(), "-nostdin", "-v", "error", "-y"]
    subprocess.run([*program, "-ss", "5", "-i", clip, "-frames:v", "1", "-q:v", "2", picture], check=True)
    subprocess.run([*program, "-ss", "3.5", "-t", "3", "-i", clip, "-ac", "1", "-ar", str(RATE), sound], check=True)
    log_spectrogram(soundfile.read(sound, dtype="float32")[0])


def pyav_from_start(clip: Path, folder: Path) -> None:
    """Decode every frame up to the centre and all sound."""
    frame = frames_until(clip, 5.0)[-1]
    encode_jpeg(Geometry().rgb(frame, SETTINGS.frame_short_side), SETTINGS.jpeg_quality)
    wave = pcm_to_float(whole_sound(clip)[56_000:104_000])
    soundfile.write(folder / "sound.wav", wave, RATE)
    log_spectrogram(wave)


def torchcodec_exact(clip: Path, folder: Path) -> None:
    """torchcodec's exact seek; its own resampler."""
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    frame = VideoDecoder(str(clip), num_ffmpeg_threads=1).get_frame_played_at(5.0).data
    Image.fromarray(frame.permute(1, 2, 0).numpy()).resize((455, 256)).save(folder / "frame.jpg", quality=90)
    decoder = AudioDecoder(str(clip), sample_rate=RATE, num_channels=1)
    wave = decoder.get_samples_played_in_range(3.5, 6.5).data[0].numpy()
    soundfile.write(folder / "sound.wav", wave, RATE)
    log_spectrogram(wave)


def avpipe(clip: Path, folder: Path) -> None:
    stage.make_sample(clip, SETTINGS)


def floor(clip: Path, folder: Path) -> None:
    """What no way can leave out: opening, reference frames from key frame to centre, the sound to its window's end."""
    with av.open(str(clip)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_count = 1
        way: list[av.Packet] = []
        for packet in container.demux(video, audio):
            time_s = float((packet.dts if packet.dts is not None else 0) * packet.time_base)
            if packet.stream is audio:
                if time_s < 6.5:
                    packet.decode()
            elif time_s <= 5.0 and packet.size:
                way = [packet] if packet.is_keyframe and packet.pts * packet.time_base <= 5 else [*way, packet]
            if time_s > 6.5:
                break
        target = max((p for p in way if p.pts * p.time_base <= 5), key=lambda p: p.pts)
        for packet in way[: way.index(target) + 1]:
            video.codec_context.skip_frame = "DEFAULT" if packet is target else "NONREF"
            video.codec_context.decode(packet)
        video.codec_context.decode(None)


def log_spectrogram(wave: np.ndarray) -> np.ndarray:
    return np.log(spectrogram(wave, RATE, nperseg=512, noverlap=274)[2] + 1e-7)


def frames_until(clip: Path, time_s: float) -> list[av.VideoFrame]:
    """The last ten frames with time <= `time_s`, by decoding from the start."""
    frames: list[av.VideoFrame] = []
    with av.open(str(clip)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            if frame.time > time_s:
                break
            frames = [*frames[-9:], frame]
    return frames


def whole_sound(clip: Path) -> np.ndarray:
    """(N,) int16 mono of the whole clip."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(str(clip)) as container:
        blocks = [b for frame in [*container.decode(audio=0), None] for b in resampler.resample(frame)]
    return np.concatenate([block.to_ndarray().reshape(-1) for block in blocks])


def measure(ways: dict[str, Callable], clips: list[Path], rounds: int, folder: Path) -> dict[str, list[float]]:
    """{way: CPU ms of each clip, median over the rounds}; the first round warms up and does not count."""
    taken = {name: [[] for _ in clips] for name in ways}
    for round_ in range(rounds + 1):
        for number, clip in enumerate(clips):
            for name, way in ways.items():
                begin = cpu_seconds()
                way(clip, folder)
                if round_:
                    taken[name][number].append(1000 * (cpu_seconds() - begin))
    return {name: [statistics.median(times) for times in of_clips] for name, of_clips in taken.items()}


def check(clip: Path, folder: Path) -> dict:
    """Is avpipe's frame and sound that of decoding everything; how many frames is ffmpeg's off?"""
    ours = read_clip(clip, SETTINGS.clip_s, SETTINGS.audio_s, RATE)
    before = frames_until(clip, min(ours.duration_s, SETTINGS.clip_s) / 2)
    sound = whole_sound(clip)
    with av.open(str(clip)) as container:
        sound_starts_s = next(container.decode(audio=0)).time - container.start_time / av.time_base
    begin = round((ours.audio_start_s - sound_starts_s) * RATE)
    after = frames_until(clip, before[-1].time + 0.5)
    ffmpeg_commands(clip, folder)
    theirs = np.asarray(Image.open(io.BytesIO((folder / "frame.jpg").read_bytes())).convert("RGB"), float)
    near = {frame.time: np.abs(frame.to_ndarray(format="rgb24") - theirs).mean() for frame in [*before, *after]}
    order = sorted(near)
    return {
        "frame_exact": bool(np.array_equal(ours.frame.to_ndarray(), before[-1].to_ndarray())),
        "sound_exact": bool(np.array_equal(ours.audio_i16, sound[begin:][: len(ours.audio_i16)])),
        "ffmpeg_frames_off": order.index(min(order, key=near.get)) - order.index(before[-1].time),
    }


def clips_per_second(clips: list[Path], workers: int) -> float:
    """Of the whole stage with that many workers, from the first finished part to the last: without their start."""
    cache_part.CLIPS_PER_PART = PART
    with tempfile.TemporaryDirectory() as folder:
        root, ids = Root(Path(folder)), [f"abcdefghijk_{number:06d}" for number in range(16 * PART)]
        root.clips.mkdir(parents=True)
        for number, clip_id in enumerate(ids):
            root.clip_file(clip_id).symlink_to(clips[number % len(clips)].resolve())
        Ledger(root.ledger, "download").write([Outcome(clip_id=clip_id, sha256="0" * 64) for clip_id in ids])
        ends: list[float] = []
        stage.extract(root, ids, SETTINGS, workers, on_outcome=lambda outcomes: ends.append(time.monotonic()))
    return (len(ids) - workers * PART) / (ends[-1] - ends[workers - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, metavar="CLIPS_DIR", help="folder of mp4 files of ten seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    clips = sorted(arguments.clips.glob("*.mp4"))
    if not clips:
        parser.error(f"{arguments.clips} has no mp4 files")
    ways = {"two ffmpeg commands + SciPy": ffmpeg_commands, "PyAV from the start + SciPy": pyav_from_start}
    if importlib.util.find_spec("torchcodec"):
        ways["torchcodec + SciPy"] = torchcodec_exact
    ways[FLOOR] = floor
    ways["avpipe"] = avpipe
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    with tempfile.TemporaryDirectory() as folder:
        facts = [check(clip, Path(folder)) for clip in clips]
        taken = measure(ways, clips, arguments.rounds, Path(folder))
    os.sched_setaffinity(0, cores)
    rates = [[clips_per_second(clips, workers) for workers in (1, 2)] for _ in range(3)] if len(cores) > 1 else []
    report = {
        "clips": {clip.name: facts[k] | {n: round(t[k], 1) for n, t in taken.items()} for k, clip in enumerate(clips)},
        "cpu_ms": {name: round(statistics.mean(times), 1) for name, times in taken.items()},
        "ratio": {name: ratios(taken, name) for name in taken},
        "share_of_floor": round(sum(taken[FLOOR]) / sum(taken["avpipe"]), 3),
        "clips_per_second_1_and_2_workers": rates,
        "speed_up_1_to_2_workers": round(statistics.median(two / one for one, two in rates), 2) if rates else None,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    show(report, taken)


def ratios(taken: dict[str, list[float]], name: str) -> dict[str, float]:
    """How many times as fast as the first way: all clips together, the median clip, the extremes."""
    first = next(iter(taken))
    by_clip = [base / time_ for base, time_ in zip(taken[first], taken[name], strict=True)]
    found = {"all": sum(taken[first]) / sum(taken[name]), "median_clip": statistics.median(by_clip)}
    found |= {"smallest": min(by_clip), "largest": max(by_clip)}
    return {key: round(value, 2) for key, value in found.items()}


def show(report: dict, taken: dict[str, list[float]]) -> None:
    first = next(iter(taken))
    table = Table("way", "CPU ms a clip", f"times as fast as {first}: all clips", "median clip", "smallest to largest")
    for name, times in taken.items():
        found = report["ratio"][name]
        span = f"{found['smallest']:.2f} to {found['largest']:.2f}"
        table.add_row(name, f"{statistics.mean(times):.0f}", f"{found['all']:.2f}", f"{found['median_clip']:.2f}", span)
    facts = list(report["clips"].values())
    console = Console(width=120)
    console.print(table)
    for what in ("frame_exact", "sound_exact"):
        console.print(f"{what}: {sum(fact[what] for fact in facts)} of {len(facts)}")
    off = sorted(fact["ffmpeg_frames_off"] for fact in facts)
    console.print(f"the ffmpeg command's frame, frames after the exact one: {off}")
    console.print(f"avpipe's time that is the floor's: {report['share_of_floor']:.2f}")
    console.print(f"1 to 2 workers: {report['speed_up_1_to_2_workers']} times")


if __name__ == "__main__":
    main()
