"""A sample out of a picture and a sound file that somebody else has cut: what `extract` makes of a clip."""

import io
import json
import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import ExifTags, Image, ImageOps

from pipeline import samples
from pipeline.exchange.export_folders import files_sha256
from pipeline.media import MediaError
from pipeline.media.container import END_TOLERANCE_S
from pipeline.settings import ExtractSettings
from pipeline.window import cut_window, feature_members, kept_sound

# No frame or sound of a clip comes near; what does is not worth the memory.
MAX_FILE_BYTES = 1 << 28
MAX_AUDIO_S = 600.0
# What may be tried on a stranger's file: the common formats, none of which refers to other files or addresses.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
AUDIO_FORMATS = "wav,w64,flac,mp3,ogg,aac,mov"
# Of these FFmpeg reads the sound's length from a header, as of an MP3 with such a frame; of others it guesses.
LENGTH_FORMATS = ("flac", "mov,mp4,m4a,3gp,3g2,mj2", "w64")
XING = re.compile(rb"Xing|Info")
# Of a WAV whose writer could not go back to its start.
UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0xFFFFFFFF)
SIXTEEN_BITS = 65_535
NUMBER = (int, float)
META_TYPES = {
    "audio_own_s": NUMBER,
    "audio_repeated": (bool,),
    "audio_s": NUMBER,
    "audio_start_s": NUMBER,
    "duration_s": NUMBER,
    "frame_time_s": (*NUMBER, type(None)),
    "peak": NUMBER,
    "rms": NUMBER,
    "silent": (bool,),
    "source_height": (int,),
    "source_width": (int,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FramePair:
    """The files of one clip."""

    image: Path
    audio: Path
    meta: Path
    """Facts as `avpipe export` wrote them; it may be absent."""
    files_sha256: str | None = None
    """Hash of image and audio at their export, if they come with an index."""
    source_sha256: str | None = None
    """Hash of the clip that they were made from, in the same case."""

    def read(self) -> tuple[bytes, bytes]:
        """Content of image and audio. Raises MediaError for files that are too large."""
        for path in (self.image, self.audio):
            if path.stat().st_size > MAX_FILE_BYTES:
                raise MediaError("corrupt", f"{path} has more than {MAX_FILE_BYTES:,} bytes")
        return self.image.read_bytes(), self.audio.read_bytes()

    def source_of(self, image: bytes, audio: bytes) -> str:
        """The clip's hash while the files are as they were exported, else the files' own."""
        actual = files_sha256(image, audio)
        return self.source_sha256 if self.source_sha256 and actual == self.files_sha256 else actual


def import_sample(pair: FramePair, image: bytes, audio: bytes, settings: ExtractSettings):
    """({member: bytes}, note) of a pair; the note is empty, or says why its meta.json was not used.

    The window lies around the middle of the sound, or of its first `clip_s`. Raises MediaError for unusable files.
    """
    jpeg, width, height = frame_jpeg(image, settings)
    audio_i16 = decode_audio(audio, settings.sample_rate_hz)
    duration_s = len(audio_i16) / settings.sample_rate_hz
    centre_s = min(duration_s, settings.clip_s) / 2
    pcm_i16, facts = cut_window(audio_i16, 0.0, centre_s, settings)
    facts |= {
        "duration_s": round(duration_s, 6),
        "frame_time_s": None,
        "source_width": width,
        "source_height": height,
    }
    given, note = _read_meta(pair.meta, facts)
    members = {
        samples.FRAME: jpeg,
        samples.AUDIO: samples.encode_flac(pcm_i16, settings.sample_rate_hz),
        samples.META: samples.encode_json(given or facts),
    }
    sound = kept_sound(pcm_i16, given, settings) if given else (audio_i16, 0.0, centre_s)
    return members | feature_members(*sound, settings), note


def frame_jpeg(data: bytes, settings: ExtractSettings) -> tuple[bytes, int, int]:
    """(JPEG with the wanted short side, width and height of the given image, pixels).

    An upright RGB JPEG of that size is returned as it is; anything else is decoded, turned upright as its EXIF says,
    scaled (bicubic, aspect kept) and encoded. Of an animation it is the first picture.
    """
    side = settings.frame_short_side
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            given = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            given.load()
            upright = given.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if (given.format, given.mode, min(given.size), upright) == ("JPEG", "RGB", side, True):
                return data, *given.size
            image = _rgb(given)
        except Exception as error:  # Pillow meets damage with many kinds of error
            raise MediaError("corrupt", f"the image is not decodable: {error}") from error
    width, height = image.size
    scale = side / min(width, height)
    size = tuple(max(side, round(length * scale)) for length in (width, height))
    if size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise MediaError("corrupt", f"an image of {width}x{height} pixels is no frame")
    rgb = image.resize(size, Image.Resampling.BICUBIC)
    return samples.encode_jpeg(np.asarray(rgb), settings.jpeg_quality), width, height


def _rgb(image: Image.Image) -> Image.Image:
    """A picture as viewers show it: upright, and its levels in eight bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would make all from 255 on white
        levels = np.asarray(image).astype(np.float64).clip(0, SIXTEEN_BITS) * (255 / SIXTEEN_BITS)
        image = Image.fromarray(levels.round().astype(np.uint8))
    return image.convert("RGB")


def decode_audio(data: bytes, sample_rate_hz: int) -> np.ndarray:
    """(N,) int16 mono of a sound file, N >= 1. Raises MediaError: no_audio or corrupt."""
    if (promised := _wav_bytes(data)) is not None and promised > len(data):
        raise MediaError("corrupt", f"the sound is cut off: {len(data):,} of {promised:,} bytes are there")
    blocks, count = [], 0
    try:
        with av.open(
            io.BytesIO(data), options={"format_whitelist": AUDIO_FORMATS}, metadata_errors="replace"
        ) as container:
            if not container.streams.audio:
                raise MediaError("no_audio", "the sound file has no audio stream")
            promised_s = _promised_s(container, data)
            resampler = av.AudioResampler(format="s16", layout="mono", rate=sample_rate_hz)
            for frame in [*container.decode(audio=0), None]:
                for block in resampler.resample(frame):
                    blocks.append(block.to_ndarray().reshape(-1))
                    count += len(blocks[-1])
                if count > MAX_AUDIO_S * sample_rate_hz:
                    raise MediaError("corrupt", f"the sound is longer than {MAX_AUDIO_S:.0f} s: no clip")
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: the format changes midway
        raise MediaError("corrupt", f"the sound is not decodable: {error}") from error
    if not count:
        raise MediaError("no_audio", "the sound file holds no samples")
    if count < (promised_s - END_TOLERANCE_S) * sample_rate_hz:
        raise MediaError(
            "corrupt", f"the sound is cut off: {count / sample_rate_hz:.2f} of {promised_s:.2f} s are there"
        )
    return np.concatenate(blocks)


def _wav_bytes(data: bytes) -> int | None:
    """Bytes that a WAV must have by the length of its samples; None where it is none, or was written into a pipe."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    place = 12
    while place + 8 <= len(data):
        kind, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind == b"data":
            return None if length in UNKNOWN_LENGTHS else place + 8 + length
        place += 8 + length + length % 2
    return None


def _promised_s(container: av.container.InputContainer, data: bytes) -> float:
    """Seconds of sound that a file's header promises; 0 where it has no such header, and they are a guess."""
    stream = container.streams.audio[0]
    has_length = container.format.name in LENGTH_FORMATS or (
        container.format.name == "mp3" and XING.search(data, 0, 8192)
    )
    return float(stream.duration * stream.time_base) if has_length and stream.duration else 0.0


def _read_meta(path: Path, computed: dict) -> tuple[dict | None, str]:
    """(facts, "") of a meta.json that fits the sound, else (None, why it is ignored); the reason is "" without one."""
    if not path.is_file():
        return None, ""
    if path.stat().st_size > samples.MAX_META_BYTES:
        return None, "meta.json ignored: too large"
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError):
        return None, "meta.json ignored: not readable"
    if not isinstance(facts, dict) or facts.keys() != META_TYPES.keys():
        return None, "meta.json ignored: its keys are not those of avpipe"
    for name, types in META_TYPES.items():
        if type(facts[name]) not in types or (isinstance(facts[name], float) and not math.isfinite(facts[name])):
            return None, f"meta.json ignored: {name} is no such value"
    if not 0 < facts["audio_own_s"] <= facts["audio_s"] or any(
        facts[name] != computed[name] for name in ("audio_s", "peak", "rms", "silent")
    ):
        return None, "meta.json ignored: it describes another sound"
    return facts, ""
