"""Scale and shift folded into a norm are the norm, then scale and shift; and images may lie channels last."""

import copy
import pickle
from pathlib import Path

import pytest
import timm
import torch
from networks import build, modulation_of, random_modulation
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import mtl
from mtl.networks.backbones import AbstractAdapter, Backbone
from mtl.networks.modulation import Modulation, Modulator, Site, modulate
from mtl.networks.modulation.folding import fold_of

NORMS = {
    "batch, maps": (lambda: nn.BatchNorm2d(4), (6, 4, 3, 3), 1),
    "batch, sequences": (lambda: nn.BatchNorm1d(4), (6, 4, 5), 1),
    "batch, without weight": (lambda: nn.BatchNorm2d(4, affine=False), (6, 4, 3, 3), 1),
    "batch and activation": (lambda: timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU), (6, 4, 3, 3), 1),
    "layer": (lambda: nn.LayerNorm(4), (6, 5, 4), -1),
    "layer, without bias": (lambda: nn.LayerNorm(4, bias=False), (6, 5, 4), -1),
    "layer, without weight": (lambda: nn.LayerNorm(4, elementwise_affine=False), (6, 5, 4), -1),
    "layer of timm": (lambda: timm.layers.LayerNorm(4), (6, 5, 4), -1),
}


class Called(nn.Module):
    """A norm as a network calls it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.shape[0] % 2 == 0 else self.norm(input=x)


def made(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Called, Tensor, Modulator]:
    """A network of one norm away from its initial values, its input, and the modulator of its output."""
    torch.manual_seed(0)
    make, shape, dim = NORMS[kind]
    norm = make().eval().requires_grad_(False).to(dtype)
    for name, value in norm.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if "var" in name else torch.randn(value.shape))
    network = Called(norm)
    return network, torch.randn(shape, dtype=dtype), Modulator(network, [Site("norm", 4, dim, "")])


def two_passes(network: Called, x: Tensor, m: Modulation, dim: int) -> Tensor:
    norm = network.norm
    if isinstance(norm, timm.layers.BatchNormAct2d):
        plain = nn.BatchNorm2d.forward(norm, x)
        return nn.functional.silu(modulate(plain, m.scale, m.shift, dim))
    return modulate(type(norm).forward(norm, x), m.scale, m.shift, dim)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("kind", NORMS)
def test_folded_is_the_norm_then_scale_and_shift_with_both_derivatives(kind: str, tasks: int):
    network, x, modulator = made(kind)
    x.requires_grad_()
    m = random_modulation(tasks, 4, dtype=torch.float64)
    leaves = [x, m.scale.requires_grad_(), m.shift.requires_grad_()]

    def derivatives(found: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(found.pow(3).sum(), leaves, create_graph=True)
        return [found, *first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)]

    with modulator.modulating(m):
        found = derivatives(network(x))
    expected = derivatives(two_passes(network, x, m, NORMS[kind][2]))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", NORMS)
def test_less_is_kept_for_the_backward_pass(kind: str):
    """The activation between the norm and its modulation is neither made nor kept."""
    network, x, modulator = made(kind)
    m = random_modulation(1, 4, dtype=torch.float64)
    m.scale.requires_grad_()
    x.requires_grad_()

    def kept(run) -> int:
        sizes: list[int] = []
        with saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            run()
        return sum(n >= x.numel() for n in sizes)

    with modulator.modulating(m):
        folded = kept(lambda: network(x))
    assert folded == kept(lambda: two_passes(network, x, m, NORMS[kind][2])) - 1


@pytest.mark.parametrize("kind", NORMS)
def test_a_call_without_modulation_is_the_norm_itself(kind: str):
    network, x, modulator = made(kind, torch.float32)
    plain = type(network.norm).forward(network.norm, x)
    assert torch.equal(network(x), plain)
    modulator.remove()
    assert torch.equal(network(x), plain)
    assert "forward" not in vars(network.norm)


def test_a_norm_called_by_keyword_is_folded_too():
    network, x, modulator = made("batch, maps")
    m = random_modulation(1, 4, dtype=torch.float64)
    with modulator.modulating(m):
        torch.testing.assert_close(network(x[:3]), network(x)[:3])


def test_what_is_recorded_is_not_modulated():
    network, x, modulator = made("batch, maps")
    plain, m = network(x), random_modulation(2, 4, dtype=torch.float64)
    with modulator.modulating(m), modulator.recording(6) as means:
        found = network(x)
    torch.testing.assert_close(means[0], plain.mean((2, 3)).float())
    torch.testing.assert_close(found, modulate(plain, m.scale, m.shift, 1))


def test_in_low_precision_a_batch_norm_keeps_its_exact_coefficients():
    network, x, modulator = made("batch, maps", torch.bfloat16)
    m = random_modulation(2, 4)
    with modulator.modulating(m):
        assert torch.equal(network(x), two_passes(network, x, m, 1))
    network, x, modulator = made("batch, maps", torch.float32)
    with modulator.modulating(m), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x.bfloat16()), two_passes(network, x.bfloat16(), m, 1))


def test_other_forwards_are_left_alone():
    class Doubled(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    patched = nn.LayerNorm(4)
    patched.forward = lambda x: 3 * x
    assert fold_of(Doubled(4)) is None
    assert fold_of(patched) is None
    for norm, times in ((Doubled(4), 2 * nn.LayerNorm(4)(torch.ones(2, 4))), (patched, 3 * torch.ones(2, 4))):
        network = Called(norm)
        with Modulator(network, [Site("norm", 4, -1, "")]).modulating(m := random_modulation(1, 4)):
            torch.testing.assert_close(network(torch.ones(2, 4)), modulate(times, m.scale, m.shift, -1))


def test_two_modulators_follow_one_another():
    network, x, first = made("layer")
    second = Modulator(network, first.sites)
    m, other = (random_modulation(1, 4, size, torch.float64) for size in (0.2, 0.3))
    with first.modulating(m), second.modulating(other):
        found = network(x)
    torch.testing.assert_close(found, modulate(two_passes(network, x, m, -1), other.scale, other.shift, -1))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_folds_what_it_is_given_and_not_what_the_original_is(copied, tmp_path: Path):
    backbone = build("resnet10t", tmp_path)
    other = copied(backbone)
    x, m = backbone.example_inputs(4).unflatten(2), modulation_of(backbone)
    assert torch.equal(other(x, m), backbone(x, m))
    with backbone.modulator.modulating(m):
        assert torch.equal(other(x), backbone(x))
    other.modulator.remove()
    assert torch.equal(other(x, m), backbone(x))


# --- channels last ---


class Images(AbstractAdapter):
    def features(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return model(inputs)

    def example(self, n: int) -> Tensor:
        return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def preprocess(self, items):
        raise NotImplementedError


class Flattens(nn.Module):
    """Convolutions, and maps that are flattened in one of two ways."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.convolve = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.view, self.strides = view, ()

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolve(x)
        self.strides = x.stride()
        return x.view(len(x), -1) if self.view else x.flatten(1)


