"""Images -> features, once; every metric starts from what this returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sagan.metrics.diversity import thumbnails
from sagan.metrics.extractor import Extractor

TOKENS_PER_IMAGE = 4
_TOKEN_SEED = 17
_CPU_ROWS = 50  # a CPU's cache does not hold the activations of more: a tenth slower


@dataclass(frozen=True)
class Features:
    """The output of an extractor for N images, on the CPU."""

    features: Tensor  # float32 [N, d], pooled over all positions
    logits: Tensor  # float32 [N, k], before the softmax
    local: Tensor  # float32 [4 N, dl], each from a small window; image i owns rows 4i to 4i + 3
    labels: Tensor  # int64 [N], the labels asked for
    thumbnails: Tensor  # uint8 [N, 192], see `diversity.thumbnails`
    shape_parameters: Tensor  # float32 [N, P], measured on the pixels; P is 0 where there is no such measure


def joined(parts: Sequence[Features]) -> Features:
    """Those of all images of `parts`, in their order."""
    names = Features.__annotations__
    return Features(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def extract(
    extractor: Extractor,
    images: Iterable[Tensor],
    labels: Tensor,
    device: torch.device,
    shard: slice | None = None,
    *,
    measure: Callable[[Tensor], Tensor] | None = None,
) -> Features:
    """Features of uint8 [B, 3, H, W] batches that follow the order of `labels` [N], or of `labels[shard]`.

    `measure` maps such a batch to shape parameters [B, P].

    Local tokens sit at four positions per image, drawn from a fixed seed by the image's place in the sequence, so the
    result depends neither on the batch size nor on which process extracts which shard. TF32 and autocast are off:
    float32 means float32 on every machine.
    """
    choices = torch.rand(len(labels), TOKENS_PER_IMAGE, generator=torch.Generator().manual_seed(_TOKEN_SEED))
    if shard is not None:
        choices, labels = choices[shard], labels[shard]
    found = list[Features]()
    start = 0
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), exact:
        for batch in images:
            for part in batch.split(_CPU_ROWS) if device.type == "cpu" else [batch]:
                part = part.to(device)
                features, logits, tokens = extractor(part)
                cells = tokens.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h w, dl]
                stop = start + len(part)
                chosen = (choices[start:stop].to(device) * cells.shape[1]).long()
                rows = torch.arange(len(cells), device=device)[:, None]
                found.append(
                    Features(
                        features=features.float().cpu(),
                        logits=logits.float().cpu(),
                        local=cells[rows, chosen].flatten(0, 1).float().cpu(),
                        labels=labels[start:stop].cpu(),
                        thumbnails=thumbnails(part).cpu(),
                        shape_parameters=measure(part).cpu() if measure else torch.empty(len(part), 0),
                    )
                )
                start = stop
    assert start == len(labels), f"{start} images for {len(labels)} labels"
    return joined(found)
