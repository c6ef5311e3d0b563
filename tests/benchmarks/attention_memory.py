"""Prints the peak extra memory, in MiB, of one attention block forward and backward in this process.

`python -m benchmarks.attention_memory ours|explicit SIZE`: a batch of 64 maps of 64 channels, SIZE x SIZE. Linux only.
"""

from __future__ import annotations

import sys

import torch
from benchmarks.plain import SelfAttention
from torch import nn

from sagan.attention import SelfAttention2d
from sagan.config import AttentionConfig, ModelConfig, SpectralNormConfig
from sagan.diagnostics import peak_memory_mib, reset_peak_memory

BATCH, CHANNELS = 64, 64
CPU = torch.device("cpu")


def main(form: str, size: int) -> None:
    torch.set_num_threads(1)
    x = torch.randn(BATCH, CHANNELS, size, size)
    if form == "ours":
        block: nn.Module = SelfAttention2d(CHANNELS, AttentionConfig(), spectral_norm=False)
        for parameter in block.parameters():
            nn.init.constant_(parameter, 0.01)
        x = x.contiguous(memory_format=torch.channels_last)
    else:
        block = SelfAttention(CHANNELS, ModelConfig(sn=SpectralNormConfig(attention=False)))
    step(block, x[:1])  # libraries take their own share at the first call
    reset_peak_memory(CPU)
    before = peak_memory_mib(CPU)
    step(block, x)
    print(peak_memory_mib(CPU) - before)


def step(block: nn.Module, x: torch.Tensor) -> None:
    block(x.detach().requires_grad_()).sum().backward()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
