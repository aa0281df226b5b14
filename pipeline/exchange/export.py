"""Exports a split of the cache in layouts that other code reads: one function, and a writer per format.

Clips that are listed but not in the cache are left out, counted, and listed in `missing.csv` next to the export.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.ids import check_split_name
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.exchange.export_split import ExportSplit, atomic_dir
from avpipe.pipeline.features.settings import ExtractSettings

# Format: module and function of its writer, imported on demand: h5py takes 0.2 s.
WRITERS = {
    "folders": ("avpipe.pipeline.exchange.export_folders", "write_folders"),
    "ssl-tie-train": ("avpipe.pipeline.exchange.export_folders", "write_ssl_tie_train"),
    "ssl-tie-test": ("avpipe.pipeline.exchange.export_folders", "write_ssl_tie_test"),
    "hdf5": ("avpipe.pipeline.exchange.export_hdf5", "write_hdf5"),
    "coco": ("avpipe.pipeline.exchange.export_coco", "write_coco"),
}
FORMATS = tuple(WRITERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSummary:
    """The result of an export."""

    split: str
    format: str
    out: Path
    listed: int
    """Number of clips in the split's list."""
    exported: int
    """Number of clips in the cache, which were written."""
    missing: int
    """Number of clips not in the cache, each a line of missing.csv."""
    counts: dict[str, int]
    """Other counts of the format, e.g. annotations."""


def export(
    root: Root,
    split: str,
    settings: ExtractSettings,
    format: str,
    out: Path,
    on_plan: Callable[[int], None] = lambda samples: None,
    on_sample: Callable[[], None] = lambda: None,
) -> ExportSummary:
    """Write the cached clips of `split` to the new folder `out`, which appears once it is complete.

    `on_plan` is called with the number of samples, `on_sample` after each. Raises AvpipeError for an unknown
    split or format, when nothing of the split is extracted, and when `out` exists and is not empty.
    """
    check_split_name(split)
    if format not in WRITERS:
        raise AvpipeError(f"there is no format {format!r}; there are: {', '.join(FORMATS)}")
    source = ExportSplit(root, split, settings)
    on_plan(len(source.exported))
    module, function = WRITERS[format]
    write = getattr(import_module(module), function)
    with atomic_dir(out) as folder:
        counts = write(source, folder, on_sample)
        missing = source.write_missing(folder)
    return ExportSummary(
        split=split,
        format=format,
        out=out,
        listed=len(source.listed),
        exported=len(source.exported),
        missing=missing,
        counts=counts,
    )
