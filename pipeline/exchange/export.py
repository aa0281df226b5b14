"""A split of the cache in the layouts that other code reads, one writer a format behind one function.

Clips that are listed but not in the cache are left out, counted, and named in `missing.csv` beside what was exported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pipeline.errors import AvpipeError
from pipeline.exchange.export_split import ExportSplit, published_folder
from pipeline.layout import Root, check_split_name
from pipeline.settings import ExtractSettings

# Format: the module and the function that writes it. Imported when called: h5py alone takes 0.2 s.
WRITERS = {
    "folders": ("pipeline.exchange.export_folders", "write_folders"),
    "ssl-tie-train": ("pipeline.exchange.export_folders", "write_ssl_tie_train"),
    "ssl-tie-test": ("pipeline.exchange.export_folders", "write_ssl_tie_test"),
    "hdf5": ("pipeline.exchange.export_hdf5", "write_hdf5"),
    "coco": ("pipeline.exchange.export_coco", "write_coco"),
}
FORMATS = tuple(WRITERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSummary:
    """What a split has become."""

    split: str
    format: str
    out: Path
    listed: int
    """Clips that the split's list names."""
    exported: int
    """Clips that are in the cache and were written."""
    missing: int
    """Clips that are not, each a line of missing.csv."""
    counts: dict[str, int]
    """What else the format counts, e.g. annotations."""


def export(
    root: Root,
    split: str,
    settings: ExtractSettings,
    format: str,
    out: Path,
    on_plan: Callable[[int], None] = lambda samples: None,
    on_sample: Callable[[], None] = lambda: None,
) -> ExportSummary:
    """Write the cached clips of `split` into the new folder `out`, which appears when all of it is there.

    `on_plan` hears once how many samples there are, `on_sample` is called after each. Raises AvpipeError for an unknown
    split or format, when nothing of the split is extracted, and when `out` exists and is not empty.
    """
    check_split_name(split)
    if format not in WRITERS:
        raise AvpipeError(f"there is no format {format!r}; there are: {', '.join(FORMATS)}")
    source = ExportSplit(root, split, settings)
    on_plan(len(source.exported))
    module, function = WRITERS[format]
    write = getattr(import_module(module), function)
    with published_folder(out) as folder:
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
