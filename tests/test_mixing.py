"""Audio mixing: the schedule, the neighbours against brute force, the mixed sound."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric

from avpipe.pipeline.features.specs import SPECS, pcm_to_float
from avpipe.train.data.mixing import Mixing, read_window, schedule
from avpipe.train.data.neighbours import nearest, neighbour_table
from avpipe.train.data.training_samples import TrainingSamples

pytest_plugins = ["train_fixtures"]


class Ear(torch.nn.Module):
    """Hears the mean of each of the lowest bands."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def embed_audio(self, spec_B1FT):
        return torch.nn.functional.normalize(self.scale.detach() * spec_B1FT[:, 0, :64].mean(dim=2), dim=1)


def test_schedules_are_those_of_code_and_paper():
    assert [schedule("released", epoch, 100) for epoch in (0, 1, 50)] == [(0, 0), (0.01, 0.11), (0.5, 0.6)]
    assert schedule("paper", 0, 80) == (0, 0)
    assert schedule("paper", 79, 80) == (pytest.approx(0.65), 1)
    assert schedule("paper", 40, 81) == (pytest.approx(0.325), 1)
    assert schedule("none", 5, 10) == (0, 0)


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_nearest_is_that_of_all_products(count, channels, seed):
    vectors = torch.nn.functional.normalize(torch.randn(count, channels, generator=torch.Generator().manual_seed(seed)))
    indices = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:count]
    found = nearest(vectors, indices, vectors, indices)
    for row in range(count):
        products = [(vectors[row] @ vectors[k]).item() if k != row else -2 for k in range(count)]
        assert found[row] != row
        assert products[found[row]] == pytest.approx(max(products), abs=1e-6)


def test_the_table_names_for_each_clip_the_one_that_sounds_most_like_it(shards):
    indices = np.array([3, 0, 7, 9, 12])
    table = neighbour_table(Fabric(accelerator="cpu", devices=1), Ear(), shards, indices, "logspec", "paper", 0)
    assert (np.delete(table, indices) == -1).all()
    heard = {n: shards.feature(n, "logspec")[0, :64].astype(np.float32).mean(axis=1) for n in indices.tolist()}
    heard = {n: vector / np.linalg.norm(vector) for n, vector in heard.items()}
    for n in heard:
        assert table[n] == max((other for other in heard if other != n), key=lambda other: heard[n] @ heard[other])


def test_the_released_curriculum_looks_among_few(shards, monkeypatch):
    monkeypatch.setattr("avpipe.train.data.neighbours.RELEASED_CANDIDATES", 3)
    fabric, indices = Fabric(accelerator="cpu", devices=1), np.arange(16)
    tables = [neighbour_table(fabric, Ear(), shards, indices, "logspec", "released", seed) for seed in range(4)]
    for table in tables:
        assert len(set(table)) <= 3 and (table != indices).all()
    assert len({tuple(table) for table in tables}) > 1


def test_waveforms_are_mixed(shards):
    neighbours = np.roll(np.arange(16), 1).astype(np.int32)
    own, other = read_window(shards, 5, "logspec"), read_window(shards, 4, "logspec")
    of_the_cache = SPECS["logspec"].compute(pcm_to_float(own)).astype(np.float16)
    assert (of_the_cache == shards.feature(5, "logspec")[0]).all()
    always = Mixing(neighbours=neighbours, weight=0.25, share=1.0)
    samples = TrainingSamples(shards=shards, feature="logspec", image_px=32, seed=0, mixing=always)
    sounds, weight = samples[1, 5]["sounds"], samples[1, 5]["weight"]
    assert (sounds == [own, other]).all() and weight == 0.25
    sounds, weight = replace(always, share=0.0).sounds(shards, 5, "logspec", random.Random(0))
    assert (sounds == 0).all() and sounds.shape == (2, len(own)) and weight == 0
