"""The official lists: what manifests/catalogue.toml says of them, fetched or read from a folder, checked by hash."""

import hashlib
import http.client
import tomllib
import urllib.request
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pipeline.errors import AvpipeError
from pipeline.layout import file_sha256, published

RAW_ADDRESS = "https://raw.githubusercontent.com/{repository}/HEAD/{path}"
TIMEOUT_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class OfficialList:
    """One published file."""

    name: str
    file: str
    """Path below a lists folder, as in `--lists DIR`."""
    format: str
    """One of the parsers in pipeline/lists.py."""
    about: str
    repository: str | None = None
    """GitHub owner/name; None for lists that are made, not published."""
    path: str | None = None
    """Path in the repository."""
    sha256: str | None = None
    """Pinned hash of the file; None where the first fetch decides."""
    rows: int | None = None
    """Expected number of rows."""

    @property
    def address(self) -> str | None:
        """Where the file is published; None for lists that are made."""
        return RAW_ADDRESS.format(repository=self.repository, path=self.path) if self.repository else None

    def lies_in(self, folder: Path) -> bool:
        """Whether the list is below `folder`; annotations in XML are a folder themselves."""
        path = folder / self.file
        return path.is_dir() if self.format == "box_xml" else path.is_file()


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitDefinition:
    """Which clips a split has: those of one list, of one part of it, or of the categories that another never shows."""

    name: str
    list: str
    role: str
    """`train` or `test`: what papers use it for."""
    part: str | None = None
    """`train` or `test` where the list holds both."""
    unseen_by: str | None = None
    """A split; only clips of categories that no clip of it has belong to this one."""
    else_list: str | None = None
    """A list that gives at least some of the clips where `list` is missing."""
    adds_to: str | None = None
    """Of a list of negatives: the split whose clips, which sound, are scored with them."""
    clips: int | None = None
    """Expected number of clips."""
    ids_sha256: str | None = None
    """SHA-256 of the sorted ids, one a line."""


def load_catalogue() -> tuple[dict[str, OfficialList], dict[str, SplitDefinition]]:
    """All lists and all splits, by name."""
    data = tomllib.loads(resources.files("manifests").joinpath("catalogue.toml").read_text("utf-8"))
    lists = {name: OfficialList(name=name, **entry) for name, entry in data["lists"].items()}
    splits = {name: SplitDefinition(name=name, **entry) for name, entry in data["splits"].items()}
    return lists, splits


def find_lists(folder: Path, accept_changed: bool = False) -> dict[str, Path]:
    """The official lists that lie in `folder`, by name, each checked against its hash.

    Raises AvpipeError when there is none, or for a changed one unless `accept_changed`.
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
    """SHA-256 of a list; of a folder, that of the names and hashes of its files, sorted, one a line."""
    if path.is_file():
        return file_sha256(path)
    files = "".join(f"{file.name} {file_sha256(file)}\n" for file in sorted(path.iterdir()) if file.is_file())
    return hashlib.sha256(files.encode()).hexdigest()


def fetch_lists(folder: Path, on_plan=lambda count: None, on_list=lambda name: None) -> None:
    """Download every published list that is not in `folder` yet, over HTTPS; checked, then renamed into place.

    `on_plan` hears how many there are to fetch, `on_list` the name of each that has come.
    """
    lists, _ = load_catalogue()
    wanted = [entry for entry in lists.values() if entry.address and not entry.lies_in(folder)]
    on_plan(len(wanted))
    for entry in wanted:
        target = folder / entry.file
        with published(target) as temporary:
            try:
                with urllib.request.urlopen(entry.address, timeout=TIMEOUT_S) as response:
                    temporary.write_bytes(response.read())
            except (OSError, http.client.HTTPException) as error:  # the latter for an answer that breaks off
                raise AvpipeError(
                    f"{entry.address} could not be fetched ({error}); with a copy of the lists use --lists DIR"
                ) from None
            check_hash(entry, temporary)
        on_list(entry.name)


def check_hash(entry: OfficialList, path: Path) -> None:
    """Raise AvpipeError, naming both hashes, if a list is not the published one."""
    if entry.sha256 is None:
        return
    actual = list_sha256(path)
    if actual != entry.sha256:
        raise AvpipeError(
            f"{path} is not the published {entry.name}: SHA-256 {actual}, expected {entry.sha256}; "
            "get the published file, or pass --accept-changed to use and record this one"
        )


def ids_sha256(clip_ids: list[str]) -> str:
    """Hash that names a set of clips: SHA-256 of the sorted ids, one a line."""
    return hashlib.sha256("\n".join([*sorted(clip_ids), ""]).encode()).hexdigest()
