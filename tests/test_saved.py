"""Files of torch's from anywhere: what is damaged, packed or of wrong types is a sentence; prefixes of wrappers go."""

import io
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from thin import thin_networks  # noqa: F401

from avpipe.pipeline.core.errors import AvpipeError
from avpipe.train.core.safe_load import SEAL_BYTES, read_saved
from avpipe.train.models.author_checkpoints import flat_state
from avpipe.train.models.checkpoint import LAST, load_checkpoint, network_of
from avpipe.train.models.load import trained_model

sys.path.insert(0, str(Path(__file__).parent / "chaos"))
import checkpoint as chaos

pytestmark = pytest.mark.heavy


@pytest.fixture
def whole(tmp_path):
    return chaos.made(tmp_path)[0]


def refused(path, said):
    with pytest.raises(AvpipeError, match=said):
        read_saved(path)


def test_hostile_checkpoints_are_sentences(tmp_path):
    counts, faults = chaos.attack(tmp_path, rounds=24, seed=1)
    assert counts.total() >= 24 and not faults


def test_a_flipped_bit_anywhere_is_found(tmp_path, whole):
    path, old = tmp_path / LAST, tmp_path / "old.pt"
    for place in np.random.default_rng(0).integers(4, len(whole) - SEAL_BYTES, 12):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        refused(path, "is damaged: its checksum does not match")
    torch.save({"a": torch.arange(1000)}, old)  # without our checksum: held against those of its archive
    assert read_saved(old)["a"][7] == 7
    data = bytearray(old.read_bytes())
    data[len(data) // 2] ^= 1
    old.write_bytes(data)
    refused(old, r"is damaged: the checksum of its member 'old/data/0' does not match")


def bomb(path, whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, bytes(1 << 26) if member.filename.endswith("data/0") else old.read(member))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (bomb, r"is compressed \([\d,]+ bytes for [\d,]{10,}\), which torch never does; not loaded"),
        (lambda path, whole: os.mkfifo(path), "is not a regular file"),
        (lambda path, whole: None, "does not exist"),
        (lambda path, whole: path.write_text("hello"), "damaged or was not saved by torch"),
        (lambda path, whole: torch.save({"weights": torch.zeros(1)}, path), "not a checkpoint of this avpipe"),
    ],
)
def test_what_is_no_checkpoint_is_a_sentence(tmp_path, whole, make, said):
    (tmp_path / LAST).unlink()
    make(tmp_path / LAST, whole)
    for path in (tmp_path / LAST, tmp_path):
        with pytest.raises(AvpipeError, match=said):
            load_checkpoint(path)


def test_prefixes_of_wrappers_and_scores_as_arrays_are_no_hindrance(tmp_path, whole):
    state = load_checkpoint(tmp_path / LAST)
    ours = state["network"]
    wrapped = {f"_orig_mod.module.{name}": value for name, value in ours.items()}
    torch.save(state | {"network": wrapped, "scores": np.arange(3.0)}, tmp_path / "wrapped.pt")
    loaded = network_of(load_checkpoint(tmp_path / "wrapped.pt")).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in ours.items())
    plain = {"audnet.conv1_a.weight": torch.ones(1), "imgnet.bn1.bias": torch.zeros(1)}
    lightning = {"state_dict": {f"model.{name}": value for name, value in plain.items()}, "hyper_parameters": {}}
    assert flat_state(lightning, tmp_path) == plain
    torch.save(lightning, tmp_path / "lightning.ckpt")
    with pytest.raises(AvpipeError, match="looks like one of lvs: use --format lvs"):
        load_checkpoint(tmp_path / "lightning.ckpt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.update(step="3"), "step: Input should be a valid integer"),
        (lambda state: state["data"].pop("split"), "data.split: Field required"),
        (lambda state: state["recipe"].update(image_px=10**9), "image_px must be at most 2048"),
        (lambda state: state["recipe"]["options"].update(spec_pool=[]), "spec_pool: Input should be a valid integer"),
        (lambda state: state["network"].popitem(), "is missing"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, whole, change, said):
    state = load_checkpoint(tmp_path / LAST)
    change(state)
    torch.save(state, tmp_path / LAST)
    with pytest.raises(AvpipeError, match=said):
        trained_model(tmp_path / LAST)
