"""Features of all stages: each number against a pooling written out by hand."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, TEXT, batch, build, modulation_of
from torch import Tensor

import mtl
from mtl.data.own.input_cache import InputCache
from mtl.data.own.texts.collection import TextCollection
from mtl.episode import Inputs
from mtl.fewshot import make_generator
from mtl.networks import Modulation
from mtl.networks.readout import pooling

IMAGES = [name for name in NETWORKS if name not in TEXT]


def of_level(backbone: mtl.Backbone, features: Tensor, name: str) -> Tensor:
    names = [level.name for level in backbone.levels]
    return features.split([level.width for level in backbone.levels], -1)[names.index(name)]


@pytest.mark.parametrize("name", NETWORKS)
def test_levels_describe_the_features(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, sites="none", levels="all")
    inputs = backbone.example_inputs(3)
    features = backbone.features(inputs)
    assert backbone.sites == ()
    assert backbone.modulation_width == 0
    assert features.shape == (3, backbone.width)
    assert sum(level.width for level in backbone.levels) == backbone.width
    assert backbone.levels[-1].kind == "own"
    assert backbone.levels[-1].depth == 1.0
    own = backbone.adapter.features(backbone.model, inputs.raw)
    torch.testing.assert_close(features[:, backbone.last], own)
    assert not any(level.name.startswith("pooler") for level in backbone.levels)
    assert [level.stage for level in backbone.levels] == sorted(level.stage for level in backbone.levels)
    pieces = [p for p in features.split([level.width for level in backbone.levels], -1) if len(p[0]) == own.shape[1]]
    assert not any(torch.allclose(p, own) for p in pieces[:-1]), "no statistic of the last stage twice"
    plain = build(name, tmp_path)
    assert len(plain.levels) == 1
    assert plain.last == slice(0, plain.width) == slice(0, plain.levels[0].width)


@pytest.mark.parametrize("name", ["test_resnet", "bert"])
def test_a_finished_readout_takes_the_place_of_inputs(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, sites="none", levels="all")
    inputs: Any = batch(backbone, 1, 6)
    finished = Inputs.of(backbone.with_prefix(Inputs.of(inputs).flatten())).with_task_axis()
    assert finished.computed
    assert finished["readout"].dtype == torch.float16
    backbone.model.register_forward_pre_hook(lambda *_: pytest.fail("the network ran"))
    learner = mtl.MetaLearner(backbone, make_generator("static", backbone), inner_steps=2)
    support = mtl.Examples(finished, torch.tensor([[0, 1, 2, 0, 1, 2]]))
    assert learner.adapt(support).predict(finished).shape == (1, 6)
    learner.meta_step(mtl.Episode(support, support, 3))
    assert backbone.observe(finished)[1] == []
    with pytest.raises(ValueError, match="sites that change it"):
        build(name, tmp_path, levels="all")(finished.raw)


@pytest.mark.parametrize("last_k", [None, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_kept_prefix_takes_the_place_of_inputs(name: str, last_k: int | None, tmp_path: Path):
    backbone = build(name, tmp_path, levels="all", last_k=last_k)
    inputs, modulation = batch(backbone), modulation_of(backbone)
    expected = backbone(inputs, modulation)
    torch.testing.assert_close(backbone(backbone.prepare(inputs), modulation), expected, rtol=1e-4, atol=1e-5)
    kept = Inputs.of(backbone.with_prefix(Inputs.of(inputs).flatten())).unflatten(2)
    found = backbone(kept, modulation)
    torch.testing.assert_close(found, expected, rtol=3e-3, atol=3e-3 * float(expected.abs().max()))
    assert kept.computed or name in TEXT or not backbone._prefix, "no images are left"
    kept_with_texts = ["bert", "gpt2", "llama", "qwen3", "gemma", "modernbert"]
    assert name not in kept_with_texts or not last_k or {"prefix", "prefix.levels"} < kept.tensors.keys()


def mean_and_std(x: Tensor) -> list[Tensor]:
    """Of ``(n, C, positions)``, without the library's help."""
    return [x.sum(2) / x.shape[2], (((x - x.mean(2, keepdim=True)) ** 2).mean(2) + 1e-6) ** 0.5]


