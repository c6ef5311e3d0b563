from typing import Literal

import pytest
import torch

from sagan.attention import ResidualControl, SelfAttention2d
from sagan.config import AttentionConfig, Config, ModelConfig, SpectralNormConfig, override
from sagan.layers import Conv2d
from sagan.networks import Discriminator, Generator, num_parameters
from sagan.presets import PRESETS
from sagan.spectral_norm import apply_spectral_norm

Kind = Literal["self_attention", "residual", "residual_flops"]


@pytest.mark.parametrize(
    ("resolution", "at", "num_classes", "expected"),
    [
        (128, (), 1000, (41_996_931, 39_443_137)),
        (128, (8,), 1000, (43_307_652, 39_770_818)),
        (128, (16,), 1000, (42_324_612, 39_525_058)),
        (128, (32,), 1000, (42_078_852, 39_463_618)),
        (128, (64,), 1000, (42_017_412, 39_448_258)),
        (32, (16,), 10, (4_386_308, 1_075_586)),
        (32, (), 10, (4_304_387, 1_055_105)),
        (64, (32,), 200, (13_387_396, 19_752_642)),
    ],
)
def test_parameter_counts_are_those_of_the_official_code_and_those_that_studiogan_logged(
    resolution: int, at: tuple[int, ...], num_classes: int, expected: tuple[int, int]
) -> None:
    """Of G and D at width 64, z 128; 128 px is official, the others are StudioGAN's."""
    model = ModelConfig(attention=AttentionConfig(at=at))
    with torch.device("meta"):
        networks = Generator(model, resolution, num_classes), Discriminator(model, resolution, num_classes)
    assert tuple(map(num_parameters, networks)) == expected


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_shapes_and_ranges_at_every_resolution(resolution: int) -> None:
    model = ModelConfig(width_g=4, width_d=4, z_dim=8, attention=AttentionConfig(at=(8,)))
    generator, discriminator = Generator(model, resolution, 3), Discriminator(model, resolution, 3)
    labels = torch.tensor([0, 2])
    images = generator(torch.randn(2, 8), labels)
    assert images.shape == (2, 3, resolution, resolution)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (2,)


@pytest.mark.parametrize(
    ("kind", "block"),
    [("self_attention", SelfAttention2d), ("residual", ResidualControl), ("residual_flops", ResidualControl)],
)
@pytest.mark.parametrize("networks", ["both", "G", "D"])
def test_attention_and_its_controls_sit_in_the_networks_they_are_asked_for(
    networks: str, kind: str, block: type
) -> None:
    attention = AttentionConfig(at=(8, 16), networks=networks, kind=kind)  # type: ignore[arg-type]
    model = ModelConfig(width_g=4, width_d=4, attention=attention)
    generator, discriminator = Generator(model, 64, 3), Discriminator(model, 64, 3)
    assert set(generator.attention) == ({"8", "16"} if networks != "D" else set())
    assert set(discriminator.attention) == ({"8", "16"} if networks != "G" else set())
    assert all(isinstance(b, block) for b in (*generator.attention.values(), *discriminator.attention.values()))


def test_the_same_seed_starts_shared_layers_of_two_variants_from_the_same_weights() -> None:
    plain = Generator(ModelConfig(width_g=4), 32, 3, seed=5).state_dict()
    model = ModelConfig(width_g=4, attention=AttentionConfig(at=(8, 16)))
    attentive = Generator(model, 32, 3, seed=5).state_dict()
    assert all(torch.equal(tensor, attentive[name]) for name, tensor in plain.items())
    other = Generator(ModelConfig(width_g=4), 32, 3, seed=6).state_dict()
    assert not torch.equal(plain["linear.weight"], other["linear.weight"])


@pytest.mark.parametrize("kind", ["self_attention", "residual"])
@pytest.mark.parametrize("switch", ["g", "d", "cbn", "attention"])
def test_a_spectral_norm_switch_changes_its_own_layers_alone(switch: str, kind: Kind) -> None:
    at = AttentionConfig(at=(8,), kind=kind)
    everything = SpectralNormConfig(g=True, d=True, cbn=True, attention=True)
    without = SpectralNormConfig(**{**vars(everything), switch: False})

    def normed(config: SpectralNormConfig) -> set[str]:
        model = ModelConfig(width_g=4, width_d=4, attention=at, sn=config)
        networks = {"G": Generator(model, 32, 3), "D": Discriminator(model, 32, 3)}
        return {
            f"{letter}.{name.removesuffix('.u')}"
            for letter, network in networks.items()
            for name in network.state_dict()
            if name.endswith(".u")
        }

    lost = normed(everything) - normed(without)
    assert lost
    belongs = {
        "g": lambda name: name.startswith("G.") and ".bn" not in name and "attention" not in name,
        "d": lambda name: name.startswith("D.") and "attention" not in name,
        "cbn": lambda name: ".bn" in name,
        "attention": lambda name: "attention" in name,
    }[switch]
    assert all(belongs(name) for name in lost)
    assert not any(belongs(name) for name in normed(without))


CONDITIONING = {
    "projection": ("projection", 0),
    "a class head has a bias a class": ("auxiliary_classifier", 3),
    "no label, no table in D": ("none", -3 * 8),
}


@pytest.mark.parametrize(("conditioning", "more"), CONDITIONING.values(), ids=CONDITIONING)
def test_conditioning_changes_the_head_of_d_alone(conditioning: str, more: int) -> None:
    networks = {}
    for kind in ("projection", conditioning):
        model = ModelConfig(width_d=4, conditioning=kind)  # type: ignore[arg-type]
        networks[kind] = Discriminator(model, 32, 3)
    ours, projection = networks[conditioning], networks["projection"]
    shared = {name: tensor for name, tensor in projection.state_dict().items() if not name.startswith("embedding")}
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in shared.items())
    assert num_parameters(ours) - num_parameters(projection) == more


