"""A sample out of a picture and a sound file that somebody else has cut: what `extract` makes of a clip."""

import io
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pipeline import samples
from pipeline.exchange.export_folders import files_sha256
from pipeline.media import MediaError
from pipeline.settings import ExtractSettings
from pipeline.window import cut_window, feature_members, kept_sound

# No frame or sound of a clip comes near; what does is not worth the memory.
MAX_FILE_BYTES = 1 << 28
MAX_AUDIO_S = 600.0
MAX_META_BYTES = 1 << 16
# What may be tried on a stranger's file: the common formats, none of which refers to other files or addresses.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
AUDIO_FORMATS = "wav,w64,flac,mp3,ogg,aac,mov"
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

    An RGB JPEG of that size is returned as it is; anything else is decoded, scaled (bicubic, aspect kept) and encoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            image.load()
        except Exception as error:  # Pillow meets damage with many kinds of error
            raise MediaError("corrupt", f"the image is not decodable: {error}") from error
    width, height = image.size
    side = settings.frame_short_side
    if (image.format, image.mode, min(width, height)) == ("JPEG", "RGB", side):
        return data, width, height
    scale = side / min(width, height)
    size = tuple(max(side, round(length * scale)) for length in (width, height))
    if size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
        raise MediaError("corrupt", f"an image of {width}x{height} pixels is no frame")
    rgb = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return samples.encode_jpeg(np.asarray(rgb), settings.jpeg_quality), width, height


def decode_audio(data: bytes, sample_rate_hz: int) -> np.ndarray:
    """(N,) int16 mono of a sound file, N >= 1. Raises MediaError: no_audio or corrupt."""
    blocks, count = [], 0
    try:
        with av.open(
            io.BytesIO(data), options={"format_whitelist": AUDIO_FORMATS}, metadata_errors="replace"
        ) as container:
            if not container.streams.audio:
                raise MediaError("no_audio", "the sound file has no audio stream")
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
    return np.concatenate(blocks)


def _read_meta(path: Path, computed: dict) -> tuple[dict | None, str]:
    """(facts, "") of a meta.json that fits the sound, else (None, why it is ignored); the reason is "" without one."""
    if not path.is_file():
        return None, ""
    if path.stat().st_size > MAX_META_BYTES:
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