def test_maps_by_hand(tmp_path: Path):
    backbone = build("test_efficientnet", tmp_path, sites="none", levels="all")
    model, x = backbone.model, backbone.example_inputs(3).tensor
    maps = {"input": x, "bn1": model.bn1(model.conv_stem(x))}
    for i, stage in enumerate(model.blocks):
        maps[f"blocks.{i}"] = stage(list(maps.values())[-1])
    maps["bn2"] = model.bn2(model.conv_head(maps["blocks.4"]))
    parts = []
    for i, (name, x) in enumerate(maps.items()):
        statistics = mean_and_std(x.flatten(2))
        parts += statistics[: 1 if x.shape[2] == 1 else 2]
        if 1 < i < len(maps) - 1 and x.shape[2] >= 2:
            half = x.shape[2] // 2
            cells = [x[:, :, a : a + half, b : b + half].mean((2, 3)) for a in (0, half) for b in (0, half)]
            parts.append(torch.stack(cells, 2).flatten(1))
        if name in ("blocks.0", "blocks.1"):  # 16 x 16 and 8 x 8
            parts.append(x.unflatten(3, (4, -1)).unflatten(2, (4, -1)).mean((3, 5)).flatten(1))
    assert [backbone.levels[i].stage for i in (0, -1)] == [0, 7]
    torch.testing.assert_close(backbone.features(backbone.example_inputs(3)), torch.cat(parts, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 4])
