"""The typed description of one training run: everything that decides its result, except seed and machine.

`override` changes fields by dotted name, `diff` says what differs, `digest` names a config in eight bytes.
Paths, devices and numbers of workers are not included: they may differ between machines, results may not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

RESOLUTIONS = (32, 64, 128, 256)
# Fields that may differ when a shorter run is extended: they affect neither the steps that both runs share nor the
# evaluations at multiples of `eval.every`.
EXTENDABLE_FIELDS = ("optim.steps", "eval.endpoint")
DATASETS = ("embedded", "cifar10", "cifar100", "stl10", "celeba", "imagenette", "imagenet", "folder")


@dataclass(frozen=True)
class DataConfig:
    """Which images. `attribute` is for CelebA only and gives it two classes; without it CelebA has no labels.

    `augment` lists the transforms of DiffAugment (sagan/augmentation.py), in the order in which they are applied.
    """

    name: str = "imagenet"
    resolution: int = 128
    h_flip: bool = False
    attribute: str = ""
    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()

    def __post_init__(self) -> None:
        one_of("data.name", self.name, DATASETS)
        one_of("data.resolution", self.resolution, RESOLUTIONS)
        if self.attribute and self.name != "celeba":
            raise ValueError(f"data.attribute: only celeba has attributes, got {self.attribute!r} for {self.name}")
        _each_once("data.augment", self.augment)


@dataclass(frozen=True)
class AttentionConfig:
    """Where self-attention sits and what it is made of. `at` lists feature maps: 32 is feat32.

    Defaults follow the official code; the paper's text has value_ratio=8 and pool=False. The other kinds put a local
    residual block in attention's place, with as many parameters or, "residual_flops", as many multiplications as the
    attention that the other fields describe (sagan/attention.py).
    """

    kind: Literal["self_attention", "residual", "residual_flops"] = "self_attention"
    at: tuple[int, ...] = ()
    networks: Literal["both", "G", "D"] = "both"
    key_ratio: int = 8  # queries and keys have C / key_ratio channels
    min_key_channels: int = 1  # lower limit: with a single channel a query can only rank keys, not match them
    value_ratio: int = 2  # values have C / value_ratio channels
    pool: bool = True  # 2x2 max-pooled keys and values
    scale: bool = False  # divide the scores by sqrt(channels of a key)
    gamma: float = 0.0  # initial gain of the residual branch

    def __post_init__(self) -> None:
        for size in self.at:
            one_of("model.attention.at", size, (8, 16, 32, 64, 128, 256))
        _each_once("model.attention.at", self.at)
        one_of("model.attention.key_ratio", self.key_ratio, (1, 2, 4, 8))
        one_of("model.attention.value_ratio", self.value_ratio, (1, 2, 4, 8))
        _positive("model.attention.min_key_channels", self.min_key_channels)


@dataclass(frozen=True)
class SpectralNormConfig:
    """Which weights are divided by their largest singular value; each switch changes only what it names."""

    g: bool = True  # convolutions and the linear layer of G
    d: bool = True  # convolutions, linear layer and label embedding of D
    cbn: bool = False  # W and V of G's conditional batch norm, with gain = 1 + W[y] and bias = V[y] (see cbn_init)
    attention: bool = True  # the convolutions of attention blocks or their controls, in both networks
    eps: float = 1e-12

    def __post_init__(self) -> None:
        _positive("model.sn.eps", self.eps)


@dataclass(frozen=True)
class ModelConfig:
    """The networks. `conditioning` says how labels act: a projection in D (SAGAN), a class head on D whose
    cross-entropy both networks lower (AC-GAN), in either case with G's conditional batch norm; or not at all ("none").
    """

    conditioning: Literal["projection", "auxiliary_classifier", "none"] = "projection"
    width_g: int = 64
    width_d: int = 64
    z_dim: int = 128
    init: Literal["xavier", "orthogonal"] = "xavier"
    # Gains and biases per class start at 1 and 0 (official), or at 1 + W[y] and V[y] with W and V drawn as `init` says
    # (BigGAN-PyTorch, StudioGAN). sn.cbn always draws them: a table of zeros has no singular vectors.
    cbn_init: Literal["constant", "drawn"] = "constant"
    bn_momentum: float = 0.001  # torch's convention: the weight of the new value
    final_bn_momentum: float = 0.0001  # the plain batch norm before G's last convolution
    bn_eps: float = 1e-5
    bn_groups: int = 1  # equal groups of a batch that G's batch norm normalises separately, as the official towers do
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    sn: SpectralNormConfig = field(default_factory=SpectralNormConfig)

    def __post_init__(self) -> None:
        for name in ("width_g", "width_d", "z_dim"):
            _positive(f"model.{name}", getattr(self, name))
            if getattr(self, name) > 2**14:  # no tensor could be as large as the next widths ask for
                raise ValueError(f"model.{name}: must be {2**14} at most, got {getattr(self, name)}")
        _fraction("model.bn_momentum", self.bn_momentum)
        _fraction("model.final_bn_momentum", self.final_bn_momentum)
        _positive("model.bn_eps", self.bn_eps)
        _positive("model.bn_groups", self.bn_groups)


@dataclass(frozen=True)
class OptimConfig:
    """Losses, and Adam for both networks; one step is one generator update after `d_steps` discriminator updates."""

    loss: Literal["hinge", "non_saturating"] = "hinge"  # sagan/losses.py
    r1_gamma: float = 0.0  # weight of R1, the penalty on D's gradient at real images (Mescheder et al. 2018); 0: none
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: of activations in training; weights and scores stay fp32
    ttur: bool = True  # two rates, lr_g and lr_d; else lr_equal for both
    lr_g: float = 1e-4
    lr_d: float = 4e-4
    lr_equal: float = 2e-4  # not published; the geometric mean of the two
    beta1: float = 0.0
    beta2: float = 0.999
    adam_eps: float = 1e-8
    batch_size: int = 256
    steps: int = 1_000_000
    d_steps: int = 1
    ema_decay: float = 0.0  # 0 switches the moving average of G's weights off
    ema_start: int = 0  # until this step the average is a copy
    streams: int = 0  # runs with the same seed and another number here are statistically independent

    def __post_init__(self) -> None:
        for name in ("lr_g", "lr_d", "lr_equal", "adam_eps", "steps", "d_steps"):
            _positive(f"optim.{name}", getattr(self, name))
        for name in ("beta1", "beta2", "ema_decay"):
            _fraction(f"optim.{name}", getattr(self, name))
        for name in ("r1_gamma", "ema_start", "streams"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name}: must be 0 or more, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"optim.batch_size: batch norm needs 2 images or more, got {self.batch_size}")

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of G and of D."""
        return (self.lr_g, self.lr_d) if self.ttur else (self.lr_equal, self.lr_equal)


