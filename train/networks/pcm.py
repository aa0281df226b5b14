"""The predictive coding module (PCM) of SSPL (section 3.3, algorithm S1): visual features that predict the audio.

Three layers of representations with 512 channels at 3×3, 7×7 and 14×14 positions; the last has the size of the visual
feature map. Top-down, each layer predicts the one below and the lowest predicts the audio vector; bottom-up, the
prediction errors correct each layer. Shapes: B batch, C channels, A audio channels, H × W positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

LAYERS = 3
LOWEST = 3
"""Height and width of the lowest layer, in positions."""


class PredictiveCoding(nn.Module):
    """Map visual_BCHW (14 × 14) and audio_BA of unit length to a feature map with the shape of visual_BCHW."""

    def __init__(self, cycles: int, audio: int = 128, channels: int = 512):
        """Build the module; `cycles` excludes the first pass, which the paper's T includes: T = 5 is 4 here."""
        super().__init__()
        self.cycles = cycles
        self.to_audio = nn.Conv2d(channels, audio, kernel_size=1)
        self.feedback = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False) for _ in range(LAYERS - 1)
        )
        self.feedforward = nn.ModuleList(
            [
                nn.ConvTranspose2d(audio, channels, kernel_size=1, bias=False),
                nn.ConvTranspose2d(channels, channels, kernel_size=3, stride=2, bias=False),  # 3 to 7 positions
                nn.ConvTranspose2d(channels, channels, kernel_size=3, padding=1, bias=False),  # after upsampling
            ]
        )
        self.output = nn.ConvTranspose2d(channels, channels, kernel_size=1)
        self.prediction_rates = nn.ParameterList(_rate(channels, 0.5) for _ in range(LAYERS))
        self.error_rates = nn.ParameterList(_rate(channels, 1.0) for _ in range(LAYERS))
        # A separate batch norm per layer and pass, because the statistics of the passes differ.
        self.first_down_norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(LAYERS - 1))
        self.first_up_norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(LAYERS))
        self.down_norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(cycles * (LAYERS - 1)))
        self.up_norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(cycles * LAYERS))

    def forward(self, visual_BCHW: Tensor, audio_BA: Tensor) -> Tensor:
        """Return the feature map after all passes."""
        predicted = [visual_BCHW]
        for layer in reversed(range(LAYERS - 1)):
            below = self._feed_back(layer, predicted[0])
            predicted.insert(0, F.gelu(self.first_down_norms[layer](below)))
        states = self._correct(predicted, predicted, audio_BA, self.first_up_norms)
        for cycle in range(self.cycles):
            states = self._predict(states, predicted, cycle)
            norms = self.up_norms[cycle * LAYERS : (cycle + 1) * LAYERS]
            states = self._correct(states, predicted, audio_BA, norms)
        return self.output(states[-1])

    def _feed_back(self, layer: int, above: Tensor) -> Tensor:
        """Return the prediction of `layer` by the layer above it, at half the height and width."""
        return F.max_pool2d(self.feedback[layer](above), kernel_size=2)

    def _predict(self, states: list[Tensor], predicted: list[Tensor], cycle: int) -> list[Tensor]:
        """Top-down pass: move each state towards its prediction, then predict the layer below; updates `predicted`."""
        states = list(states)
        states[-1] = F.gelu(self._towards(LAYERS - 1, states[-1], predicted[-1]))
        for layer in reversed(range(LAYERS - 1)):
            predicted[layer] = self._feed_back(layer, states[layer + 1])
            mixed = self._towards(layer, states[layer], predicted[layer])
            states[layer] = F.gelu(self.down_norms[cycle * (LAYERS - 1) + layer](mixed))
        return states

    def _towards(self, layer: int, state: Tensor, prediction: Tensor) -> Tensor:
        rate = F.relu(self.prediction_rates[layer])
        return (1 - rate) * state + rate * prediction

    def _correct(self, states: list[Tensor], predicted: list[Tensor], audio_BA: Tensor, norms) -> list[Tensor]:
        """Bottom-up pass: correct each layer by the prediction error of the layer below it."""
        predicted_audio_BA = F.gelu(self.to_audio(states[0])).mean(dim=(2, 3))
        error = (audio_BA - predicted_audio_BA)[:, :, None, None].expand(-1, -1, LOWEST, LOWEST)
        corrected = []
        for layer in range(LAYERS):
            if layer == LAYERS - 1:
                error = F.interpolate(error, scale_factor=2, mode="bilinear", align_corners=True)
            drive = F.relu(self.error_rates[layer]) * self.feedforward[layer](error)
            corrected.append(F.gelu(norms[layer](states[layer] + drive)))
            error = corrected[layer] - predicted[layer]
        return corrected


def _rate(channels: int, value: float) -> Parameter:
    return Parameter(torch.full((1, channels, 1, 1), value))
