"""Inception v3 as the papers use it: the 2015 TensorFlow graph in torch-fidelity's port, which matches it to 1e-6."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

OFFICIAL_FILE = URL_INCEPTION_V3.rpartition("/")[2]
RESIZE = "to 299 px (TensorFlow 1 bilinear)"


class Inception(nn.Module):
    """uint8 [B, 3, H, W] -> features [B, 2048], logits [B, 1008], local tokens [B, 256, 35, 35].

    The logits leave the bias out, as in the official Inception score. The local tokens are the output of Mixed_5b,
    which sees 63 of the 299 px; no paper defines them.
    """

    def __init__(self, weights: Path | None):
        super().__init__()
        path = None if weights is None else str(weights)
        self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], path, verbose=False)
        self.network.to(memory_format=torch.channels_last)  # twice as fast on a CPU, same result to 6e-7
        self._local: list[Tensor] = []
        self.network.Mixed_5b.register_forward_hook(lambda _module, _inputs, output: self._local.append(output))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, logits = self.network(images)
        return features, logits, self._local.pop()


def load_inception(weights: Path | None) -> tuple[Inception, Path]:
    """The network and the file its weights came from; without `weights` torch-fidelity downloads them once.

    Raises ValueError where the file is missing or is none of Inception's, and where the download fails.
    """
    if weights is None:
        try:
            network = Inception(None)
        except OSError as error:
            raise ValueError(
                f"Inception weights: the download of {URL_INCEPTION_V3} failed ({error}); fetch {OFFICIAL_FILE} on a "
                f"machine with a network and pass --inception-weights FILE"
            ) from error
        return network, Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL_FILE
    wanted = f"it should be {OFFICIAL_FILE} from {URL_INCEPTION_V3}"
    if not weights.is_file():
        raise ValueError(f"--inception-weights: no file {weights}; {wanted}")
    try:
        # torch-fidelity unpickles without restrictions, so it gets only a file that has loaded with `weights_only`.
        torch.load(weights, map_location="cpu", weights_only=True)
        return Inception(weights), weights
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"--inception-weights: {weights} does not hold Inception's state dict; {wanted}") from error