def test_patches_lie_as_in_the_image(registers: int):
    """Each patch token is its own patch after an embedding that copies, so that the grid of tokens is the image's."""
    args = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 2, "reg_tokens": registers}
    backbone = mtl.load_backbone("vit_tiny_patch16_224", pretrained=False, sites="none", levels="all", **args)
    model = backbone.model
    torch.nn.init.eye_(model.patch_embed.proj.weight.view(48, 48))
    for zero in (model.patch_embed.proj.bias, model.pos_embed, model.cls_token, *model.blocks.parameters()):
        torch.nn.init.zeros_(zero)
    x = backbone.example_inputs(2)
    features = backbone.features(x)
    patches = x.tensor.unflatten(3, (4, 4)).unflatten(2, (4, 4)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    expected = patches.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(of_level(backbone, features, "blocks.0 grid 2x2"), expected)
    mean, std = mean_and_std(patches.flatten(2))
    torch.testing.assert_close(of_level(backbone, features, "blocks.0 mean"), mean)
    torch.testing.assert_close(of_level(backbone, features, "blocks.0 std"), std)
    torch.testing.assert_close(of_level(backbone, features, "blocks.0 token"), torch.zeros(2, 48))


def test_channels_last_maps():
    sizes = {"img_size": (32, 64), "patch_size": 2, "embed_dim": 8, "depths": (1, 1, 1), "num_heads": (1, 1, 1)}
    args: dict[str, Any] = {**sizes, "window_size": 4}
    backbone = mtl.load_backbone("swin_tiny_patch4_window7_224", pretrained=False, sites="none", levels="all", **args)
    model, x = backbone.model, backbone.example_inputs(2)
    maps = [model.patch_embed(x.tensor)]
    for layer in model.layers:
        maps.append(layer(maps[-1]))
    assert maps[1].shape == (2, 16, 32, 8), "rows, columns, channels"
    features = backbone.features(x)
    for name, stage in {"layers.0": maps[1], "layers.1": maps[2]}.items():
        mean, std = mean_and_std(stage.movedim(-1, 1).flatten(2))
        torch.testing.assert_close(of_level(backbone, features, f"{name} mean"), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_level(backbone, features, f"{name} std"), std, rtol=1e-4, atol=1e-5)
    found = of_level(backbone, features, "layers.0 grid 4x4").unflatten(1, (8, 4, 4))
    expected = torch.stack([maps[1][:, :4, 8 * i : 8 * i + 8].mean((1, 2)) for i in range(4)], -1)
    torch.testing.assert_close(found[:, :, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_hidden_states_by_hand(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, sites="none", levels="all")
    inputs = backbone.example_inputs(3).raw
    for i, length in enumerate((8, 5, 1)):
        inputs["attention_mask"][i, length:] = 0
    features = backbone.features(inputs)
    hidden = backbone.model(**inputs, output_hidden_states=True).hidden_states
    causal = name == "llama"
    for i in range(len(backbone.readout.stages)):
        for row, length in enumerate((8, 5, 1)):
            seen = hidden[i][row, int(causal and length > 1) : length]
            expected = dict(zip(("mean", "std"), mean_and_std(seen.T[None]), strict=True))
            expected["token"] = hidden[i][row, length - 1 if causal else 0][None]
            for level in backbone.levels[:-1]:
                if level.stage == i and not (name == "t5" and level.kind == "token"):
                    found = of_level(backbone, features, level.name)[row : row + 1]
                    torch.testing.assert_close(found, expected[level.kind], rtol=1e-4, atol=1e-5, msg=level.name)
    assert {level.kind for level in backbone.levels} == {"mean", "std", "own"} | ({"token"} if name != "t5" else set())


@pytest.mark.parametrize("name", NETWORKS)
def test_company_and_padding_change_nothing(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, sites="none", levels="all")
    inputs = backbone.example_inputs(3)
    if inputs.named:
        inputs["attention_mask"][1, 5:] = 0
    alone = inputs.map(lambda t: t[1:2])
    if inputs.named:
        alone = alone.map(lambda t: t[:, :5])
    together = backbone.features(inputs)[1:2]
    torch.testing.assert_close(backbone.features(alone), together, rtol=1e-3, atol=1e-4 * float(together.abs().max()))


def gradient(backbone: mtl.Backbone, inputs: Any, modulation: Modulation) -> Tensor:
    scale = modulation.scale.clone().requires_grad_()
    features = backbone(inputs, Modulation(scale, modulation.shift))
    weights = torch.linspace(-1, 1, backbone.width)
    (found,) = torch.autograd.grad((features * weights).square().sum(), scale)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_through_every_level(name: str, tmp_path: Path):
    """In chunks, with recomputed blocks and from a prepared prefix as in one plain pass; and as slopes are."""
    backbone = build(name, tmp_path, levels="all")
    inputs, modulation = batch(backbone, n=3), modulation_of(backbone)
    plain = gradient(backbone, inputs, modulation)
    assert plain.isfinite().all()
    close = {"rtol": 1e-3, "atol": 1e-4 * float(plain.abs().max())}
    torch.testing.assert_close(gradient(backbone, backbone.prepare(inputs), modulation), plain, **close)
    for options in ({"checkpoint_blocks": True}, {"examples_per_chunk": 2}):
        backbone.configure(checkpoint_blocks=False, examples_per_chunk=None).configure(**options)
        torch.testing.assert_close(gradient(backbone, inputs, modulation), plain, **close)
    backbone.configure(checkpoint_blocks=False, examples_per_chunk=None)
    direction = torch.randn(plain.shape, generator=torch.Generator().manual_seed(5))
    double = backbone.double()
    inputs = Inputs.of(inputs).to("cpu", torch.float64)
    losses = [
        (double(inputs, Modulation(modulation.scale + step * direction, modulation.shift)) * weights).square().sum()
        for weights in [torch.linspace(-1, 1, backbone.width)]
        for step in (1e-3, -1e-3)
    ]
    slope = float(losses[0] - losses[1]) / 2e-3
    assert slope == pytest.approx(float((plain * direction).sum()), rel=0.02, abs=1e-2 * float(plain.norm()))


def test_a_constant_channel_has_a_finite_gradient():
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    pooling.map_std(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_stages_are_pooled_as_they_pass(tmp_path: Path):
    """Outputs of earlier blocks are freed while later ones run, whatever is read."""
    backbone = build("vit_tiny_patch16_224", tmp_path, depth=8, sites="none", levels="all")
    outputs, alive = [], []

    def watch(*args: Any) -> None:
        outputs.append(weakref.ref(args[-1]))
        alive.append(sum(ref() is not None for ref in outputs))

    for block in backbone.model.blocks:
        block.register_forward_hook(watch)
    with torch.no_grad():
        backbone.features(backbone.example_inputs(2))
    assert len(alive) == 8
    assert max(alive) <= 2


def test_many_stages_are_thinned_out(tmp_path: Path):
    backbone = build("vit_tiny_patch16_224", tmp_path, depth=12, sites="none", levels="all")
    stages = [backbone.readout.stages[i].name for i in sorted({level.stage for level in backbone.levels})]
    assert stages == ["input", *(f"blocks.{i}" for i in range(0, 12, 2)), "norm"]
    some = build("vit_tiny_patch16_224", tmp_path, depth=12, levels=[2, 5], grid=False)
    names = ["blocks.0 mean", "blocks.0 std", "blocks.0 token", "blocks.3 mean", "blocks.3 std", "blocks.3 token"]
    assert [level.name for level in some.levels] == [*names, "norm own"]
    with pytest.raises(ValueError, match=r"no stage 14.*0 input"):
        build("vit_tiny_patch16_224", tmp_path, depth=12, levels=[14])
    with pytest.raises(ValueError, match="levels='first'"):
        build("vit_tiny_patch16_224", tmp_path, levels="first")


def test_levels_are_saved_when_they_are_not_the_default(tmp_path: Path):
    assert not {"levels", "grid"} & build("test_resnet", tmp_path).spec()["load"].keys()
    backbone = build("test_resnet", tmp_path, levels=(1, 2), grid=False)
    load = json.loads(json.dumps(backbone.spec()))["load"]
    assert load["levels"] == [1, 2]
    assert mtl.load_backbone(**load).levels == backbone.levels


@pytest.mark.parametrize("name", ["test_resnet", "llama"])
def test_merged_networks_give_all_levels(name: str, tmp_path: Path):
    backbone = build(name, tmp_path, levels="all")
    inputs, modulation = backbone.example_inputs(3), modulation_of(backbone, 1)
    merged = mtl.networks.merge(backbone, modulation)
    expected = backbone(inputs.with_task_axis(), modulation)[0]
    found = backbone.features(inputs, merged.model)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("sites", ["none", "norm"])
def test_a_cache_keeps_what_the_frozen_part_makes(sites: Any, tmp_path: Path):
    backbone = build("llama", tmp_path, sites=sites, levels="all", last_k=None if sites == "none" else 1)
    tokens = {"a": [1, 2, 3], "b": [4, 5], "c": [6, 7, 8, 9, 10]}
    calls: list[list[str]] = []

    def preprocess(texts: list[str]) -> Any:
        calls.append(texts)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens[t]) for t in texts], batch_first=True)
        return backbone.with_prefix({"input_ids": ids, "attention_mask": (ids > 0).long()})

    collection = TextCollection("here", {"one": (0, 1, 2)}, ["a", "b", "c"])
    cache = InputCache(preprocess)
    first = cache(collection, [1, 0]).with_task_axis()
    both = cache(collection, [2, 1]).with_task_axis()
    assert calls == [["b", "a"], ["c"]]
    features = [backbone(x)[0] for x in (first, both)]
    torch.testing.assert_close(features[0][0], features[1][1], rtol=3e-3, atol=3e-3)
    ids = torch.tensor([[4, 5, 0]])
    plain = backbone.features({"input_ids": ids, "attention_mask": (ids > 0).long()})
    torch.testing.assert_close(features[0][:1], plain, rtol=3e-3, atol=3e-3)


def test_convolutional_networks_run_with_channels_last(tmp_path: Path):
    backbone, seen = build("test_efficientnet", tmp_path, levels="all"), []
    x = backbone.model.blocks[1](torch.randn(2, 16, 16, 16))
    assert x.is_contiguous(), "a plain call of the network is left as it is"
    backbone.model.blocks[1].register_forward_hook(lambda *args: seen.append(args[-1]))
    backbone(batch(backbone), modulation_of(backbone))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
