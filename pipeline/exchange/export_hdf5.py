"""The three HDF5 files that SSPL reads: frames, waveforms and log-mel spectra of one split, row for row alike."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from pipeline import features, samples
from pipeline.cache_part import for_clip
from pipeline.errors import AvpipeError
from pipeline.exchange.export_split import ExportSplit
from pipeline.features import SPECS, pcm_to_float
from pipeline.settings import ExtractSettings
from pipeline.window import kept_sound, window_around

SIDE = 256
SAMPLE_RATE_HZ, SAMPLES = 16_000, 48_000
SHAPES = {"frames": (SIDE, SIDE, 3), "audios": (SAMPLES,), "spects": (3, 96, 64)}
# SSPL's own names, and its division of the large list.
SUFFIXES = {10_000: "_10k"}
LARGE_LIST, ROWS_A_FILE = 144_000, 14_400


def write_hdf5(source: ExportSplit, folder: Path, on_sample: Callable[[], None]) -> dict[str, int]:
    """`h5py_<role>_<kind>….h5` for the kinds frames, audios and spects, and `<split>.csv`: the clip ids in row order.

    A dataset is called `<role>_<kind>`, float32, one sample a chunk:
    frames (N, 256, 256, 3) RGB in 0..255, the whole frame squashed (Pillow's bicubic where SSPL takes OpenCV's);
    audios (N, 48000), the central three seconds at 16 kHz as SSPL scales them;
    spects (N, 3, 96, 64), VGGish log-mel of those.
    A training list of 144,000 comes as ten files a kind, of 14,400 rows each. A clip that is missing moves up the rows
    behind it: the csv says which clip a row is. Source: SSPL metadata/read_frame_audio_then_save_hdf5.py and
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
    """frames (256, 256, 3), audios (48000,) and spects (3, 96, 64) of a sample, float32."""
    image = Image.open(io.BytesIO(sample[samples.FRAME])).convert("RGB")
    pcm_i16 = samples.decode_flac(sample[samples.AUDIO])
    sound_i16, start_s, centre_s = kept_sound(pcm_i16, json.loads(sample[samples.META]), settings)
    wave = pcm_to_float(window_around(sound_i16, SAMPLES, round((centre_s - start_s) * SAMPLE_RATE_HZ))[0])
    return {
        "frames": np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32),
        "audios": features.sspl_normalise(wave),
        "spects": SPECS["vggish"].compute(wave),
    }


def _files(source: ExportSplit) -> list[tuple[str, int]]:
    """(end of the name, rows) of the files of one kind."""
    listed, exported = len(source.listed), len(source.exported)
    if source.role == "test":
        return [("", exported)]
    if listed != LARGE_LIST:
        return [(SUFFIXES.get(listed, f"_{listed}"), exported)]
    starts = range(0, LARGE_LIST, ROWS_A_FILE)
    return [(f"_144k_{k}", min(max(exported - start, 0), ROWS_A_FILE)) for k, start in enumerate(starts, 1)]


class _CheckedFile(io.FileIO):
    """A file for HDF5, which crashes the process some time after a failed write: an error is kept for `check` instead.

    After it nothing more is written, and HDF5 hears that all went well.
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
        """Raise the OSError that there was, if any."""
        if self.error is not None:
            raise self.error


class _Datasets:
    """The three files of a part of the split, each with one dataset of `rows` rows; a context manager."""

    def __init__(self, folder: Path, role: str, suffix: str, rows: int):
        self._stack, self._disks, self._datasets = ExitStack(), [], {}
        for kind, shape in SHAPES.items():
            disk = self._stack.enter_context(_CheckedFile(folder / f"h5py_{role}_{kind}{suffix}.h5", "w+"))
            file = self._stack.enter_context(h5py.File(disk, "w"))
            # A chunk is a sample, because a trainer reads single rows in a shuffled order.
            dataset = file.create_dataset(f"{role}_{kind}", (rows, *shape), np.float32, chunks=(1, *shape))
            self._disks.append(disk)
            self._datasets[kind] = dataset

    def __enter__(self) -> "_Datasets":
        return self

    def __exit__(self, *_) -> None:
        with ExitStack() as checks:
            for disk in self._disks:  # after the files are closed, for then the last is written
                checks.callback(disk.check)
            self._stack.close()

    def write(self, row: int, arrays: dict[str, np.ndarray]) -> None:
        """Write one sample as a row. Raises OSError when the disk does not take it."""
        for kind, array in arrays.items():
            self._datasets[kind][row] = array
        for disk in self._disks:
            disk.check()
