"""Open shards: in a folder with an index, in a folder without one, or at a remote address."""

from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from avpipe.pipeline.core.addresses import is_url
from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.shards.index import INDEX
from avpipe.train.data.remote import DiskBudget, open_remote
from avpipe.train.data.shards import Shards, check_ends, read_index
from avpipe.train.data.unindexed import index_tars


def open_shards(source: str | Path, budget: DiskBudget | None = None) -> Shards:
    """Open a folder or address of shards, or some of its tars by a pattern: 'DIR/vggss-{000000..000143}.tar'.

    Tars without an index are opened by reading their headers, see `data.unindexed`. Shards at a remote address need a
    `budget` for local copies, see `data.remote`. Raises AvpipeError if there is neither an index nor a tar, if a named
    tar is not in the index, if a tar is missing or too short for its samples, and if an address cannot be read.
    """
    location, wanted = _named_tars(str(source))
    if is_url(location):
        if budget is None:
            raise AvpipeError(
                f"{location}: only `avpipe train` reads shards from a remote address; copy them to a folder"
            )
        return open_remote(location.rstrip("/"), wanted, budget)
    folder = Path(location)
    if not (folder / INDEX).exists():
        return index_tars(folder, wanted)
    shards = read_index(folder / INDEX, folder, wanted)
    check_ends(shards, lambda name: (folder / name).stat().st_size if (folder / name).exists() else None)
    return shards


def _named_tars(source: str) -> tuple[str, list[str] | None]:
    """Return (folder or address, names of the tars in the pattern, or None for all). Raises AvpipeError if invalid."""
    if not source.endswith(".tar"):
        return source, None
    paths = [path.rpartition("/") for path in _expand(source)]
    folders = {folder or slash or "." for folder, slash, _ in paths}
    if len(folders) > 1:
        raise AvpipeError(f"{source}: all tars must be in one folder; give one of {', '.join(sorted(folders))}")
    return folders.pop(), [name for _, _, name in paths]


def _expand(text: str) -> list[str]:
    try:
        return list(braceexpand(text))
    except UnbalancedBracesError:
        raise AvpipeError(f"{text}: the braces do not match; write e.g. DIR/vggss-{{000000..000143}}.tar") from None