@pytest.mark.parametrize("view", [False, True])
def test_images_lie_channels_last_where_the_network_takes_that(view: bool):
    backbone = Backbone(Flattens(view), Images(), name="mine")
    x = backbone.example_inputs(4)
    plain = backbone.model(x.tensor)
    found = backbone(x.with_task_axis(), Modulation.identity(1, backbone.modulation_width))[0]
    torch.testing.assert_close(found, plain)
    assert (backbone.model.strides[1] == 1) != view, "channels are neighbours in memory"


def test_so_do_images_of_one_channel_which_look_alike_either_way():
    small = {"pretrained_cfg_overlay": {"input_size": (1, 32, 32)}, "in_chans": 1}
    modulated, read = (
        mtl.load_backbone("resnet10t", pretrained=False, **small, **changes)
        for changes in ({}, {"sites": "none", "levels": "all"})
    )
    for backbone, expected in ((modulated, True), (read, False)):
        seen: list[bool] = []
        backbone.model.layer2.register_forward_hook(
            lambda *args, seen=seen: seen.append(args[-1].is_contiguous(memory_format=torch.channels_last))
        )
        found = backbone(x := backbone.example_inputs(3).with_task_axis())
        assert seen == [expected], "a readout that may have been kept is the same to the last digit"
        torch.testing.assert_close(found[0], backbone.features(x.flatten(), backbone.model), rtol=1e-4, atol=1e-4)


def test_transformers_keep_images_as_they_are(tmp_path: Path):
    backbone, seen = build("vit_tiny_patch16_224", tmp_path), []
    backbone.model.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone(backbone.example_inputs(2).with_task_axis())
    assert seen[0].is_contiguous()