@dataclass(frozen=True)
class EvalConfig:
    """When and how samples are scored. The metric fingerprint has every field but `every` and `standing_images`:
    variants that differ only in these share a table.

    `bn` says which statistics G's batch norm uses: the running averages of training ("running", the official
    protocol) or statistics measured before each evaluation over `standing_images` images of fresh z, or a few more,
    as complete batches are drawn ("standing").
    """

    every: int = 10_000
    num_samples: int = 50_000
    extractor: str = "inception"
    bn: Literal["running", "standing"] = "running"
    standing_images: int = 1024  # with 128, FD varied from draw to draw by more than its sampling error
    endpoint: int = 1  # how many of a run's last evaluations its score is the mean of; 1: the last alone

    def __post_init__(self) -> None:
        _positive("eval.every", self.every)
        _positive("eval.endpoint", self.endpoint)
        if self.num_samples < 32:
            raise ValueError(f"eval.num_samples: statistics need 32 samples or more, got {self.num_samples}")
        _positive("eval.standing_images", self.standing_images)


@dataclass(frozen=True)
class Config:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def build_error(self) -> str | None:
        """Why these networks cannot be built ("needs 128 px"), or None."""
        groups, batch_size = self.model.bn_groups, self.optim.batch_size
        if batch_size % groups or batch_size < 2 * groups:
            return f"needs batches of {groups} equal parts of 2 images or more"
        for size in self.model.attention.at:
            # Attention follows a block; the first of D has half the image's size.
            needed = size if self.model.attention.networks == "G" else 2 * size
            if needed > RESOLUTIONS[-1]:
                return f"no resolution has feat{size}"
            if needed > self.data.resolution:
                return f"needs {needed} px"
        return None

    def check_buildable(self) -> None:
        """Raises ValueError where these networks cannot be built, with the reason."""
        if error := self.build_error():
            raise ValueError(
                f"model.attention.at, model.bn_groups: this config {error}, got "
                f"{list(self.model.attention.at)} at {self.data.resolution} px, "
                f"{self.model.bn_groups} groups of {self.optim.batch_size} images"
            )

    @property
    def evaluations(self) -> int:
        """How many times a run is scored: every `eval.every` steps, and at its last."""
        return -(-self.optim.steps // self.eval.every)

    def check_endpoint(self) -> None:
        """Raises ValueError where a run has fewer evaluations than `eval.endpoint`, of which its score is the mean."""
        if self.eval.endpoint > self.evaluations:
            raise ValueError(
                f"eval.endpoint: is longer than the run, which has {self.evaluations} evaluations in "
                f"{self.optim.steps} steps, got {self.eval.endpoint}; lower it or eval.every"
            )

    def no_effect(self, name: str) -> str:
        """Why a change of the field `name` would have no effect here, and what to do; "" where it has one."""
        unread = ("optim.lr_equal",) if self.optim.ttur else ("optim.lr_g", "optim.lr_d")
        if name not in unread:
            return ""
        now, needed = str(self.optim.ttur).lower(), str(not self.optim.ttur).lower()
        return f"has an effect only with optim.ttur={needed}, got optim.ttur={now}; also set optim.ttur={needed}"

    def check_shared(self, processes: int) -> None:
        """Raises ValueError where so many processes cannot share each batch with the same results as one process."""
        size, groups = self.optim.batch_size, self.model.bn_groups
        if size % processes:
            raise ValueError(
                f"optim.batch_size: must be a multiple of the {processes} processes that share a batch, got {size}; "
                f"change it, or start another number of processes"
            )
        if groups % processes and processes % groups:
            raise ValueError(
                f"model.bn_groups: with {processes} processes must divide that number or be a multiple of it, got "
                f"{groups}; change it, or start another number of processes"
            )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.lr_g": 1e-4, ...} with every field of a Config, or of a part of one, once."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        flat |= flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return flat


def field_names() -> tuple[str, ...]:
    return tuple(flatten(Config()))


def override(config: Config, changes: typing.Mapping[str, Any]) -> Config:
    """A copy with fields changed by dotted name; texts are read as the field's type ("1e-4" for a float).

    Raises ValueError with the field, the rule and the value; for an unknown field, with the nearest known name.
    """
    known = flatten(config)
    for name in changes:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"fields are {', '.join(known)}"
            raise ValueError(f"{name}: no such field; {hint}")
    return typing.cast(Config, _rebuild(config, "", changes))


def diff(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The fields that differ, each with both values."""
    a, b = flatten(one), flatten(other)
    return {name: (a[name], b[name]) for name in a if a[name] != b[name]}


def is_prefix_of(shorter: Config, config: Config) -> bool:
    """Whether a run of `shorter` is the first part of a run of `config` with the same seed."""
    return shorter.optim.steps < config.optim.steps and diff(shorter, config).keys() <= set(EXTENDABLE_FIELDS)


def digest(config: Config) -> str:
    """16 hexadecimal digits; equal for equal configs, on every machine."""
    text = json.dumps(flatten(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rebuild(node: Any, prefix: str, changes: typing.Mapping[str, Any]) -> Any:
    kind: Any = type(node)
    hints = _hints(kind)
    values = {}
    for item in dataclasses.fields(node):
        name, value = f"{prefix}{item.name}", getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            values[item.name] = _rebuild(value, f"{name}.", changes)
        else:
            values[item.name] = _coerce(name, hints[item.name], changes[name]) if name in changes else value
    return kind(**values)


@functools.cache  # evaluating the annotations took most of the time of `override`
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind`, or ValueError. Texts are converted, because a command line has nothing else."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return one_of(name, value, typing.get_args(kind))
    if origin is tuple:
        items, item_kind = value, typing.get_args(kind)[0]
        if isinstance(value, str):
            items = [item.strip() for item in value.strip("[]() ").split(",") if item.strip()]
        if not isinstance(items, (list, tuple)):
            example = 32 if item_kind is int else typing.get_args(item_kind)[0]
            raise ValueError(f"{name}: must be a list such as [{example}], got {value!r}")
        return tuple(_coerce(name, item_kind, item) for item in items)
    rule = {bool: "true or false", str: "a text", int: "a whole number", float: "a finite number"}[kind]
    if kind is bool and (isinstance(value, bool) or value in ("true", "false")):
        return value in (True, "true")
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, float) and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
            if kind is float and math.isfinite(number):
                return number
            if kind is int and number == int(number):
                integer = value if isinstance(value, int) else int(number)
                if abs(integer) <= _LARGEST:
                    return integer
                rule = f"{_LARGEST} at most"
    raise ValueError(f"{name}: must be {rule}, got {value!r}")


_LARGEST = 2**53  # texts are read as floats, which cannot hold all larger integers


def one_of(name: str, value: Any, allowed: typing.Collection[Any]) -> Any:
    """`value`. Raises ValueError if it is not among `allowed`, with the nearest that is."""
    if value in allowed and not isinstance(value, bool):
        return value
    close = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{name}: must be one of {', '.join(map(str, allowed))}, got {value!r}{hint}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: must be above 0, got {value}")


def _each_once(name: str, values: tuple[Any, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: each value once, got {list(values)}; drop the repetition")


def _fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: must be in [0, 1), got {value}")
