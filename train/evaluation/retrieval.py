"""Retrieval by cosine (SSL-TIE, sections 4.3 and 4.4): which clips sound alike, which pictures go with a sound.

Shapes: N queries, M items to find, C channels, K places of a ranking, B queries at a time.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.errors import AvpipeError
from pipeline.layout import Root, check_split_name, published, remove_leftovers
from pipeline.parts import default_workers, stage_lock
from pipeline.progress import ProgressLine
from train.data.frames import TEST_VIEWS, normalise
from train.data.loader import Sample, stacked
from train.data.open import open_shards
from train.data.shards import DamagedError, Shards
from train.evaluation.results import UnsavedError
from train.leaks import leak
from train.models import Model, choose_model

# Names and measures are those of the paper's tables 5 and 6.
TASKS = {"audio_retrieval": "audio → audio", "cross_modal_retrieval": "audio → image"}
ACCURACY, PRECISION = {"A@5": 5, "A@10": 10}, {"P@1": 1, "P@5": 5}
PLACES = max(ACCURACY.values())
# The paper names no view; SSL-TIE's released test code takes this one.
FRAME = "crop"
BATCH = 32
QUERIES = 512
"""Queries at a time: 83 MB of cosines with 20,304 clips."""
# Of the components of unit vectors. Their products are multiples of 2^-52 and sums of these stay below 2, so that
# float64 holds them exactly: a cosine is the same in any block, order, library and device, and ties are ties.
STEP = 2.0**-26


def exact_units(vectors: np.ndarray | Tensor) -> Tensor:
    """Unit vectors in float64 of vectors (N, C), rounded to multiples of 2^-26 (about 1.5e-8); zeros stay zeros.

    Raises AvpipeError where one is not finite.
    """
    given = torch.as_tensor(vectors, dtype=torch.float64)
    if not torch.isfinite(given).all():
        raise AvpipeError("some embeddings are not finite; the network did not survive its training, train it again")
    return torch.round(torch.nn.functional.normalize(given, dim=1) / STEP) * STEP


def nearest(query_NC: Tensor, item_MC: Tensor, places: int, without_own: bool) -> Tensor:
    """Return place_NK, int64: the `places` items of the highest cosine for each query, the best first.

    Both are of `exact_units`. Of equal cosines the item with the lower number comes first. `without_own` leaves item n
    out for query n. There are fewer places where there are fewer items.
    """
    places = min(places, len(item_MC) - without_own)
    found_NK = torch.empty(len(query_NC), places, dtype=torch.int64)
    for first in range(0, len(query_NC), QUERIES):
        rows = slice(first, first + QUERIES)
        cosine_BM = query_NC[rows] @ item_MC.T
        if without_own:
            own = torch.arange(len(cosine_BM))
            cosine_BM[own, first + own] = -torch.inf
        found_NK[rows] = _highest(cosine_BM, places)
    return found_NK


def _highest(cosine_BM: Tensor, places: int) -> Tensor:
    """Columns of the highest values, the best first; of equal ones the lower. torch.topk alone takes any of them."""
    more = min(places + 1, cosine_BM.shape[1])
    value_BK, column_BK = cosine_BM.topk(more, dim=1)
    last_B1 = value_BK[:, places - 1 : places]
    tied = (value_BK[:, places:] == last_B1).any(dim=1)  # some of the equal ones are left out: which, is to be decided
    value_BK, column_BK = value_BK[:, :places], column_BK[:, :places]
    if tied.any():
        minus_M = -torch.arange(cosine_BM.shape[1], dtype=torch.float32)
        equal_BM = torch.where(cosine_BM[tied] == last_B1[tied], minus_M, -torch.inf)
        lowest_BK = -equal_BM.topk(places, dim=1).values
        above_B1 = (value_BK[tied] > last_B1[tied]).sum(dim=1, keepdim=True)
        place_BK = torch.arange(places) - above_B1
        equal_BK = lowest_BK.gather(1, place_BK.clamp(min=0)).long()
        column_BK[tied] = torch.where(place_BK < 0, column_BK[tied], equal_BK)
    column_BK = column_BK.sort(dim=1).values
    order_BK = cosine_BM.gather(1, column_BK).sort(dim=1, descending=True, stable=True).indices
    return column_BK.gather(1, order_BK)


def measures(place_NK: Tensor, labels: list[str]) -> dict[str, float]:
    """A@5, A@10, P@1 and P@5 in [0, 1] of rankings over clips with these labels, of at least ten places if there are.

    A@K: share of the queries of whose first K one has the query's label; P@K: mean share of the first K that have it.
    """
    number_N = torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    hit_NK = number_N[place_NK] == number_N[:, None]
    accuracy = {name: hit_NK[:, :k].any(dim=1).double().mean().item() for name, k in ACCURACY.items()}
    return accuracy | {name: hit_NK[:, :k].double().mean().item() for name, k in PRECISION.items()}


def chance(labels: list[str], without_own: bool) -> dict[str, float]:
    """What a random order is expected to reach in each measure, given how many clips have each label."""
    total, counts = len(labels) - without_own, Counter(labels)
    expected = dict.fromkeys((*ACCURACY, *PRECISION), 0.0)
    for count in counts.values():
        share, right = count / len(labels), count - without_own
        for name, k in ACCURACY.items():
            expected[name] += share * (1 - comb(total - right, min(k, total)) / comb(total, min(k, total)))
        for name in PRECISION:
            expected[name] += share * right / total
    return expected


def score(audio_NC: np.ndarray, visual_NC: np.ndarray | None, labels: list[str]) -> dict[str, dict]:
    """Per task (see TASKS) the measures and, under `chance`, what a random order is expected to reach.

    audio_NC, visual_NC: embeddings of the same clips, of any length. Sounds are compared with those of all other clips
    (the paper's section 4.3.4); pictures are those of all clips, the query's own among them (section 4.4.4). Without
    `visual_NC` there is no second task. Raises AvpipeError for fewer than two clips.
    """
    if len(labels) < 2:
        raise AvpipeError(f"{len(labels)} clips with a label are too few to search; shard more of the split")
    query_NC = exact_units(audio_NC)
    items = {"audio_retrieval": query_NC}
    if visual_NC is not None:
        items["cross_modal_retrieval"] = exact_units(visual_NC)
    scores = {}
    for task, item_NC in items.items():
        without_own = task == "audio_retrieval"
        found_NK = nearest(query_NC, item_NC, PLACES, without_own)
        scores[task] = measures(found_NK, labels) | {"chance": chance(labels, without_own)}
    return scores


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Vectors of samples that could be read, float32 of unit length."""

    numbers: np.ndarray
    """(N,) which samples."""
    audio: np.ndarray
    """(N, C)."""
    visual: np.ndarray | None
    """(N, C); None of a method that sees nothing."""


def embeddings(model: Model, shards: Shards, numbers: np.ndarray, workers: int) -> Embeddings:
    """Of the samples with these numbers, in their order; those that cannot be read are left out, and said.

    Frames are centre crops. SSPL's picture vectors depend on the clip's own sound, by its PCM. Raises AvpipeError where
    no sample can be read.
    """
    readable = np.ones(len(shards), bool)

    def leave_out(error: DamagedError) -> None:
        print(f"avpipe: left out: {error}", file=sys.stderr)
        readable[number_of[error.clip_id]] = False

    number_of = {shards.clip_ids[number]: number for number in numbers}
    batches = list(_batches(model, shards, numbers, workers, leave_out))
    return Embeddings(
        numbers=numbers[readable[numbers]],
        audio=np.concatenate([audio_BC for _, audio_BC in batches]),
        visual=None if batches[0][0] is None else np.concatenate([visual_BC for visual_BC, _ in batches]),
    )


def _batches(
    model: Model, shards: Shards, numbers: np.ndarray, workers: int, on_damage: Callable[[DamagedError], None]
) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """(visual_BC, or None of a method that does not see, audio_BC) of each batch."""
    fabric = Fabric(accelerator="auto", devices=1)
    network: nn.Module = model.network.to(fabric.device, memory_format=torch.channels_last)
    seeing = hasattr(network, "embed")

    def read(number: int) -> Sample:
        view = {"image": TEST_VIEWS[FRAME](shards.frame(int(number)), model.image_px)} if seeing else {}
        return view | {"spec": shards.feature(int(number), model.feature)}

    parts = np.split(numbers, range(BATCH, len(numbers), BATCH))
    with ProgressLine("embed", len(numbers)) as line:
        for batch in stacked(parts, read, workers, on_damage):
            batch = fabric.to_device(batch)
            spec_B1FT = batch["spec"].float()
            if seeing:
                visual_BC, audio_BC = network.embed(normalise(batch["image"]), spec_B1FT)
                yield _numbers(visual_BC), _numbers(audio_BC)
            else:
                yield None, _numbers(network.embed_audio(spec_B1FT))
            line.advance(len(spec_B1FT))


def _numbers(vectors_BC: Tensor) -> np.ndarray:
    return vectors_BC.float().cpu().numpy()


def run_retrieval(
    root: Root,
    split: str,
    checkpoint: str | None = None,
    baseline: str | None = None,
    format_name: str | None = None,
    workers: int | None = None,
) -> dict:
    """Score a model on a split and write `<run>/retrieval/<split>/`: metrics.json and embeddings.npz.

    The choice of the model is `choose_model`'s. embeddings.npz holds clip_ids and labels (N,), audio and, of methods
    that see, visual (N, C), in the order of the ids. Clips without a label are left out and counted, as are those that
    cannot be read (`clips_damaged`). Returns what metrics.json holds. Raises AvpipeError for a wrong combination or
    missing input, UnsavedError, which has the result, where it cannot be written.
    """
    if checkpoint is not None and baseline is not None:
        raise AvpipeError("give either --checkpoint RUN or --baseline random-init")
    if format_name is not None and checkpoint is None:
        raise AvpipeError("--format says whose checkpoint --checkpoint is; give that file, too")
    if baseline not in (None, "random-init"):
        raise AvpipeError(f"{baseline!r} has no vectors to compare; the baseline of retrieval is random-init")
    shards = open_shards(root.shards / check_split_name(split))
    model = choose_model(root, shards, checkpoint, baseline, format_name)
    numbers = np.array([n for n in np.argsort(np.array(shards.clip_ids)) if shards.labels[n] is not None], int)
    if not len(numbers):
        raise AvpipeError(f"no clip of {split} here has a label; retrieval is scored by labels")
    loaders = default_workers() - 1 if workers is None else workers
    folder = model.run / "retrieval" / split
    with stage_lock(folder, "a retrieval"):
        remove_leftovers(folder)
        found = embeddings(model, shards, numbers, loaders)
        result = _result(model, shards, found, split, folder)
        try:
            _write(result, shards, found, folder)
        except OSError as error:
            raise UnsavedError(result, folder, error) from error
    return result


def _result(model: Model, shards: Shards, found: Embeddings, split: str, folder: Path) -> dict:
    """What metrics.json holds."""
    labels = [shards.labels[n] for n in found.numbers]
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
        **_training(model, shards, found.numbers),
        "frame": FRAME,
        **score(found.audio, found.visual, labels),
        "embeddings": str(folder / "embeddings.npz"),
    }


