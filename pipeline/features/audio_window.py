"""Windows of sound around a clip's centre: what a sample keeps, what its features are made of, and back again."""

import numpy as np

from avpipe.pipeline.core import samples
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import SPECS, pcm_to_float

# Below this level (of full scale, about -66 dB) nothing can be heard or learnt.
SILENT_RMS = 5e-4


def cut_window(audio_i16: np.ndarray, start_s: float, centre_s: float, settings: ExtractSettings):
    """The `audio_s` seconds around the centre that a sample keeps, see `window_around`.

    audio_i16: (N,) beginning at `start_s`. Returns ((audio_s * rate,) int16, facts for meta.json).
    """
    rate, wanted = settings.sample_rate_hz, round(settings.audio_s * settings.sample_rate_hz)
    window, first = window_around(audio_i16, wanted, round((centre_s - start_s) * rate))
    wave = pcm_to_float(window)
    rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64))))
    facts = {
        "audio_start_s": round(start_s + first / rate, 6),
        "audio_s": settings.audio_s,
        "audio_repeated": len(audio_i16) < wanted,
        "audio_own_s": round(min(len(audio_i16), wanted) / rate, 6),
        "peak": round(float(np.abs(wave).max()), 6),
        "rms": round(rms, 6),
        "silent": rms < SILENT_RMS,
    }
    return window, facts


def feature_members(
    audio_i16: np.ndarray, start_s: float, centre_s: float, settings: ExtractSettings
) -> dict[str, bytes]:
    """`<spec>.npy` of every feature, float16, each of its own window around the centre.

    The windows are cut out of the sound itself, (N,) beginning at `start_s`, and not out of the longer one that the
    sample keeps: where that one is a repetition, its middle is not the clip's. So a feature is the same whichever
    others are made with it.
    """
    members = {}
    for name in settings.features:
        spec = SPECS[name]
        window, _ = window_around(audio_i16, spec.samples, round((centre_s - start_s) * settings.sample_rate_hz))
        array = spec.compute(pcm_to_float(window)).astype(np.float16)
        members[samples.feature_member(name)] = samples.encode_npy(array)
    return members


def kept_sound(pcm_i16: np.ndarray, meta: dict, settings: ExtractSettings) -> tuple[np.ndarray, float, float]:
    """(sound, its start, the clip's centre; seconds) out of the audio and meta.json of a sample.

    The sound is without its repetition: shorter windows cut out of it are those that the clip itself would give.
    """
    own_i16 = pcm_i16[: round(meta["audio_own_s"] * settings.sample_rate_hz)]
    return own_i16, meta["audio_start_s"], min(meta["duration_s"], settings.clip_s) / 2


def window_around(audio_i16: np.ndarray, wanted: int, centre: int) -> tuple[np.ndarray, int]:
    """(`wanted` samples around sample `centre`, index of the first), moved inside what there is.

    Shorter audio is repeated from its beginning, as EZ-VSL and SSL-TIE do.
    """
    if len(audio_i16) < wanted:
        return np.resize(audio_i16, wanted), 0
    first = min(max(centre - wanted // 2, 0), len(audio_i16) - wanted)
    return audio_i16[first : first + wanted], first
