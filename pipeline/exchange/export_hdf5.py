"""Writes the three HDF5 files that SSPL reads: frames, waveforms and log-mel spectra, in the same row order."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from avpipe.pipeline.core import samples
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.exchange.export_split import ExportSplit
from avpipe.pipeline.extract.cache_part import for_clip
from avpipe.pipeline.features import specs
from avpipe.pipeline.features.audio_window import kept_sound, window_around
from avpipe.pipeline.features.settings import ExtractSettings
from avpipe.pipeline.features.specs import SPECS, pcm_to_float

SIDE = 256
SAMPLE_RATE_HZ, SAMPLES = 16_000, 48_000
SHAPES = {"frames": (SIDE, SIDE, 3), "audios": (SAMPLES,), "spects": (3, 96, 64)}
# SSPL's own names, and its split of the large list.
SUFFIXES = {10_000: "_10k"}
LARGE_LIST, ROWS_A_FILE = 144_000, 14_400


def write_hdf5(source: ExportSplit, folder: Path, on_sample: Callable[[], None]) -> dict[str, int]:
    """Write `h5py_<role>_<kind>….h5` for frames, audios and spects, and `<split>.csv`: the clip ids in row order.

    A dataset is called `<role>_<kind>`, float32, one sample per chunk:
    frames (N, 256, 256, 3) RGB in 0..255, the entire frame squashed (Pillow's bicubic where SSPL takes OpenCV's);
    audios (N, 48000), the central three seconds at 16 kHz as SSPL scales them;
    spects (N, 3, 96, 64), VGGish log-mel of those.
    A training list of 144,000 becomes ten files per kind, of 14,400 rows each. Missing clips leave no gap: the csv says
    which clip a row is. Source: SSPL metadata/read_frame_audio_then_save_hdf5.py and
    dataset/videodataset.py.
    """
    rate, audio_s = source.settings.sample_rate_hz, source.settings.audio_s
    if rate != SAMPLE_RATE_HZ or audio_s * rate < SAMPLES:
        raise AvpipeError(f"SSPL reads 3 s at 16,000 Hz; {source.settings.name} holds {audio_s} s at {rate:,} Hz")
    stream = source.samples()
    for suffix, rows in _files(source):
        with _Datasets(folder, source.role, suffix, rows) as datasets:
            for number, (row, sample) in enumerate(islice(stream, rows)):
                datasets.write(number, sspl_arrays(sample, for_clip(source.settings, row["clip_id"])))
                on_sample()
    (folder / f"{source.split}.csv").write_text("".join(f"{clip_id}\n" for clip_id in source.exported))
    return {}


def sspl_arrays(sample: dict[str, bytes], settings: ExtractSettings) -> dict[str, np.ndarray]:
    """Return frames (256, 256, 3), audios (48000,) and spects (3, 96, 64) of a sample, float32."""
    image = Image.open(io.BytesIO(sample[samples.FRAME])).convert("RGB")
    pcm_i16 = samples.decode_flac(sample[samples.AUDIO])
    sound_i16, start_s, centre_s = kept_sound(pcm_i16, json.loads(sample[samples.META]), settings)
    wave = pcm_to_float(window_around(sound_i16, SAMPLES, round((centre_s - start_s) * SAMPLE_RATE_HZ))[0])
    return {
        "frames": np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32),
        "audios": specs.sspl_normalise(wave),
        "spects": SPECS["vggish"].compute(wave),
    }


def _files(source: ExportSplit) -> list[tuple[str, int]]:
    """Return (suffix of the name, rows) of the files of one kind."""
    listed, exported = len(source.listed), len(source.exported)
    if source.role == "test":
        return [("", exported)]
    if listed != LARGE_LIST:
        return [(SUFFIXES.get(listed, f"_{listed}"), exported)]
    starts = range(0, LARGE_LIST, ROWS_A_FILE)
    return [(f"_144k_{k}", min(max(exported - start, 0), ROWS_A_FILE)) for k, start in enumerate(starts, 1)]


class _CheckedFile(io.FileIO):
    """A file for HDF5, which would crash the process some time after a failed write: the error is kept for `check`.

    After an error nothing more is written, and HDF5 is told that all went well.
    """

    error: OSError | None = None

    def write(self, data) -> int:
        data, done = memoryview(data).cast("B"), 0
        while done < len(data) and self.error is None:
            with self._kept():
                done += super().write(data[done:])
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        with self._kept():
            return super().truncate(size)
        return self.tell() if size is None else size

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = str(self.name)
            self.error = error

    def check(self) -> None:
        """Raise the OSError that occurred, if any."""
        if self.error is not None:
            raise self.error


class _Datasets:
    """The three files of a chunk of the split, each with one dataset of `rows` rows; a context manager."""

    def __init__(self, folder: Path, role: str, suffix: str, rows: int):
        self._stack, self._disks, self._datasets = ExitStack(), [], {}
        for kind, shape in SHAPES.items():
            disk = self._stack.enter_context(_CheckedFile(folder / f"h5py_{role}_{kind}{suffix}.h5", "w+"))
            file = self._stack.enter_context(h5py.File(disk, "w"))
            # One sample per chunk, because a trainer reads single rows in a shuffled order.
            dataset = file.create_dataset(f"{role}_{kind}", (rows, *shape), np.float32, chunks=(1, *shape))
            self._disks.append(disk)
            self._datasets[kind] = dataset

    def __enter__(self) -> "_Datasets":
        return self

    def __exit__(self, *_) -> None:
        with ExitStack() as checks:
            for disk in self._disks:  # after closing, which writes the last data
                checks.callback(disk.check)
            self._stack.close()

    def write(self, row: int, arrays: dict[str, np.ndarray]) -> None:
        """Write one sample as a row. Raises OSError if the disk fails."""
        for kind, array in arrays.items():
            self._datasets[kind][row] = array
        for disk in self._disks:
            disk.check()
