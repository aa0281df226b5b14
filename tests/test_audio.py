"""The batched twins of the feature specs against NumPy's, which are tested against everything else."""

import numpy as np
import pytest
import torch

from avpipe.pipeline.features.specs import SPECS
from avpipe.train.data.torch_features import SpecTransform

# In single precision a power near the floor of -100 dB is uncertain by a part of a decibel.
TOLERANCE = {"logspec": 1e-5, "logspec-10s": 1e-5, "vggish": 2e-4, "tie-mel": 0.3, "logmel": 2e-3}


def waves(spec, count: int = 4) -> np.ndarray:
    """Different levels, so that a maximum taken over the batch would show."""
    noise = np.random.default_rng(0).standard_normal((count, spec.samples))
    tone = np.sin(np.arange(spec.samples) * 0.3)
    return (noise * np.logspace(-4, -0.7, count)[:, None] + tone * 0.1 * (np.arange(count) % 2)[:, None]).clip(-1, 1)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_gives_what_numpy_gives_for_each(name, dtype):
    spec = SPECS[name]
    batch = waves(spec)
    ours = SpecTransform(name)(torch.from_numpy(batch).to(dtype))
    theirs = np.stack([spec.compute(wave) for wave in batch.astype(np.float32 if dtype == torch.float32 else float)])
    assert (ours.dtype, tuple(ours.shape)) == (dtype, (len(batch), *spec.shape))
    tolerance = TOLERANCE[name] if dtype == torch.float32 else 5e-5  # SSPL scales in single
    assert np.abs(ours.double().numpy() - theirs).max() < tolerance


@pytest.mark.parametrize("name", SPECS)
def test_autocast_and_half_inputs_do_not_reach_the_logarithm_and_gradients_reach_the_waveform(name):
    wave = torch.from_numpy(waves(SPECS[name], 2)).float()
    transform = SpecTransform(name)
    with torch.autocast("cpu", torch.bfloat16):
        inside = transform(wave)
    assert torch.equal(inside, transform(wave))
    assert transform(wave.bfloat16()).dtype == torch.float32
    transform(wave.requires_grad_()).sum().backward()
    assert torch.isfinite(wave.grad).all() and wave.grad.abs().sum() > 0


def test_tables_move_with_the_module_and_stay_out_of_checkpoints():
    transform = SpecTransform("tie-mel")
    assert not transform.state_dict()
    assert {buffer.device.type for buffer in transform.to("meta").buffers()} == {"meta"}
