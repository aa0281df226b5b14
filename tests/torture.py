"""Files whose truth is known by the picture and by the sound, made odd in every way that the format allows, by a seed.

Each picture carries its number as bars; the sound is noise that can be placed again by correlation. What a player shows
at a moment follows from how the file was made, not from any decoder. By hand:

    python tests/torture.py --count 2000 [--seed 0]
"""

import argparse
import random
import struct
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avpipe.pipeline.media import MediaError, read_clip

BITS, FPS, RATE, SIZE = 10, 25, 16_000, (160, 96)
NOISE_S = 12
CONTAINERS = ("mp4", "mkv", "webm", "ts", "avi", "flv")
X264 = ("bframes=0", "bframes=3:b-pyramid=normal", "bframes=2:open-gop=1", "intra-refresh=1:bframes=0", "bframes=16")
WRAP_S = 2**33 / 90_000


def noise(rate: int) -> np.ndarray:
    """(N,) float64, the same sound at any rate: nothing below 200 or above 3,000 Hz."""
    full = 48_000
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(full * NOISE_S) * 0.12)
    hertz = np.fft.rfftfreq(full * NOISE_S, 1 / full)
    spectrum[(hertz > 3_000) | (hertz < 200)] = 0
    return np.fft.irfft(spectrum[: rate * NOISE_S // 2 + 1], rate * NOISE_S) * rate / full


NOISES = {rate: noise(rate) for rate in (RATE, 44_100, 48_000)}


def numbered_picture(number: int) -> np.ndarray:
    """uint8 (H, W, 3): the number as ten bars, the least significant left, over something that moves."""
    width, height = SIZE
    rows, columns = np.mgrid[:height, :width]
    picture = np.repeat(((rows * 2 + columns + number * 3) % 256).astype(np.uint8)[..., None], 3, 2)
    for bit in range(BITS):
        picture[20:60, bit * width // BITS : (bit + 1) * width // BITS] = 235 if number >> bit & 1 else 20
    return picture


def number_of(rgb: np.ndarray) -> int:
    """The number that a picture carries."""
    height, width = rgb.shape[:2]
    rows = slice(int(height * 0.3), int(height * 0.5))
    bars = [rgb[rows, int((b + 0.25) * width / BITS) : int((b + 0.75) * width / BITS)].mean() for b in range(BITS)]
    return sum((level > 127) << b for b, level in enumerate(bars))


@dataclass
class Recipe:
    """How one file is made."""

    suffix: str
    seconds: float
    codec: str
    options: dict
    gop: int
    audio_codec: str
    audio_rate: int
    video_start_s: float = 0.0
    audio_start_s: float = 0.0
    shift_s: float = 0.0
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """Stretches of the sound's own time without packets."""
    lost: list[int] = field(default_factory=list)
    """Numbers of packets of the picture, in the decoder's order, that are not written."""
    false_keys: bool = False
    edits: list[tuple[float, float]] = field(default_factory=list)
    """Pieces of the media that are shown one after the other: start and length, s."""
    damage: str = ""

    @property
    def benign(self) -> bool:
        """Whether nothing is lost: refusing it would be wrong. An edit may jump to where no decoder can begin."""
        open_ = "open-gop" in str(self.options) or "intra-refresh" in str(self.options) or self.false_keys
        jumps = self.edits and open_
        return not (self.lost or self.damage or jumps)


def draw(dice: random.Random) -> Recipe:
    """A random file."""
    suffix = dice.choice(CONTAINERS)
    codec, options, audio, rate = "libx264", {}, "aac", dice.choice((44_100, 48_000))
    if suffix == "webm":
        codec, options, audio, rate = "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, "libopus", 48_000
    elif suffix == "avi":
        codec = dice.choice(("mpeg4", "mjpeg", "libx264"))
        audio, rate = dice.choice((("libmp3lame", rate), ("pcm_s16le", rate)))
    elif suffix == "ts":
        codec = dice.choice(("libx264", "mpeg2video"))
    elif suffix in ("mp4", "mkv"):
        codec = dice.choice(("libx264",) * 4 + ("mpeg4", "libx265"))
    if codec == "libx264":
        options = {"preset": "ultrafast", "x264-params": dice.choice(X264) + ":scenecut=0"}
    elif codec == "libx265":
        options = {"preset": "ultrafast", "x265-params": f"log-level=0:bframes={dice.choice((0, 3))}"}
    elif codec in ("mpeg4", "mpeg2video"):
        options = {"bf": dice.choice(("0", "2"))}
    recipe = Recipe(suffix, dice.choice((4.0, 5.2, 6.96)), codec, options, dice.choice((7, 25, 60, 250)), audio, rate)
    for oddity in dice.sample(ODDITIES, dice.choice((1, 1, 2))):
        oddity(recipe, dice)
    return recipe


def _starts(recipe: Recipe, dice: random.Random) -> None:
    if recipe.suffix != "avi" and not recipe.edits:
        recipe.video_start_s, recipe.audio_start_s = dice.choice(((0, 0.4), (0.4, 0), (0.2, 0.2), (0, 1.8), (1.2, 0)))


def _shift(recipe: Recipe, dice: random.Random) -> None:
    if recipe.suffix == "ts":
        recipe.shift_s = dice.choice((10.0, 5000.0, WRAP_S - 2, WRAP_S - 4.5))
    elif recipe.suffix == "mkv":
        recipe.shift_s = dice.choice((3.0, 500.0))


def _gaps(recipe: Recipe, dice: random.Random) -> None:
    if recipe.suffix != "avi" and not recipe.edits:
        begin = dice.uniform(0.3, recipe.seconds - 1.8)
        recipe.gaps = [(begin, begin + dice.choice((0.3, 0.8, 1.5)))]


def _false_keys(recipe: Recipe, dice: random.Random) -> None:
    recipe.false_keys = recipe.suffix in ("mp4", "mkv", "avi") and recipe.codec != "mjpeg"


def _edits(recipe: Recipe, dice: random.Random) -> None:
    plain = not (recipe.gaps or recipe.video_start_s or recipe.audio_start_s)
    if recipe.suffix == "mp4" and plain and recipe.codec in ("libx264", "mpeg4"):
        recipe.seconds = 6.96
        recipe.edits = dice.choice(
            ([(1, 4)], [(1, 1), (3, 3)], [(0, 2), (4, 2)], [(3, 2.6), (0.4, 1.6)], [(0.52, 1.48), (2, 1), (5, 1.6)])
        )


def _lose(recipe: Recipe, dice: random.Random) -> None:
    if recipe.suffix in ("mp4", "mkv", "ts", "flv") and not recipe.edits:
        recipe.lost = sorted(dice.sample(range(1, int(recipe.seconds * FPS)), dice.choice((1, 2, 8))))


def _damage(recipe: Recipe, dice: random.Random) -> None:
    recipe.damage = dice.choice(("zeros", "bytes", "cut"))


ODDITIES = (_starts, _shift, _gaps, _false_keys, _edits, _lose, _damage)


def make(path: Path, recipe: Recipe, dice: random.Random) -> None:
    """Write the file of a recipe."""
    with av.open(str(path), "w", format={"ts": "mpegts", "mkv": "matroska"}.get(recipe.suffix)) as container:
        packets = [*_picture(container, recipe), *_sound(container, recipe)]
        for packet in sorted(packets, key=lambda p: (p.dts if p.dts is not None else p.pts) * p.time_base):
            container.mux(packet)
    content = bytearray(path.read_bytes())
    if recipe.edits:
        content = bytearray(with_edit_lists(bytes(content), recipe.edits))
    if recipe.false_keys and recipe.suffix == "mp4":
        content = content.replace(b"stss", b"free", 1)  # without the table every sample counts as a key frame
    _harm(content, recipe, dice)
    path.write_bytes(content)


def _picture(container, recipe: Recipe) -> list[av.Packet]:
    stream = container.add_stream(recipe.codec, rate=FPS, options=recipe.options)
    stream.width, stream.height = SIZE
    stream.pix_fmt = "yuvj420p" if recipe.codec == "mjpeg" else "yuv420p"
    stream.codec_context.gop_size, stream.codec_context.thread_count = recipe.gop, 1
    stream.bit_rate = 800_000
    packets = []
    for number in range(round(recipe.seconds * FPS)):
        frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    _move(packets, recipe.video_start_s + recipe.shift_s)
    for number, packet in enumerate(packets):
        packet.is_keyframe = packet.is_keyframe or (recipe.false_keys and number % 9 == 4)
    return [packet for number, packet in enumerate(packets) if number not in recipe.lost]


def _sound(container, recipe: Recipe) -> list[av.Packet]:
    rate = recipe.audio_rate
    stream = container.add_stream(recipe.audio_codec, rate=rate, layout="mono")
    wave = NOISES[rate][: round(recipe.seconds * rate)]
    frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    packets = [*stream.encode(frame), *stream.encode(None)]
    kept = []
    for packet in packets:
        time_s = float(packet.pts * packet.time_base)
        if not any(begin <= time_s < end for begin, end in recipe.gaps):
            kept.append(packet)
    _move(kept, recipe.audio_start_s + recipe.shift_s)
    return kept


def _move(packets: list[av.Packet], by_s: float) -> None:
    for packet in packets:
        ticks = round(by_s / packet.time_base)
        packet.pts += ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks


def with_edit_lists(content: bytes, pieces: list[tuple[float, float]]) -> bytes:
    """The mp4 with this edit list for every track; its moov must stand behind its mdat."""
    place, size = 0, 0
    while content[place + 4 : place + 8] != b"moov":
        place += struct.unpack(">I", content[place : place + 4])[0]
    size = struct.unpack(">I", content[place : place + 4])[0]
    moov = _with_edits(content[place + 8 : place + size], pieces, None)
    return content[:place] + struct.pack(">I", len(moov) + 8) + b"moov" + moov + content[place + size :]


def _boxes(data: bytes):
    place = 0
    while place < len(data):
        size = struct.unpack(">I", data[place : place + 4])[0]
        yield data[place + 4 : place + 8], data[place + 8 : place + size]
        place += size


def _with_edits(moov: bytes, pieces: list[tuple[float, float]], _) -> bytes:
    movie_scale = struct.unpack(">I", dict(_boxes(moov))[b"mvhd"][12:16])[0]
    total = round(sum(length for _, length in pieces) * movie_scale)
    made = b""
    for kind, body in _boxes(moov):
        if kind == b"mvhd":
            body = body[:16] + struct.pack(">I", total) + body[20:]
        elif kind == b"trak":
            body = _track_with_edits(body, pieces, movie_scale)
        made += struct.pack(">I", len(body) + 8) + kind + body
    return made


def _track_with_edits(track: bytes, pieces: list[tuple[float, float]], movie_scale: int) -> bytes:
    boxes = dict(_boxes(track))
    scale = struct.unpack(">I", dict(_boxes(boxes[b"mdia"]))[b"mdhd"][12:16])[0]
    delay = 0  # where the first picture or sound lies in the media, as the writer's own edit list says
    if b"edts" in boxes:
        delay = max(struct.unpack(">i", boxes[b"edts"][20:24])[0], 0)
    entries = b"".join(
        struct.pack(">IiI", round(length * movie_scale), round(start * scale) + delay, 0x10000)
        for start, length in pieces
    )
    elst = struct.pack(">II", 0, len(pieces)) + entries
    edts = struct.pack(">I", len(elst) + 8) + b"elst" + elst
    made = b""
    for kind, body in _boxes(track):
        if kind == b"tkhd":
            total = round(sum(length for _, length in pieces) * movie_scale)
            body = body[:20] + struct.pack(">I", total) + body[24:]
        if kind != b"edts":
            made += struct.pack(">I", len(body) + 8) + kind + body
        if kind == b"tkhd":
            made += struct.pack(">I", len(edts) + 8) + b"edts" + edts
    return made


def _harm(content: bytearray, recipe: Recipe, dice: random.Random) -> None:
    if recipe.damage == "cut":
        del content[int(len(content) * dice.uniform(0.15, 0.95)) :]
    elif recipe.damage == "zeros":
        begin, length = dice.randrange(len(content) // 10, len(content)), dice.choice((200, 2000, 9000))
        content[begin : begin + length] = bytes(len(content[begin : begin + length]))
    elif recipe.damage == "bytes":
        for _ in range(dice.choice((1, 5, 40))):
            content[dice.randrange(len(content) // 20, len(content))] = dice.randrange(256)


class Truth:
    """What a player shows and plays of a file at a moment, from how it was made."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.zero_s = 0.0 if recipe.edits else min(recipe.video_start_s, recipe.audio_start_s)
        ends = max(recipe.video_start_s, recipe.audio_start_s) + recipe.seconds
        self.duration_s = sum(length for _, length in recipe.edits) if recipe.edits else ends - self.zero_s

    def content_s(self, time_s: np.ndarray, start_s: float) -> np.ndarray:
        """Second of the media at moments of the time line; NaN where there is nothing."""
        if not self.recipe.edits:
            media = np.asarray(time_s) + self.zero_s - start_s
            return np.where((media >= 0) & (media < self.recipe.seconds), media, np.nan)
        media, begin = np.full(np.shape(time_s), np.nan), 0.0
        for start, length in self.recipe.edits:
            inside = (time_s >= begin - 1e-9) & (time_s < begin + length - 1e-9)
            media = np.where(inside, start + time_s - begin, media)
            begin += length
        return media

    def pictures(self, time_s: float) -> set[int]:
        """Numbers of the picture then; of two where the moment is all but the border between them.

        Containers without edit lists show the silent samples that AAC and Opus begin with, and so begin earlier.
        """
        last = round(self.recipe.seconds * FPS) - 1
        times = np.array([time_s - 25e-3, time_s - 2e-3, time_s, time_s + 2e-3])
        media = self.content_s(times, self.recipe.video_start_s)
        return {min(int(second * FPS + 1e-6), last) for second in media if not np.isnan(second)} or {last}

    def sound(self, start_s: float, count: int) -> np.ndarray:
        """(count,) the sound from a moment on, at RATE."""
        media = self.content_s(start_s + np.arange(count) / RATE, self.recipe.audio_start_s)
        for begin, end in self.recipe.gaps:
            media = np.where((media >= begin) & (media < end), np.nan, media)
        places = np.nan_to_num(media * RATE, nan=0).round().astype(int)
        return np.where(np.isnan(media), 0.0, NOISES[RATE][np.minimum(places, len(NOISES[RATE]) - 1)])


def alike(wave: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of two stretches of sound, each quarter of a second moved by up to 40 ms as fits best."""
    same, step = 0.0, RATE // 4
    for first in range(0, len(wave), step):
        one, other = wave[first : first + step], expected[first : first + step]
        product = np.fft.irfft(np.fft.rfft(other, 2 * step) * np.conj(np.fft.rfft(one, 2 * step)), 2 * step)
        same += max(np.r_[product[: RATE // 25], product[-RATE // 25 :]].max(), 0.0)
    return float(same / np.sqrt((wave**2).sum() * (expected**2).sum() + 1e-12))


def shown_by_ffmpeg(path: Path, time_s: float) -> int:
    """Number of the picture that decoding everything shows then."""
    with av.open(str(path)) as container:
        start_s, times = container.start_time / av.time_base, {}
        for frame in container.decode(video=0):
            times[frame.time - start_s] = frame
    return number_of(times[max(time for time in times if time <= time_s + 1e-4)].to_ndarray(format="rgb24"))


def played_by_ffmpeg(path: Path, start_s: float, count: int) -> np.ndarray:
    """(count,) the sound from a moment on, at RATE, each decoded frame put where its stamp says."""
    whole = np.zeros(count + RATE)
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            first = round((frame.time - container.start_time / av.time_base - start_s) * RATE)
            wave = frame.to_ndarray()[0]
            length = round(len(wave) * RATE / frame.sample_rate)
            wave = np.interp(np.arange(length) * frame.sample_rate / RATE, np.arange(len(wave)), wave)
            if 0 <= first < count:
                whole[first : first + length] = wave
    return whole[:count]


def check(path: Path, recipe: Recipe) -> tuple[str, str]:
    """(right, refused, wrongly refused or wrong; what was found)."""
    truth = Truth(recipe)
    try:
        clip = read_clip(path, 10.0, 3.0, RATE)
    except MediaError as error:
        return "wrongly refused" if recipe.benign else "refused", f"{error.reason}: {error.detail}"
    # Encoders fill up their last frame, so that a file may be a little longer than what was put into it.
    longer_s = clip.duration_s - truth.duration_s
    centre_s = min(clip.duration_s if -0.05 < longer_s < 0.15 else truth.duration_s, 10.0) / 2
    wanted, number = truth.pictures(centre_s), number_of(clip.geometry.rgb(clip.frame, SIZE[1]))
    expected = truth.sound(centre_s - 1.5, 3 * RATE)
    if recipe.edits:  # FFmpeg moves pieces by some frames: what it shows and plays is right, too
        centre_s = clip.duration_s / 2
        wanted |= {shown_by_ffmpeg(path, centre_s)}
    # Of a lost picture that no other needs nothing can be seen: the one before is shown.
    holes = recipe.lost or (recipe.damage and recipe.suffix == "ts")
    found = [] if wanted & {number + k for k in range(3 if holes else 1)} else [f"picture {number} for {wanted}"]
    first = max(round((centre_s - 1.5 - clip.audio_start_s) * RATE), 0)
    window = clip.audio_i16[first : first + 3 * RATE] / 32768
    likeness = alike(window, expected[: len(window)])
    if recipe.edits and likeness < 0.8:
        likeness = alike(window, played_by_ffmpeg(path, centre_s - 1.5, len(window)))
    if not likeness >= 0.8:
        found.append(f"sound alike by {likeness:.2f}")
    return ("wrong" if found else "right"), "; ".join(found)


def run(count: int, seed: int, folder: Path, say=lambda text: None) -> Counter:
    """Make and check files; counts by outcome."""
    outcomes: Counter = Counter()
    for number in range(count):
        dice = random.Random(f"{seed}:{number}")
        recipe = draw(dice)
        path = folder / f"{number}.{recipe.suffix}"
        make(path, recipe, dice)
        outcome, found = check(path, recipe)
        outcomes[outcome] += 1
        if outcome.startswith("wrong"):
            say(f"{outcome}: {seed}:{number} {found} {recipe}")
        else:
            path.unlink()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that came out wrong")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = run(arguments.count, arguments.seed, folder, print)
    print(dict(outcomes))
    return int(outcomes["wrong"] + outcomes["wrongly refused"] > 0)


if __name__ == "__main__":
    sys.exit(main())
