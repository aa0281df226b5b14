"""Frozen settings of the stages: unit, default and reason under every field. Their digest names what they produce."""

from dataclasses import asdict, dataclass

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.features.specs import SPECS, digest


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractSettings:
    """What the extraction makes of a clip. Two settings never share a cache folder."""

    features: tuple[str, ...] = ("logspec",)
    """Names of feature specs, see pipeline/features/specs.py."""
    frame_short_side: int = 256
    """Pixels; enough for the 246-pixel resize before the 224 crop that all four methods train with."""
    jpeg_quality: int = 90
    """Pillow's scale; about 24 kB a frame of the real clips tried."""
    sample_rate_hz: int = 16_000
    """Hertz; all four methods work at 16 kHz mono."""
    clip_s: float = 10.0
    """Seconds; a longer file is taken to hold the clip in its first ten, as VGG-Sound's do."""
    version: int = 2
    """Raised whenever the same clip would give other bytes."""

    def __post_init__(self):
        if not self.features:
            raise AvpipeError("no feature was asked for; name at least one, e.g. --features logspec")
        for name in self.features:
            if name not in SPECS:
                raise AvpipeError(f"feature {name!r} is unknown; there are: {', '.join(SPECS)}")
        # Sorted, each once: what is asked for in another order is the same cache.
        object.__setattr__(self, "features", tuple(sorted(set(self.features))))

    @property
    def audio_s(self) -> float:
        """Seconds of sound around the centre that a sample keeps: as many as the longest of its features wants."""
        return max(SPECS[name].audio_s for name in self.features)

    @property
    def name(self) -> str:
        """Name of the cache folder."""
        return f"{'+'.join(self.features)}-{digest(self.record())}"

    def record(self) -> dict:
        """All settings, the seconds of sound and the digest of each feature spec, as plain values for an index."""
        features = {name: SPECS[name].digest for name in self.features}
        return asdict(self) | {"audio_s": self.audio_s, "features": features}


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSettings:
    """How samples are packed."""

    seed: int = 0
    """Of the order in which clips are written."""
    samples_per_shard: int = 1000
    """About 200 MB with one float16 spectrogram: large enough to stream, small enough to copy and to redo."""
    version: int = 1
    """Raised whenever the same samples would give other bytes."""
