"""`avpipe retrieve` from options to files: choose the model and the clips, score, write the results."""

import json
from pathlib import Path

import numpy as np

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.pipeline.core.files import atomic_write, remove_leftovers
from avpipe.pipeline.core.ids import check_split_name
from avpipe.pipeline.core.locks import stage_lock
from avpipe.pipeline.core.paths import Root
from avpipe.pipeline.work.base import default_workers
from avpipe.train.data.open import open_shards
from avpipe.train.data.shards import Shards
from avpipe.train.evaluation.embeddings import FRAME, Embeddings, embeddings
from avpipe.train.evaluation.leakage import leakage
from avpipe.train.evaluation.retrieval_scores import score
from avpipe.train.evaluation.run import UnsavedError
from avpipe.train.models.load import Model, ModelChoice, choose_model


def run_retrieval(root: Root, split: str, choice: ModelChoice, workers: int | None = None) -> dict:
    """Score a model on a split and write `<run>/retrieval/<split>/`: metrics.json and embeddings.npz.

    embeddings.npz holds clip_ids and labels (N,), audio and, for methods with a visual network, visual (N, C), in the
    order of the ids. Clips without a label are left out and counted, as are those that cannot be read
    (`clips_damaged`). Returns the contents of metrics.json. Raises AvpipeError for an invalid combination of options or
    missing input; UnsavedError, which carries the result, if it cannot be written.
    """
    choice.check_choice("random-init")
    if choice.baseline not in (None, "random-init"):
        raise AvpipeError(f"{choice.baseline!r} has no embeddings to compare; the baseline of retrieval is random-init")
    shards = open_shards(root.shards / check_split_name(split))
    model = choose_model(root, shards, choice)
    indices = np.array([n for n in np.argsort(np.array(shards.clip_ids)) if shards.labels[n] is not None], int)
    if not len(indices):
        raise AvpipeError(f"no available clip of {split} has a label; retrieval is scored by labels")
    loaders = default_workers() - 1 if workers is None else workers
    folder = model.run / "retrieval" / split
    with stage_lock(folder, "a retrieval"):
        remove_leftovers(folder)
        found = embeddings(model, shards, indices, loaders)
        result = _result(model, shards, found, split, folder)
        try:
            _write(result, shards, found, folder)
        except OSError as error:
            raise UnsavedError(result, folder, error) from error
    return result


def _result(model: Model, shards: Shards, found: Embeddings, split: str, folder: Path) -> dict:
    """Return the contents of metrics.json."""
    labels = [shards.labels[n] for n in found.indices]
    with_label = sum(label is not None for label in shards.labels)
    return {
        "split": split,
        "model": model.run.name,
        **({"checkpoint": model.checkpoint} if model.checkpoint else {}),
        "clips_listed": shards.metadata["listed"],
        "listed_sha256": shards.metadata["listed_sha256"],
        "clips_scored": len(labels),
        "clips_without_label": len(shards) - with_label,
        **({"clips_damaged": with_label - len(labels)} if len(labels) < with_label else {}),
        "categories": len(set(labels)),
        **_training(model, shards, found.indices),
        "frame": FRAME,
        **score(found.audio, found.visual, labels),
        "embeddings": str(folder / "embeddings.npz"),
    }


def _write(result: dict, shards: Shards, found: Embeddings, folder: Path) -> None:
    """Write both files, the scores first: they are small."""
    with atomic_write(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    arrays = {"audio": found.audio} | ({} if found.visual is None else {"visual": found.visual})
    ids, labels = (np.array([some[n] for n in found.indices]) for some in (shards.clip_ids, shards.labels))
    with atomic_write(folder / "embeddings.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, clip_ids=ids, labels=labels, **arrays)


def _training(model: Model, shards: Shards, indices: np.ndarray) -> dict:
    """Return what the network was trained on, and how many of these samples that includes; {} if unknown."""
    if model.trained_on is None:
        return {}
    found = leakage(model.trained_on.clip_ids, [shards.clip_ids[n] for n in indices])
    return {"trained_on": model.trained_on.record() | {"leak": found}}
