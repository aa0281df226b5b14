"""Writes a split's boxes as COCO detection JSON, with the frames."""

import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from avpipe.pipeline.core import samples
from avpipe.pipeline.exchange.export_split import ExportSplit
from avpipe.pipeline.manifest.tables import CORNERS, Manifest

# COCO requires a category for every box; clips without a label get this one.
UNLABELLED = "unlabelled"


def write_coco(source: ExportSplit, folder: Path, on_sample: Callable[[], None]) -> dict[str, int]:
    """Write `frames/<id>.jpg` and `<split>.json`.

    An image is an exported frame with its width and height; ids count from 1 in list order. A
    box is [x, y, width, height] in pixels from the upper left corner, clipped to the frame, with its area, `iscrowd` 0
    and the number of its annotator. Categories are the labels in alphabetical order. Boxes with a defect are left out
    and counted. Clips without boxes are images without annotations.
    """
    (folder / "frames").mkdir()
    manifest = Manifest.open(source.root.manifest)
    boxes, labels = manifest.usable_boxes(source.exported), manifest.labels(source.exported)
    names = sorted({label or UNLABELLED for label in labels.values()})
    category = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], []
    for row, sample in source.samples():
        clip_id = row["clip_id"]
        file_name = f"frames/{clip_id}.jpg"
        (folder / file_name).write_bytes(sample[samples.FRAME])
        width, height = Image.open(io.BytesIO(sample[samples.FRAME])).size
        image = {"id": len(images) + 1, "file_name": file_name, "width": width, "height": height, "clip_id": clip_id}
        images.append(image)
        for box in boxes.get(clip_id, []):
            shape = _pixels(box, width, height)
            common = {"id": len(annotations) + 1, "image_id": image["id"], "annotator": box["annotator"]}
            annotations.append(common | shape | {"category_id": category[labels[clip_id] or UNLABELLED]})
        on_sample()
    unusable = _unusable_boxes(source)
    content = {
        "info": {"description": f"{source.split}, exported by avpipe", "unusable_boxes_left_out": unusable},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in category.items()],
    }
    (folder / f"{source.split}.json").write_text(json.dumps(content, sort_keys=True) + "\n")
    return {"annotations": len(annotations), "unusable_boxes": unusable}


def _pixels(box: dict, width: int, height: int) -> dict:
    """Convert a box in fractions of the frame to COCO's bbox and area in pixels (to a thousandth), clipped."""
    xmin, ymin, xmax, ymax = (min(max(box[name], 0.0), 1.0) for name in CORNERS)
    left, top = round(xmin * width, 3), round(ymin * height, 3)
    across, down = round(xmax * width - left, 3), round(ymax * height - top, 3)
    return {"bbox": [left, top, across, down], "area": round(across * down, 3), "iscrowd": 0}


def _unusable_boxes(source: ExportSplit) -> int:
    defects = Manifest(source.root.manifest).table("boxes", ["clip_id", "defect"])
    exported = set(source.exported)
    rows = zip(defects["clip_id"].to_pylist(), defects["defect"].to_pylist(), strict=True)
    return sum(defect is not None and clip_id in exported for clip_id, defect in rows)
