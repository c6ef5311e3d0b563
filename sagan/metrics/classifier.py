"""A small classifier whose features score images of its own domain, and the training of its weights.

Its last layer sees the complete 64 px picture (arrangement), its third 17 px of it (texture).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sagan.data import ImageDataset

SIDE = 64
RESIZE = f"to {SIDE} px (nearest up, area down)"
# Out, kernel, stride.
_LAYERS = ((24, 5, 2), (48, 3, 2), (96, 3, 2), (128, 3, 2), (128, 3, 1))
_PHOTO_WIDTH = 2  # photographs need more channels than the built-in pictures
_BATCH = 128
_LOCAL_DEPTH = 3  # layers whose output sees 17 px
_NOISE, _UNEVEN = 8.0, 24.0  # grey levels of 255
_SHIFT = 8  # photographs are moved by up to an eighth of their side


class Classifier(nn.Module):
    """uint8 [B, 3, H, W] -> features [B, 128 w], logits [B, classes], local tokens [B, 96 w, 8, 8]; w is `width`.

    `norm` puts batch norm after each convolution, for training; stored weights have it folded in.
    """

    def __init__(self, num_classes: int, *, width: int = 1, norm: bool = False):
        super().__init__()
        outs = [channels * width for channels, _, _ in _LAYERS]
        self.width = width
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride=s, padding=k // 2)
            for i, o, (_, k, s) in zip([3, *outs[:-1]], outs, _LAYERS, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if norm else nn.Identity() for o in outs)
        self.head = nn.Linear(outs[-1], num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, side = images.float(), images.shape[-1]
        if side != SIDE:
            x = F.interpolate(x, size=(SIDE, SIDE), mode="nearest" if side < SIDE else "area")
        x = local = (x - 127.5).mul_(1 / 127.5).contiguous(memory_format=torch.channels_last)
        for depth, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            x = F.relu_(norm(conv(x)))
            if depth == _LOCAL_DEPTH:
                local = x
        features = x.mean((2, 3))
        return features, self.head(features), local


def save(network: Classifier, classes: tuple[str, ...], data: str, accuracy: float, file: Path) -> None:
    """float16 safetensors; `data` is the fingerprint of the images that it was trained on, `accuracy` on held-out ones.

    The metadata is one JSON text: safetensors writes several entries in random order, and equal weights must have
    equal hashes.
    """
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    training = {"classes": classes, "data": data, "accuracy": round(accuracy, 4)}
    save_file(tensors, file, {"training": json.dumps(training)})


def load(file: Path) -> tuple[Classifier, tuple[str, ...]]:
    """The network and its classes."""
    with safe_open(file, "pt") as stored:
        classes = tuple(json.loads(stored.metadata()["training"])["classes"])
        tensors = {name: stored.get_tensor(name).float() for name in stored.keys()}
    network = Classifier(len(classes), width=len(tensors["convs.0.bias"]) // _LAYERS[0][0])
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return network, classes


def train(dataset: ImageDataset, rows: Tensor, *, steps: int, seed: int, device: torch.device) -> Classifier:
    """A classifier of those rows [N] of the data, on the CPU, batch norm folded in and weights rounded to float16.

    Visible noise, blur and changes of contrast are left out on purpose: features trained to overlook them
    would overlook them in generated images too.
    """
    augment, width = (_disturbed, 1) if dataset.name == "embedded" else (_shifted, _PHOTO_WIDTH)
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = Classifier(len(dataset.classes), width=width, norm=True).to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for step in range(1, steps + 1):
        batch = rows[torch.randint(len(rows), (_BATCH,), generator=draw)]
        _, logits, _ = network(augment(dataset.images[batch].to(device), draw))
        loss = F.cross_entropy(logits, dataset.labels[batch].to(device))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss.item():.4f}", flush=True)
    return _folded(network.cpu().eval())


def _disturbed(images: Tensor, draw: torch.Generator) -> Tensor:
    """For drawings, float32 [B, 3, H, W]: changes that leave a drawing what it is, and half of the time mirrored.

    Noise by pixel with an sd of up to 3 % of the range, lines along and across (what convolutions leave at borders) and
    shading of up to 9 %. Without it features moved as far for noise of one grey level as for another class.
    """
    count, channels, height, width = images.shape
    disturbed = images.float()
    for shape, limit in (((height, width), _NOISE), ((height, 1), _UNEVEN), ((1, width), _UNEVEN), ((4, 4), _UNEVEN)):
        strength = torch.rand(count, 1, 1, 1, generator=draw) * limit
        pattern = strength * torch.randn(count, channels, *shape, generator=draw)
        if shape == (4, 4):
            pattern = F.interpolate(pattern, size=(height, width), mode="bilinear")
        disturbed = disturbed + pattern.to(images.device)
    return disturbed.flip(3) if torch.rand((), generator=draw) < 0.5 else disturbed


def _shifted(images: Tensor, draw: torch.Generator) -> Tensor:
    """For photographs: each moved on its own, reflected at the edges, and half of them mirrored; none interpolated."""
    count, _, side, _ = images.shape
    reach = side // _SHIFT
    moved = torch.randint(-reach, reach + 1, (2, count, 1), generator=draw) + torch.arange(side)
    moved = (side - 1) - ((side - 1) - moved.abs()).abs()  # -1 becomes 1, and `side` becomes side - 2
    rows, columns = moved
    columns = torch.where(torch.rand(count, 1, generator=draw) < 0.5, columns.flip(1), columns)
    numbers, channels = torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None]
    places = (numbers, channels, rows[:, None, :, None], columns[:, None, None, :])
    return images[tuple(place.to(images.device) for place in places)]


def accuracy(network: nn.Module, images: Iterable[Tensor], labels: Tensor, device: torch.device) -> float:
    """Share of uint8 batches, in the order of `labels` [N], whose class is found."""
    network.to(device)
    with torch.inference_mode():
        found = torch.cat([network(batch.to(device))[1].argmax(1).cpu() for batch in images])
    return float((found == labels).float().mean())


def _folded(trained: Classifier) -> Classifier:
    folded = Classifier(trained.head.out_features, width=trained.width)
    for i, (conv, norm) in enumerate(zip(trained.convs, trained.norms, strict=True)):
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        folded.convs[i] = fuse_conv_bn_eval(conv, norm)
    folded.head = trained.head
    folded.load_state_dict({name: value.half().float() for name, value in folded.state_dict().items()})
    return folded.eval().requires_grad_(False)