def _write(result: dict, shards: Shards, found: Embeddings, folder: Path) -> None:
    """The scores first: they are small."""
    with published(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    arrays = {"audio": found.audio} | ({} if found.visual is None else {"visual": found.visual})
    ids, labels = (np.array([some[n] for n in found.numbers]) for some in (shards.clip_ids, shards.labels))
    with published(folder / "embeddings.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, clip_ids=ids, labels=labels, **arrays)


def _training(model: Model, shards: Shards, numbers: np.ndarray) -> dict:
    """What the network was trained on, with how many of these samples it has seen, where that is known."""
    if model.trained_on is None:
        return {}
    found = leak(model.trained_on.clip_ids, [shards.clip_ids[n] for n in numbers])
    return {"trained_on": model.trained_on.record() | {"leak": found}}


def table(result: dict) -> str:
    """A result as text: each number with chance beside it."""
    names = (*ACCURACY, *PRECISION)
    lines = [
        f"{result['model']} on {result['split']}: {result['clips_scored']:,} of {result['clips_listed']:,} listed "
        f"clips of {result['categories']} categories, {result['clips_without_label']} without a label left out "
        f"(list {result['listed_sha256'][:12]})",
        f"{'':13} " + " ".join(f"{name:>6} {'chance':>7}" for name in names),
    ]
    for task, arrow in TASKS.items():
        if task in result:
            scores = result[task]
            numbers = " ".join(f"{scores[name]:6.3f} {scores['chance'][name]:7.3f}" for name in names)
            lines.append(f"{arrow:13} {numbers}")
    lines.append("A@K: one of the first K is of the category; P@K: share of the first K; chance: clips in random order")
    if "cross_modal_retrieval" not in result:
        lines.append("the method sees nothing, so there is no search for pictures")
    found = result.get("trained_on", {}).get("leak", {})
    if any(found.values()):
        lines.append(f"LEAK: trained on {found['clips']:,} of the scored clips, on {found['videos']:,} of their videos")
    return "\n".join(lines)
