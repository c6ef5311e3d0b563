"""A small classifier whose features score images of its own domain, and the training of its weights.

It sees the whole 64 px picture from its last layer and 17 px from its third, so one pass gives features of the
arrangement and features of the texture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 64
RESIZE = f"to {SIDE} px (nearest up, area down)"
# In, out, kernel, stride.
_LAYERS = ((3, 24, 5, 2), (24, 48, 3, 2), (48, 96, 3, 2), (96, 128, 3, 2), (128, 128, 3, 1))
_BATCH = 128
_LOCAL_DEPTH = 3  # layers whose output sees 17 px


class Classifier(nn.Module):
    """uint8 [B, 3, H, W] -> features [B, 128], logits [B, classes], local tokens [B, 96, 8, 8].

    `norm` puts batch norm after each convolution, for training; shipped weights have it folded in.
    """

    def __init__(self, num_classes: int, *, norm: bool = False):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, stride=s, padding=k // 2) for i, o, k, s in _LAYERS)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if norm else nn.Identity() for _, o, _, _ in _LAYERS)
        self.head = nn.Linear(_LAYERS[-1][1], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = (_resize(images.float()) - 127.5).mul_(1 / 127.5).contiguous(memory_format=torch.channels_last)
        local = x
        for depth, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            x = F.relu_(norm(conv(x)))
            if depth == _LOCAL_DEPTH:
                local = x
        features = x.mean((2, 3))
        return features, self.head(features), local


def _resize(images: Tensor) -> Tensor:
    side = images.shape[-1]
    if side == SIDE:
        return images
    return F.interpolate(images, size=(SIDE, SIDE), mode="nearest" if side < SIDE else "area")


@dataclass(frozen=True)
class Weights:
    """What a weights file holds: see `save`."""

    network: Classifier
    classes: tuple[str, ...]
    accuracy: float  # on images held out from its training


def save(network: Classifier, file: Path, *, classes: tuple[str, ...], data: str, accuracy: float) -> None:
    """float16 safetensors; metadata: class names, fingerprint of the training data, held-out accuracy.

    The metadata is one JSON text: safetensors writes several entries in random order, and equal weights must have
    equal hashes.
    """
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    training = {"classes": classes, "data": data, "accuracy": round(accuracy, 4)}
    save_file(tensors, file, {"training": json.dumps(training)})


def load(file: Path) -> Weights:
    with safe_open(file, "pt") as stored:
        training = json.loads(stored.metadata()["training"])
        tensors = {name: stored.get_tensor(name).float() for name in stored.keys()}
    classes = tuple(training["classes"])
    network = Classifier(len(classes))
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return Weights(network, classes, training["accuracy"])


def train(
    images: Tensor, labels: Tensor, num_classes: int, *, steps: int, seed: int, device: torch.device
) -> Classifier:
    """A classifier of uint8 [N, 3, H, W] images, batch norm folded in and weights rounded to float16.

    The augmentations are a permutation of the colour channels and mirroring. Noise, blur and changes of contrast are
    left out on purpose: features trained to overlook them would overlook them in generated images too. A second head
    that names such damages was tried: its features told real from damaged so sharply that they no longer graded it.
    """
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = Classifier(num_classes, norm=True).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for step in range(1, steps + 1):
        rows = torch.randint(len(images), (_BATCH,), generator=draw)
        batch = images[rows][:, torch.randperm(3, generator=draw)]
        if torch.rand((), generator=draw) < 0.5:
            batch = batch.flip(3)
        _, logits, _ = network(batch.to(device))
        loss = F.cross_entropy(logits, labels[rows].to(device))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}", flush=True)
    return _folded(network.cpu().eval())


def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        found = torch.cat([network(batch)[1].argmax(1) for batch in torch.split(images, 256)])
    return float((found == labels).float().mean())


def _folded(trained: Classifier) -> Classifier:
    folded = Classifier(trained.head.out_features)
    for i, (conv, norm) in enumerate(zip(trained.convs, trained.norms, strict=True)):
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        folded.convs[i] = fuse_conv_bn_eval(conv, norm)
    folded.head = trained.head
    rounded = {name: value.half().float() for name, value in folded.state_dict().items()}
    folded.load_state_dict(rounded)
    return folded.eval().requires_grad_(False)