@pytest.mark.parametrize("conditioning", ["projection", "auxiliary_classifier", "none"])
def test_labels_reach_the_logits_by_projection_alone_and_images_unless_there_is_no_conditioning(
    conditioning: str,
) -> None:
    model = ModelConfig(width_g=4, width_d=4, z_dim=8, conditioning=conditioning)  # type: ignore[arg-type]
    generator, discriminator = Generator(model, 32, 3).eval(), Discriminator(model, 32, 3)
    for name, table in generator.named_parameters():
        if ".gain." in name:
            torch.nn.init.normal_(table, generator=torch.Generator().manual_seed(0))  # all rows start at 1
    z, one, other = torch.randn(2, 8), torch.tensor([0, 1]), torch.tensor([2, 0])
    images = generator(z, one)
    assert torch.equal(images, generator(z, other)) == (conditioning == "none")
    (logits, class_logits), (same, _) = discriminator.logits(images, one), discriminator.logits(images, other)
    assert torch.equal(logits, same) == (conditioning != "projection")
    assert (class_logits is not None) == (conditioning == "auxiliary_classifier")
    assert class_logits is None or class_logits.shape == (2, 3)


@pytest.mark.parametrize(("conditioning", "norm"), [("projection", "bn"), ("none", "blocks.0.bn1")])
def test_a_batch_norm_without_labels_has_no_table_for_spectral_norm_to_divide(conditioning: str, norm: str) -> None:
    model = ModelConfig(width_g=4, conditioning=conditioning, sn=SpectralNormConfig(cbn=True))  # type: ignore[arg-type]
    state = Generator(model, 32, 3).state_dict()
    assert not {f"{norm}.gain.u", f"{norm}.bias.u"} & state.keys()
    assert len(state[f"{norm}.gain.weight"]) == 1
    assert (state[f"{norm}.gain.weight"] == 1).all() and (state[f"{norm}.bias.weight"] == 0).all()


@pytest.mark.parametrize("num_classes", [6, 1000])
@pytest.mark.parametrize("init", ["xavier", "orthogonal"])
def test_gains_start_near_1_also_with_spectral_norm_of_cbn(
    num_classes: int, init: Literal["xavier", "orthogonal"]
) -> None:
    generator = Generator(ModelConfig(width_g=8, init=init, sn=SpectralNormConfig(cbn=True)), 32, num_classes)
    apply_spectral_norm(generator.weight_layers, update=False, eps=1e-12)
    norm = generator.blocks[0].bn1
    rows = torch.arange(num_classes)
    assert float((1 + norm.gain(rows)).mean().detach()) == pytest.approx(1, abs=0.1)
    assert all(0 < table(rows).abs().max() <= 1 for table in (norm.gain, norm.bias))


@pytest.mark.parametrize("init", ["xavier", "orthogonal"])
def test_drawn_tables_of_cbn_start_as_those_with_spectral_norm_before_it_divides(
    init: Literal["xavier", "orthogonal"],
) -> None:
    drawn = Generator(ModelConfig(width_g=4, init=init, cbn_init="drawn"), 32, 3).state_dict()
    normed = Generator(ModelConfig(width_g=4, init=init, sn=SpectralNormConfig(cbn=True)), 32, 3).state_dict()
    constant = Generator(ModelConfig(width_g=4, init=init), 32, 3).state_dict()
    assert drawn.keys() == constant.keys()
    for name, tensor in drawn.items():
        if name.startswith("blocks") and ".gain." in name:
            assert torch.equal(tensor, normed[name] + 1) and (constant[name] == 1).all()
        elif name.startswith("blocks") and ".bn" in name and ".bias." in name:
            assert torch.equal(tensor, normed[name]) and (constant[name] == 0).all()
        else:
            assert torch.equal(tensor, normed[name]) and torch.equal(tensor, constant[name])


@pytest.mark.parametrize(
    ("resolution", "at", "build_error"),
    [
        (64, 32, None),
        (64, 64, "needs 128 px"),
        (32, 16, None),
        (32, 32, "needs 64 px"),
        (128, 64, None),
    ],
)
def test_a_feature_map_that_a_network_lacks_is_named_with_the_resolution_that_has_it(
    resolution: int, at: int, build_error: str | None
) -> None:
    config = override(Config(), {"data.resolution": resolution, "model.attention.at": [at]})
    assert config.build_error() == build_error


@pytest.mark.parametrize("kind", [Generator, Discriminator])
def test_orthogonal_kernels_have_singular_values_of_one(kind: type[Generator] | type[Discriminator]) -> None:
    network = kind(ModelConfig(width_g=4, width_d=4, init="orthogonal"), 32, 3)
    kernels = [layer.weight.detach().flatten(1) for layer in network.modules() if isinstance(layer, Conv2d)]
    assert len(kernels) > 8
    for kernel in kernels:
        assert torch.linalg.svdvals(kernel) == pytest.approx(1, abs=1e-5)


def test_embedded128_has_all_five_places_of_attention_with_eight_key_channels_or_more() -> None:
    config = override(PRESETS["embedded128"], {"model.attention.at": [8, 16, 32, 64]})
    assert config.build_error() is None
    for network in (Generator(config.model, 128, 2), Discriminator(config.model, 128, 2)):
        keys = {size: block.key.weight.shape[0] for size, block in network.attention.items()}
        assert keys.keys() == {"8", "16", "32", "64"} and min(keys.values()) >= 8
