"""Meta-transfer: the taps find every network's stages, the matching loss is its formula, the meta-gradient is exact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from estimator_tables import error
from torch import Tensor, nn
from torch.func import functional_call

import mtl
from mtl.transfer import (
    MatchingWeights,
    Source,
    SourceMaps,
    Student,
    Taps,
    Transfer,
    attention_loss,
    matching_loss,
    stage_names,
)
from mtl.transfer.matching import resize

GREY = {"in_chans": 1, "pretrained_cfg_overlay": {"input_size": (1, 32, 32)}}
NARROW = {"channels": (4, 6, 8, 10), "stem_width": 4, **GREY}
SIZES = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 24}


def target(act_layer: str = "relu", **options) -> nn.Module:
    return timm.create_model("resnet10t", num_classes=3, act_layer=act_layer, **{**NARROW, **options}).train()


def transfer(
    steps: int = 3, dtype: torch.dtype = torch.float64, act_layer: str = "relu", lr: float = 0.05, **options
) -> Transfer:
    """A random source and target away from their initial values, and meta-networks away from theirs."""
    torch.manual_seed(0)
    source = frozen_source()
    network = target(act_layer)
    taps = Taps(network, lambda: network.eval()(torch.zeros(1, 1, 32, 32)), (32, 32))
    student = Student(network.train(), taps, source.taps.channels).to(dtype)
    weighting = MatchingWeights(source.taps.channels, len(taps.names)).to(dtype)
    for p in weighting.parameters():
        p.data += torch.randn_like(p)  # some weights of pairs below zero, and some above six in places
    optimizer = mtl.InnerSGD(lr, momentum=0.9)
    return Transfer(student, weighting, optimizer, steps, **options)


def frozen_source() -> Source:
    torch.manual_seed(0)
    return Source(mtl.load_backbone("resnet10t", pretrained=False, act_layer="silu", **NARROW))


def problem_of(t: Transfer, batch: Callable[[int], tuple[Tensor, Tensor]]) -> mtl.InnerProblem:
    """Every step on a minibatch of its own, the maps computed anew at each evaluation."""
    source = frozen_source()

    def matched(step: int) -> tuple[Tensor, list[Tensor]]:
        images, _ = batch(step)
        return images, [m.to(images.dtype) for m in source(images.float())]

    return t.problem(matched, batch(t.matching_steps), batch(99))


def batches(dtype: torch.dtype = torch.float64) -> Callable[[int], tuple[Tensor, Tensor]]:
    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(step)
        return torch.randn(6, 1, 32, 32, generator=g).to(dtype), torch.randint(3, (6,), generator=g)

    return batch


def unrolled(t: Transfer, batch, outer, gain: int = 1, stride: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by plain autograd, with a matching loss of nested loops; shares no code with the library's."""
    student = copy.deepcopy(t.student)
    phi = {k: p.detach().clone().requires_grad_() for k, p in t.weighting.named_parameters()}
    theta = {k: p.detach().clone().requires_grad_() for k, p in student.named_parameters()}
    velocity = {k: torch.zeros_like(p) for k, p in theta.items()}
    steps = t.matching_steps // stride
    for step in range(steps + 1):
        images, labels = batch(step * stride)
        if step < steps:
            loss = gain * loops(t, student, theta, phi, images)
        else:
            loss = F.cross_entropy(functional_call(student, theta, (images,))[0], labels)
        found = torch.autograd.grad(loss, list(theta.values()), create_graph=True, allow_unused=True)
        for (k, p), g in zip(list(theta.items()), found, strict=True):
            velocity[k] = 0.9 * velocity[k] + (torch.zeros_like(p) if g is None else g)
            theta[k] = p - 0.05 * velocity[k]
    loss = F.cross_entropy(functional_call(student, theta, (outer[0],))[0], outer[1])
    found = torch.autograd.grad(loss, list(phi.values()))
    return loss, dict(zip(phi, found, strict=True))


