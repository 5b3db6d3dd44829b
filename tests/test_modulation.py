"""Sites, hooks and the modulated forward, on small random networks."""

import copy
import math
from typing import Any

import pytest
import timm
import torch
from networks import SIZES, VIT, random_modulation
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoConfig, AutoModel

from mtl.networks.backbones import AbstractAdapter, Backbone
from mtl.networks.modulation import Modulation, Modulator, Site, find_sites, modulate


def vit(**kwargs) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**VIT, "depth": 3}, **kwargs).eval()


def text(kind: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, num_key_value_heads=1, **kwargs)).eval()


def images(n: int = 2, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens(n: int = 2) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(50, (n, 6), generator=torch.Generator().manual_seed(1))}


# --- finding ---


def test_vit_norm_sites_in_execution_order():
    names = [f"blocks.{i}.norm{j}" for i in range(3) for j in (1, 2)] + ["norm"]
    blocks = [f"blocks.{i}" for i in range(3) for _ in (1, 2)] + [""]
    expected = tuple(Site(n, 16, -1, b) for n, b in zip(names, blocks, strict=True))
    assert find_sites(vit(), example_inputs=images()) == expected


def test_vit_ssf_sites_in_execution_order():
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    sites = find_sites(vit(), "ssf", example_inputs=images())
    assert [s.name for s in sites] == ["patch_embed.proj"] + [f"blocks.{i}.{n}" for i in range(3) for n in block] + [
        "norm"
    ]
    assert [s.width for s in sites[:7]] == [16, 16, 48, 16, 16, 64, 16]
    assert [s.channel_dim for s in sites[:3]] == [1, -1, -1]


def test_execution_order_is_not_definition_order():
    # BERT defines its layers in order; a ConvNeXt block too. Here the second module runs first.
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early = nn.LayerNorm(4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.early(x) ** 2)

    sites = find_sites(Backwards(), example_inputs=torch.randn(2, 3, 4))
    assert [s.name for s in sites] == ["early", "late"]


@pytest.mark.parametrize(
    ("kind", "count", "last"),
    [("bert", 5, "encoder.layer.1.output.LayerNorm"), ("llama", 5, "norm"), ("qwen3", 9, "norm")],
)
def test_text_sites(kind: str, count: int, last: str):
    sites = find_sites(text(kind), example_inputs=tokens())
    assert (len(sites), sites[-1].name) == (count, last)


def test_bert_ssf_leaves_out_the_pooler():
    names = [s.name for s in find_sites(text("bert"), "ssf", example_inputs=tokens())]
    assert len(names) == 1 + 2 * 8
    assert not any("pooler" in n for n in names)


def test_classifier_is_no_site():
    model = timm.create_model("test_resnet", num_classes=5)
    with_head = find_sites(model, "ssf", example_inputs=images(2, 32))
    assert "fc" not in [s.name for s in with_head]


