"""The official lists of manifests/catalogue.toml: fetched or read from a folder, checked by hash."""

import hashlib
import http.client
import tomllib
import urllib.request
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write, file_sha256

RAW_ADDRESS = "https://raw.githubusercontent.com/{repository}/HEAD/{path}"
TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialList:
    """One published file, or folder of files."""

    name: str
    file: str
    """Path below a lists folder, as in `--lists DIR`."""
    format: str
    """One of the parsers in pipeline/manifest/list_parsers.py."""
    about: str
    repository: str | None = None
    """GitHub owner/name; None for synthetic lists."""
    path: str | None = None
    """Path in the repository."""
    sha256: str | None = None
    """Pinned hash of the file; None if the first build records it."""
    rows: int | None = None
    """Expected number of rows."""

    @property
    def address(self) -> str | None:
        """Address of the published file; None for synthetic lists."""
        return RAW_ADDRESS.format(repository=self.repository, path=self.path) if self.repository else None

    def lies_in(self, folder: Path) -> bool:
        """Whether the list is in `folder`; XML annotations are a folder themselves."""
        path = folder / self.file
        return path.is_dir() if self.format == "box_xml" else path.is_file()


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitDefinition:
    """Which clips a split has: those of a list, of a part of it, or of the categories missing from another split."""

    name: str
    list: str
    role: str
    """`train` or `test`, as used in the papers."""
    part: str | None = None
    """`train` or `test` if the list contains both."""
    unseen_by: str | None = None
    """A split whose categories are excluded."""
    else_list: str | None = None
    """A list that provides some of the clips if `list` is missing."""
    adds_to: str | None = None
    """For a list of negatives: the split of positives that are scored with them."""
    clips: int | None = None
    """Expected number of clips."""
    ids_sha256: str | None = None
    """SHA-256 of the sorted ids, one per line."""


def load_catalogue() -> tuple[dict[str, OfficialList], dict[str, SplitDefinition]]:
    """Return all lists and all splits, by name."""
    data = tomllib.loads(resources.files("avpipe.manifests").joinpath("catalogue.toml").read_text("utf-8"))
    lists = {name: OfficialList(name=name, **entry) for name, entry in data["lists"].items()}
    splits = {name: SplitDefinition(name=name, **entry) for name, entry in data["splits"].items()}
    return lists, splits


def find_lists(folder: Path, accept_changed: bool = False) -> dict[str, Path]:
    """Return the official lists in `folder`, by name, each checked against its hash.

    Raises AvpipeError if there are none, and for a changed one unless `accept_changed`.
    """
    lists, _ = load_catalogue()
    found = {name: folder / entry.file for name, entry in lists.items() if entry.lies_in(folder)}
    if not found:
        raise AvpipeError(f"{folder}: none of the official lists is here; expected files such as lvs/vggss.json")
    for name, path in found.items():
        if not accept_changed:
            check_hash(lists[name], path)
    return found


def list_sha256(path: Path) -> str:
    """Return the SHA-256 of a list; for a folder, that of the sorted names and hashes of its files, one per line."""
    if path.is_file():
        return file_sha256(path)
    files = "".join(f"{file.name} {file_sha256(file)}\n" for file in sorted(path.iterdir()) if file.is_file())
    return hashlib.sha256(files.encode()).hexdigest()


def fetch_lists(folder: Path, on_plan=lambda count: None, on_list=lambda name: None) -> None:
    """Download the published lists missing from `folder` over HTTPS, check each and rename it into place.

    `on_plan` is called with the number of lists to fetch, `on_list` with the name of each one fetched.
    """
    lists, _ = load_catalogue()
    wanted = [entry for entry in lists.values() if entry.address and not entry.lies_in(folder)]
    on_plan(len(wanted))
    for entry in wanted:
        target = folder / entry.file
        with atomic_write(target) as temporary:
            try:
                with urllib.request.urlopen(entry.address, timeout=TIMEOUT_S) as response:
                    temporary.write_bytes(response.read())
            except (OSError, http.client.HTTPException) as error:  # the latter for a truncated response
                raise AvpipeError(
                    f"{entry.address} could not be fetched ({error}); with a copy of the lists use --lists DIR"
                ) from None
            check_hash(entry, temporary)
        on_list(entry.name)


def check_hash(entry: OfficialList, path: Path) -> None:
    """Raise AvpipeError with both hashes if a list is not the published one."""
    if entry.sha256 is None:
        return
    actual = list_sha256(path)
    if actual != entry.sha256:
        raise AvpipeError(
            f"{path} is not the published {entry.name}: SHA-256 {actual}, expected {entry.sha256}; "
            "get the published file, or pass --accept-changed to use and record this one"
        )