def loops(t: Transfer, student, theta, phi, images) -> Tensor:
    """The loss of the paper, pair by pair and channel by channel."""
    source = [m.to(images.dtype) for m in frozen_source()(images.float())]
    maps = functional_call(student, theta, (images,))[1]
    total = torch.zeros((), dtype=images.dtype)
    for m, s in enumerate(source):
        pooled = s.mean((2, 3))
        for n, own in enumerate(maps):
            name = f"adapters.{m}.{n}."
            r = F.conv2d(own, theta[name + "weight"][:, :, None, None], theta[name + "bias"])
            r = resize(r, s.shape[2:])
            where = (pooled @ phi[f"where.{m}.weight"][n] + phi[f"where.{m}.bias"][n]).clamp(0, 6)
            rows = slice(n * s.shape[1], (n + 1) * s.shape[1])
            what = (pooled @ phi[f"what.{m}.weight"][rows].T + phi[f"what.{m}.bias"][rows]).softmax(1)
            for c in range(s.shape[1]):
                distance = ((s[:, c] - r[:, c]) ** 2).mean((1, 2))
                total = total + (where * what[:, c] * distance).mean()
    return total


EXACT = {
    "unrolled": mtl.Exact(),
    "rematerialised": mtl.Rematerialised(),
    "one window per step": mtl.Windowed(1),
    "truncated at the start": mtl.metagrad.Truncated(4),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_meta_gradient_is_autograd_of_the_unrolled_scheme(name):
    t, batch = transfer(), batches()
    loss, expected = unrolled(t, batch, batch(99))
    found = EXACT[name](problem_of(t, batch), t.meta)
    assert abs(found.loss - loss) < 1e-12
    assert error(found.grads, expected) < 1e-9
    assert all(g.abs().max() > 0 for g in expected.values())


def test_a_window_of_the_problem_is_fewer_larger_steps():
    t, batch = transfer(4, window=2), batches()
    _, expected = unrolled(t, batch, batch(99), gain=2, stride=2)
    found = mtl.Rematerialised()(problem_of(t, batch), t.meta)
    assert found.gradients == 3
    assert error(found.grads, expected) < 1e-9


@pytest.mark.parametrize(
    "estimator",
    [
        mtl.FirstOrder(),
        mtl.metagrad.Reptile(),
        mtl.metagrad.OneStep(),
        mtl.metagrad.SAMA("reverse"),
        mtl.metagrad.Truncated(1),
    ],
)
def test_what_drops_second_derivatives_or_the_first_steps_gives_exactly_zero(estimator):
    t, batch = transfer(), batches()
    problem = problem_of(t, batch)
    if isinstance(estimator, mtl.metagrad.Truncated):
        found = estimator(problem, t.meta)
    else:
        with pytest.warns(mtl.metagrad.StructuralZeroWarning, match=r"where\.0\.weight.*inside the inner loss"):
            found = estimator(problem, t.meta)
    assert not any(g.any() for g in found.grads.values())


@pytest.mark.parametrize("mode", ["lazy", "exact-forward", "adaptive"])
def test_windows_point_the_way_of_the_exact_gradient(mode):
    t, batch = transfer(4, act_layer="silu", lr=0.001), batches()
    problem = problem_of(
        t, lambda step: batch(0 if step < 99 else 99)
    )  # other minibatches in a window are noise on top
    flat = lambda g: torch.cat([v.flatten() for v in g.values()])  # noqa: E731
    exact = flat(mtl.Rematerialised()(problem, t.meta).grads)
    found = flat(mtl.Windowed(2, mode)(problem, t.meta).grads)
    assert 0.95 < torch.cosine_similarity(found, exact, dim=0) < 1 - 1e-9


def test_cached_maps_are_those_of_the_source_and_change_no_gradient(tmp_path):
    t, source, images = transfer(dtype=torch.float32), frozen_source(), torch.randn(10, 1, 32, 32)
    maps = SourceMaps.of(source, images.split(4), dtype=torch.float32)
    assert len(maps) == 10
    assert (maps.channels, maps.sizes) == (source.taps.channels, source.taps.sizes)
    chosen, labels = torch.tensor([7, 2, 2, 9]), torch.tensor([0, 1, 1, 2])
    for found, expected in zip(maps[chosen], source(images[chosen]), strict=True):
        torch.testing.assert_close(found, expected)
    labelled = images[:4], labels
    cached = mtl.Exact()(
        t.problem(lambda k: (images[chosen + k - 2], maps[chosen + k - 2]), labelled, labelled), t.meta
    )
    asked = lambda k: (images[chosen + k - 2], source(images[chosen + k - 2]))  # noqa: E731
    uncached = mtl.Exact()(t.problem(asked, labelled, labelled), t.meta)
    assert error(cached.grads, uncached.grads) < 1e-4
    half = SourceMaps.of(source, images.split(4), sides=(4, 4, 4, 1))
    assert half.sizes == ((4, 4), (4, 4), (2, 2), (1, 1))
    torch.testing.assert_close(half[chosen][0], F.adaptive_avg_pool2d(maps[chosen][0], 4), atol=2e-3, rtol=2e-3)
    half.save(tmp_path / "maps.safetensors")
    assert all(map(torch.equal, SourceMaps.load(tmp_path / "maps.safetensors").stages, half.stages))
    with pytest.raises(ValueError, match=r"stages have \[2, 3\] images"):
        SourceMaps([torch.zeros(2, 1, 1, 1), torch.zeros(3, 1, 1, 1)])


def test_standardised_maps_have_mean_zero_and_deviation_one_in_every_channel():
    maps = torch.randn(50, 3, 4, 4) * torch.tensor([1e-3, 30, 0])[:, None, None] + 7
    for given in (maps, maps.half()):
        deviation, mean = torch.std_mean(SourceMaps([given]).standardised().stages[0].float(), (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros(3), atol=2e-3, rtol=0)
        torch.testing.assert_close(deviation, torch.tensor([1.0, 1.0, 0.0]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("window", [2, 3])
def test_a_window_of_all_its_images_is_the_mean_of_its_steps(window):
    t, batch = transfer(4, act_layer="silu", lr=1e-4, window_images=6 * window), batches()
    t = replace(t, student=frozen_statistics(t.student), optimizer=mtl.InnerSGD(1e-4))
    problem = problem_of(t, batch)
    weights, steps = problem.init(t.meta), range(5 - window, 5)  # with the step on labels
    expected = sum(problem.inner_loss(weights, t.meta, k) for k in steps) / window
    assert abs(problem.window_loss(weights, t.meta, steps) - expected) < 1e-12
    flat = lambda g: torch.cat([v.flatten() for v in g.values()])  # noqa: E731
    exact = flat(mtl.Rematerialised()(problem, t.meta).grads)
    missing = {}
    for images in (None, 6 * window):
        found = flat(mtl.Windowed(window)(problem_of(replace(t, window_images=images), batch), t.meta).grads)
        missing[images] = float((found - exact).norm() / exact.norm())
    assert missing[6 * window] < missing[None] / 5, missing
    with pytest.raises(ValueError, match="window_images=0: expected 1 or more"):
        replace(t, window_images=0)


def frozen_statistics(student: Student) -> Student:
    """Examples of a minibatch do not see each other."""
    student = copy.deepcopy(student)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return student


def test_an_outer_step_leaves_no_trace_in_the_target():
    t, batch = transfer(), batches()
    before = copy.deepcopy(t.student.state_dict())
    mtl.Rematerialised()(problem_of(t, batch), t.meta)
    after = t.student.state_dict()
    assert any("running_mean" in k for k in before)
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert t.student.training
    ordinary = t.student(batch(0)[0])[0]
    assert not torch.equal(t.student.state_dict()["network.bn1.running_mean"], before["network.bn1.running_mean"])
    assert not torch.allclose(t.student.eval()(batch(0)[0])[0], ordinary), "evaluation uses running statistics"


def test_states_on_the_host_change_no_number():
    t, batch = transfer(), batches()
    expected = mtl.Windowed(3)(problem_of(t, batch), t.meta)
    t = transfer(storage=mtl.metagrad.OnHost())
    found = mtl.Windowed(3)(problem_of(t, batch), t.meta)
    assert all(torch.equal(found.grads[k], v) for k, v in expected.grads.items())


def test_untrained_meta_networks_match_every_pair_and_channel_alike():
    source = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    choice = MatchingWeights([3, 5], 2)(source)
    assert choice.where.shape == (2, 2, 2)
    assert torch.equal(choice.where, torch.ones(2, 2, 2))
    adapted = [torch.randn(2, 2, 16, 3), torch.randn(2, 2, 4, 5)]
    maps = [[r[:, n].mT.unflatten(2, s.shape[2:]) for n in (0, 1)] for s, r in zip(source, adapted, strict=True)]
    expected = torch.stack([(s - r).square().mean((1, 2, 3)) for s, row in zip(source, maps, strict=True) for r in row])
    torch.testing.assert_close(matching_loss(choice, source, adapted), expected.sum(0))


def test_attention_loss_looks_at_places_not_at_channels():
    maps = [torch.rand(2, 3, 4, 4), torch.rand(2, 6, 2, 2)]
    louder = [3 * maps[0].flip(1), maps[1].flip(1).repeat(1, 2, 1, 1)]
    assert attention_loss(maps, louder).abs().max() < 1e-10
    assert attention_loss(maps, [m.flip(3) for m in maps]).min() > 1e-3
    assert attention_loss(maps, maps[1:]).shape == (2,), "stages are counted from the last"


TIMM = {
    "resnet10t": (["layer1", "layer2", "layer3", "layer4"], (1, 1), "map", 0),
    "test_convnext": (["stages.0", "stages.1", "stages.2", "stages.3"], (1, 1), "map", 0),
    "vit_tiny_patch16_224": (["blocks.2", "blocks.5", "blocks.8", "blocks.11"], (2, 2), "tokens", 1),
    "vit_small_patch14_reg4_dinov2": (["blocks.2", "blocks.5", "blocks.8", "blocks.11"], (2, 2), "tokens", 5),
}


@pytest.mark.parametrize("name", TIMM)
def test_taps_of_timm(name):
    names, size, layout, prefix = TIMM[name]
    side = 28 if "dinov2" in name else 32
    model = timm.create_model(name, **({"img_size": side} if "vit" in name else {})).eval()
    x = torch.randn(2, 3, side, side)
    taps = Taps(model, lambda: model(x[:1]), (side, side))
    assert list(taps.names) == names
    assert taps.sizes[-1] == size
    assert {(t.layout, t.prefix) for t in taps.taps} == {(layout, prefix)}
    logits, maps = taps(lambda: model(x))
    assert [m.shape for m in maps] == [(2, c, *s) for c, s in zip(taps.channels, taps.sizes, strict=True)]
    torch.testing.assert_close(logits, model(x))
    assert not any(m._forward_hooks for m in model.modules())
    if layout == "map":
        listed = timm.create_model(name, features_only=True)
        assert list(taps.channels) == listed.feature_info.channels()[-4:]


def test_taps_put_tokens_in_their_places():
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), depth=2).eval()
    x = torch.randn(1, 3, 32, 64)
    taps = Taps(model, lambda: model(x), (32, 64))
    maps = taps(lambda: model(x))[1]
    tokens = model.forward_intermediates(x, indices=[1], norm=False, output_fmt="NCHW")[1][0]
    assert maps[-1].shape == (1, 192, 2, 4)
    torch.testing.assert_close(maps[-1], tokens)


def test_taps_put_channels_in_front():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, embed_dim=12, depths=(1, 1, 1, 1)).eval()
    x = torch.randn(1, 3, 56, 56)
    taps = Taps(model, lambda: model(x), (56, 56))
    assert taps.sizes[0] == (14, 14)
    maps = taps(lambda: model(x))[1]
    assert maps[0].shape == (1, 12, 14, 14)


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
HF = {
    "vit": (transformers.ViTConfig(image_size=16, patch_size=8, **SIZES), 4, (2, 2), 1),
    "dinov2": (transformers.Dinov2WithRegistersConfig(image_size=28, patch_size=7, **SIZES), 4, (4, 4), 5),
    "resnet": (transformers.ResNetConfig(**RESNET), 2, (8, 8), 0),
}


@pytest.mark.parametrize("name", HF)
def test_taps_of_transformers(name):
    config, stages, size, prefix = HF[name]
    model = transformers.AutoModel.from_config(config).eval()
    side = getattr(config, "image_size", 64)
    x = torch.randn(2, 3, side, side)
    taps = Taps(model, lambda: model(x), (side, side))
    maps = taps(lambda: model(x))[1]
    assert len(maps) == stages
    assert taps.sizes[-1] == size
    assert taps.taps[-1].prefix == prefix
    assert all(m.shape[:2] == (2, c) for m, c in zip(maps, taps.channels, strict=True))


def test_a_source_may_be_of_transformers(tmp_path):
    transformers.ViTConfig(image_size=16, patch_size=8, **SIZES).save_pretrained(tmp_path)
    source = Source(mtl.load_backbone(tmp_path, pretrained=False), most=2)
    assert [m.shape for m in source(torch.randn(3, 3, 16, 16))] == [(3, 16, 2, 2)] * 2


def test_errors_name_the_way_out():
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"has no stages.*children are \['0'\]"):
        stage_names(plain)
    with pytest.raises(ValueError, match="no module"):
        Taps(plain, lambda: plain(torch.zeros(1, 4)), (2, 2), names=["1"])
    with pytest.raises(ValueError, match="no feature map"):
        Taps(plain, lambda: plain(torch.zeros(1, 4)), (2, 2), names=["0"])
    with pytest.raises(ValueError, match="not called"):
        Taps(plain, lambda: None, (2, 2), names=["0"])
    with pytest.raises(ValueError, match="at least one stage"):
        stage_names(plain, 0)
    with pytest.raises(ValueError, match="window that divides"):
        transfer(3, window=2)
    with pytest.raises(ValueError, match="at least one stage each"):
        MatchingWeights([], 2)
    noisy = target(drop_rate=0.5)
    taps = Taps(noisy.eval(), lambda: noisy(torch.zeros(1, 1, 32, 32)), (32, 32))
    with pytest.raises(ValueError, match="random numbers"):
        Transfer(Student(noisy, taps, [1]), MatchingWeights([1], 4), mtl.InnerSGD())


def test_a_student_in_low_precision_stays_near_and_gives_gradients_in_full():
    t, batch = transfer(dtype=torch.float32, act_layer="silu", lr=0.005), batches(torch.float32)
    exact = mtl.Rematerialised()(problem_of(t, batch), t.meta)
    t.student.precision = torch.bfloat16
    found = mtl.Rematerialised()(problem_of(t, batch), t.meta)
    flat = lambda g: torch.cat([v.flatten() for v in g.values()])  # noqa: E731
    assert {v.dtype for v in (*found.grads.values(), *found.weights.values())} == {torch.float32}
    assert 0.9 < torch.cosine_similarity(flat(found.grads), flat(exact.grads), dim=0) < 1 - 1e-6
    with pytest.raises(ValueError, match=r"expected torch\.bfloat16"):
        Student(target(), t.student.taps, [4], torch.float16)
