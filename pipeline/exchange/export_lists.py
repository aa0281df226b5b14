"""Writes lists from the manifest, byte for byte as published."""

from pathlib import Path
from xml.etree import ElementTree

import pyarrow.compute as pc

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write
from avpipe.pipeline.manifest.catalogue import OfficialList, load_catalogue
from avpipe.pipeline.manifest.list_parsers import FLICKR_GRID
from avpipe.pipeline.manifest.tables import CORNERS, Manifest

FORMATS = ("txt", "csv")


def list_text(manifest: Manifest, split: str) -> str:
    """Return the list that a split was made of; plain ids, one per line, for a split without a published list."""
    name = manifest.split_facts(split).get("list")
    lists, definitions = load_catalogue()
    if name is None or definitions[split].unseen_by:
        return ids_text(manifest, split)
    rows = manifest.rows(split)
    lines = [line or clip for line, clip in zip(rows["line"].to_pylist(), rows["clip_id"].to_pylist(), strict=True)]
    if lists[name].format == "box_json":
        return f"[{', '.join(lines)}]"
    framing = manifest.facts()["lists"][name]["framing"]
    if framing["header"]:
        lines.insert(0, framing["header"])
    newline = framing["newline"]
    return newline.join(lines) + (newline if framing["last_line_ends"] else "")


def ids_text(manifest: Manifest, split: str) -> str:
    """Return the clip ids of a split's rows in order, one per line."""
    return "".join(f"{clip_id}\n" for clip_id in manifest.rows(split)["clip_id"].to_pylist())


def export_list(manifest: Manifest, split: str, form: str, target: Path) -> Path:
    """Write `target`/<split>.<txt or csv>: the published list if it has that extension, else plain ids."""
    entry = load_catalogue()[0].get(manifest.split_facts(split).get("list", ""))
    as_published = entry is not None and Path(entry.file).suffix == f".{form}"
    text = list_text(manifest, split) if as_published else ids_text(manifest, split)
    path = target / f"{split}.{form}"
    with atomic_write(path) as temporary:
        temporary.write_text(text, "utf-8", newline="")
    return path


def export_lists(manifest: Manifest, folder: Path) -> list[Path]:
    """Write every published list of the manifest under its name in the catalogue.

    `manifest build --lists` makes the same tables from them. Raises AvpipeError if there is none.
    """
    lists, definitions = load_catalogue()
    built = manifest.facts()["splits"]
    written = []
    for name, definition in definitions.items():
        entry = lists[definition.list]
        if name in built and built[name]["list"] == definition.list and _whole(definition, entry):
            path = folder / entry.file
            with atomic_write(path) as temporary:
                temporary.write_text(list_text(manifest, name), "utf-8", newline="")
            written.append(path)
    if annotations := _flickr_annotations(manifest):
        target = folder / lists["flickr_boxes"].file
        if others := {path.stem for path in target.glob("*")} - annotations.keys():
            raise AvpipeError(f"{target} also holds others: {min(others)}.xml; remove them or name another folder")
        for clip_id, root in annotations.items():
            with atomic_write(target / f"{clip_id}.xml") as temporary:
                ElementTree.ElementTree(root).write(temporary)
        written.append(target)
    if not written:
        raise AvpipeError(f"{manifest.folder} was not built of published lists; there is nothing to export")
    return written


def _whole(definition, entry: OfficialList) -> bool:
    return entry.repository is not None and definition.part is None and definition.unseen_by is None


def _flickr_annotations(manifest: Manifest) -> dict[str, ElementTree.Element]:
    """Return a tree per clip: a node per annotator with `bbox` nodes of a name and four coordinates on a 256 grid."""
    table = manifest.table("boxes")
    roots: dict[str, ElementTree.Element] = {}
    for row in table.filter(pc.utf8_is_digit(table["clip_id"])).to_pylist():
        root = roots.setdefault(row["clip_id"], ElementTree.Element("annotation"))
        while len(root) <= row["annotator"]:
            ElementTree.SubElement(root, "annotator")
        box = ElementTree.SubElement(root[row["annotator"]], "bbox")
        ElementTree.SubElement(box, "name").text = "sounding"
        for corner in CORNERS:
            ElementTree.SubElement(box, corner).text = f"{row[corner] * FLICKR_GRID:.12g}"
    return roots
