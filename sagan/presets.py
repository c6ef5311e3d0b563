"""Named configs. A preset is a scale (data, budget); a study changes fields of it."""

from __future__ import annotations

from sagan.config import AttentionConfig, Config, DataConfig, EvalConfig, ModelConfig, OptimConfig

# The released code (brain-research/self-attention-gan @ad9612e): sizes and rates are the defaults in config.py.
# Four towers of 64 images; 1M steps is the paper's budget (section 4). Attention is a study's to place. Theirs was
# fp32 throughout; bf16 activations are ours, for the tensor cores of a GPU.
_OFFICIAL128 = Config(optim=OptimConfig(precision="bf16"))

# The paper's text where it disagrees with the code: beta2 0.9 (section 4), values of C/8 channels and no pooling
# (section 3, Fig. 2).
_PAPER128 = Config(
    model=ModelConfig(attention=AttentionConfig(value_ratio=8, pool=False)),
    optim=OptimConfig(precision="bf16", beta2=0.9),
)

# Minutes on one CPU core. Chosen by eye and class consistency from twenty single runs, not by a study: 8 images and
# many steps did better than 16 images and half the steps, and no run at a ratio of rates of 1:4 did as well
# in so few steps. The moving average makes up for rates that are high for the sake of speed. With so few steps running
# batch-norm averages lag behind the weights, so statistics are measured anew.
_EMBEDDED = Config(
    data=DataConfig(name="embedded", resolution=64),
    model=ModelConfig(width_g=8, width_d=8, z_dim=64),
    optim=OptimConfig(lr_g=7e-4, lr_d=1.4e-3, lr_equal=1e-3, batch_size=8, steps=1000, ema_decay=0.99, ema_start=100),
    eval=EvalConfig(every=200, num_samples=1200, extractor="embedded-v1", bn="standing"),
)

PRESETS: dict[str, Config] = {
    "embedded": _EMBEDDED,
    "official128": _OFFICIAL128,
    "paper128": _PAPER128,
}