def test_channels_of_square_maps():
    """Where height, width and channels agree, shapes cannot tell the channel axis; the layer's kind must."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = timm.layers.LayerNorm2d(8), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    assert [s.channel_dim for s in find_sites(Both(), example_inputs=torch.randn(2, 8, 8, 8))] == [1, -1]


def test_last_k_keeps_what_runs_after_the_block_begins():
    sites = find_sites(vit(), last_k=1, example_inputs=images())
    assert [s.name for s in sites] == ["blocks.2.norm1", "blocks.2.norm2", "norm"]
    assert find_sites(vit(), "ssf", last_k=3, example_inputs=images())[0].name == "blocks.0.norm1"


@pytest.mark.parametrize("k", [0, 4, -1])
def test_last_k_out_of_range(k: int):
    with pytest.raises(ValueError, match=f"last_k={k}: expected 1 to 3"):
        find_sites(vit(), last_k=k, example_inputs=images())


def test_no_site():
    with pytest.raises(ValueError, match=r"sites='norm': no site in Sequential; looked for LayerNorm.*try sites='ssf'"):
        find_sites(nn.Sequential(nn.Linear(3, 3)), example_inputs=torch.randn(2, 3))


def test_unknown_kind_and_single_example():
    with pytest.raises(ValueError, match="sites='bias'"):
        find_sites(vit(), "bias", example_inputs=images())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds 1 example"):
        find_sites(vit(), example_inputs=images(1))


class Odd(nn.Module):
    """Layers that cannot be modulated per task, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.table, self.second, self.dead, self.sizes = (nn.LayerNorm(4) for _ in range(5))
        self.shared, self.mixed = nn.LayerNorm(4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.good(x) + self.table(torch.arange(24.0).reshape(6, 4))[: x.shape[1]]
        x = x + self.second(x.transpose(0, 1)).transpose(0, 1)
        by_position = x.transpose(0, 1)
        x = x + self.mixed(by_position.flatten(0, 1)).view_as(by_position).transpose(0, 1)
        x = x + self.sizes(x) + self.sizes(x[:, :1])
        return self.shared(self.shared(x) + 1)


def test_layers_that_are_no_sites():
    assert [s.name for s in find_sites(Odd(), example_inputs=torch.randn(2, 3, 4))] == ["good", "shared"]


def test_finding_leaves_the_model_alone():
    model = vit().train()
    find_sites(model, "ssf", example_inputs=images())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_compiled_model_is_unwrapped():
    model = vit()
    compiled = torch.compile(model, backend="eager")
    sites = find_sites(compiled, example_inputs=images())  # type: ignore[arg-type]
    assert sites == find_sites(model, example_inputs=images())
    assert Modulator(compiled, sites).model is model  # type: ignore[arg-type]


# --- applying ---


def modulated(model: nn.Module, modulator: Modulator, inputs, modulation: Modulation | None) -> Tensor:
    with modulator.modulating(modulation):
        out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return out if isinstance(out, Tensor) else out.last_hidden_state


def test_shape_and_width_errors():
    with pytest.raises(ValueError, match=r"both must be \(tasks, P\)"):
        Modulation(torch.ones(3), torch.zeros(3))
    model = vit()
    modulator = Modulator(model, find_sites(model, example_inputs=images()))
    with (
        pytest.raises(ValueError, match="5 wide but the 7 sites take 112"),
        modulator.modulating(Modulation.identity(1, 5)),
    ):
        pass


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_modulate_is_scale_and_shift_per_task(channel_dim: int):
    x = torch.randn(6, 5, 4, 5)
    m = random_modulation(2, 5)
    rows = [(s, t) for s, t in zip(m.scale, m.shift, strict=True) for _ in range(3)]
    expected = [
        (x[i].movedim(channel_dim % 4 - 1, -1) * s + t).movedim(-1, channel_dim % 4 - 1)
        for i, (s, t) in enumerate(rows)
    ]
    torch.testing.assert_close(modulate(x, m.scale, m.shift, channel_dim), torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_modulate_keeps_the_dtype_of_the_activation(dtype: torch.dtype):
    m = random_modulation(2, 5)
    assert modulate(torch.randn(2, 3, 5, dtype=dtype), m.scale, m.shift, -1).dtype == dtype


def test_autocast_keeps_the_activation_dtype_and_float32_gradients():
    model = vit()
    modulator = Modulator(model, find_sites(model, "ssf", example_inputs=images()))
    m = random_modulation(1, modulator.width)
    m.scale.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = modulated(model, modulator, images(), m)
    out.float().square().sum().backward()
    assert m.scale.grad is not None
    assert m.scale.grad.dtype == torch.float32
    assert m.scale.grad.count_nonzero() > 0.9 * modulator.width


def test_fused_norm_is_modulated_before_its_activation():
    model = timm.layers.BatchNormAct2d(4).eval()  # ReLU
    modulator = Modulator(nn.Sequential(model), [Site("0", 4, 1, "")])
    x = torch.randn(2, 4, 3, 3)
    shift = Modulation(torch.ones(1, 4), torch.full((1, 4), -100.0))
    assert (
        modulated(modulator.model, modulator, x, shift).count_nonzero() == 0
    )  # after it, the output would be negative


def test_context_ends_also_on_error_and_nests():
    model = vit()
    modulator = Modulator(model, find_sites(model, example_inputs=images()))
    plain = model(images())
    outer, inner = random_modulation(1, modulator.width), random_modulation(2, modulator.width)
    expected = modulated(model, modulator, images(), outer)
    with modulator.modulating(outer):
        with pytest.raises(ValueError, match="unpack"), modulator.modulating(inner):
            model(torch.randn(2, 2))
        assert torch.equal(model(images()), expected)
    assert torch.equal(model(images()), plain)
    assert not torch.equal(plain, expected)


def test_remove_and_install():
    model = vit()
    modulator = Modulator(model, find_sites(model, example_inputs=images()))
    m = random_modulation(1, modulator.width)
    expected = modulated(model, modulator, images(), m)
    modulator.remove()
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(modulated(model, modulator, images(), m), model(images()))
    for _ in range(2):  # must not hook twice
        modulator.install()
    assert torch.equal(modulated(model, modulator, images(), m), expected)


def test_gradient_equals_differences():
    """Central differences in float64 of a smooth network: the error is of second order in the step."""
    model = vit().double()
    modulator = Modulator(model, find_sites(model, "ssf", example_inputs=images().double()))
    x, m = images().double(), random_modulation(2, modulator.width, dtype=torch.float64)
    direction = random_modulation(2, modulator.width, 1.0, torch.float64).shift

    def loss(scale: Tensor, shift: Tensor) -> Tensor:
        return modulated(model, modulator, x, Modulation(scale, shift)).square().sum()

    at = [v.clone().requires_grad_() for v in (m.scale, m.shift)]
    grads = torch.autograd.grad(loss(at[0], at[1]), at)
    eps = 1e-5
    up, down = ([m.scale + d * direction, m.shift + d * direction] for d in (eps, -eps))
    for i in range(2):
        high, low = ([m.scale, m.shift] for _ in range(2))
        high[i], low[i] = up[i], down[i]
        slope = (loss(*high) - loss(*low)) / (2 * eps)
        torch.testing.assert_close((grads[i] * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def test_tasks_do_not_mix():
    model = vit()
    modulator = Modulator(model, find_sites(model, "ssf", example_inputs=images()))
    m = random_modulation(2, modulator.width)
    m.scale.requires_grad_()
    modulated(model, modulator, images(4), m)[:2].square().sum().backward()
    assert m.scale.grad is not None
    assert m.scale.grad[0].abs().sum() > 0
    assert m.scale.grad[1].abs().sum() == 0


@pytest.mark.parametrize("kind", ["vit", "bert", "llama"])
def test_second_derivative_under_math_attention(kind: str):
    """Flash attention has no second derivative; MATH, chosen around the call, has. Nothing is left behind."""
    model = vit() if kind == "vit" else text(kind)
    inputs = images() if kind == "vit" else tokens()
    modulator = Modulator(model, find_sites(model, example_inputs=inputs))
    before, state = torch.backends.cuda.flash_sdp_enabled(), copy.deepcopy(model.state_dict())
    m = random_modulation(1, modulator.width)
    at = m.scale.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        loss = modulated(model, modulator, inputs, m).pow(3).mean()
        (grad,) = torch.autograd.grad(loss, at, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), at)
    assert math.isfinite(second.sum())
    assert second.abs().max() > 0
    assert torch.backends.cuda.flash_sdp_enabled() == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_statistics_leave_out_padding_and_do_not_modulate():
    model = nn.Sequential(nn.LayerNorm(4))
    modulator = Modulator(model, [Site("0", 4, -1, "")])
    x, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [1, 1, 1]])
    with modulator.recording(2, mask) as means:
        out = model(x)
    assert torch.equal(out, model(x))
    expected = torch.stack([out[0, :2].mean(0), out[1].mean(0)])
    torch.testing.assert_close(means[0], expected)


def test_statistics_of_maps_and_of_rows_split_into_windows():
    model = nn.Sequential(nn.BatchNorm2d(4).eval())
    modulator = Modulator(model, [Site("0", 4, 1, "")])
    x = torch.randn(6, 4, 3, 3)  # two examples of three windows
    with modulator.recording(2) as means:
        out = model(x)
    torch.testing.assert_close(means[0], out.reshape(2, 3, 4, 9).mean((1, 3)))


class Encoder(nn.Module):
    """Torch's own encoder, as it is built by default: it turns padded texts into nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)


class EncoderAdapter(AbstractAdapter):
    def features(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        weights = inputs["attention_mask"].unsqueeze(-1).float()
        return (model(**inputs) * weights).sum(1) / weights.sum(1)

    def example(self, n: int) -> dict[str, Tensor]:
        ids = torch.randint(30, (n, 6), generator=torch.Generator().manual_seed(0))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def preprocess(self, items):
        raise NotImplementedError


@pytest.mark.parametrize("levels", ["last", "all"])
@pytest.mark.parametrize("last_k", [None, 1])
def test_torchs_own_encoder_is_modulated_with_and_without_a_gradient(levels: Any, last_k: int | None):
    torch.manual_seed(0)
    backbone = Backbone(Encoder(), EncoderAdapter(), name="mine", levels=levels, last_k=last_k)
    tokens = backbone.example_inputs(4).unflatten(2).tensors
    tokens["attention_mask"][0, 0, 3:] = 0
    m = random_modulation(2, backbone.modulation_width)
    with torch.no_grad():
        plain, found = backbone(tokens), backbone(tokens, m)
    with_gradient = backbone(tokens, Modulation(m.scale.requires_grad_(), m.shift))
    assert torch.equal(found, with_gradient)
    assert not torch.allclose(found, plain, atol=0.1)
