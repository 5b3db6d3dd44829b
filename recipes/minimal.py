"""Meta-learn scale and shift vectors for a frozen network, on one page: both loops of the algorithm are in sight.

    python recipes/minimal.py   # 70 seconds on two cores, offline

A small network reads the support set and emits a scale and shift for every channel of a frozen ResNet. Five gradient
steps refine them and a cosine classifier (inner loop); AdamW trains the small network through them (outer loop).
On 120 validation tasks (5-way 5-shot) accuracy goes from 51.0 to 52.4 %: 2.3 ± 1.4 points above nearest class mean.
"""

import torch
import torch.nn.functional as F
from torch import nn

import mtl

backbone = mtl.load_backbone("mtl/glyphs")  # frozen; 32-pixel images of letters


class Generator(nn.Module):  # from features of the support set to where the inner loop starts, and its step size
    def __init__(self) -> None:
        super().__init__()
        seen, emitted = 2 * backbone.width, 2 * backbone.modulation_width
        self.layers = nn.Sequential(nn.LayerNorm(seen), nn.Linear(seen, 128), nn.GELU(), nn.Linear(128, emitted))
        nn.init.normal_(self.layers.get_parameter("3.weight"), std=1e-3)  # nearly no change of the network
        self.log_lr = nn.Parameter(torch.full((1, 1), 0.02).log())

    def forward(self, features):
        emitted = self.layers(torch.cat([features.mean(1), features.std(1)], 1))
        scale, shift = (0.3 * emitted).chunk(2, 1)
        return {"scale": 1 + scale, "shift": shift, "log_lr": self.log_lr}


def inner_problem(episode: mtl.Episode, num_steps: int) -> mtl.InnerProblem:
    def init(meta):  # the classifier starts as the class means
        means = F.one_hot(episode.support.labels).float().mT @ features(meta, episode.support)
        return {"scale": meta["scale"], "shift": meta["shift"], "head": F.normalize(means, dim=-1)}

    def loss(part):  # of each task
        return lambda w, meta, step=0: F.cross_entropy(logits(w, part).mT, part.labels, reduction="none").mean(1)

    optimizer = mtl.InnerSGD(lambda meta: meta["log_lr"].exp())  # with a learned step size
    return mtl.InnerProblem(init, loss(episode.support), loss(episode.query), num_steps, optimizer)


def features(weights, examples):
    return F.normalize(backbone(examples.inputs, mtl.networks.Modulation(weights["scale"], weights["shift"])), dim=-1)


def logits(weights, examples):
    return 10 * features(weights, examples) @ F.normalize(weights["head"], dim=-1).mT


@torch.no_grad()
def accuracies(generator: Generator, num_steps: int) -> torch.Tensor:
    e = mtl.Episode.stack([*map(mtl.GlyphTasks("val").sample, range(120))])
    weights = mtl.solve(inner_problem(e, num_steps), generator(backbone(e.support.inputs)))
    return 100 * (logits(weights, e.query).argmax(2) == e.query.labels).float().mean(1)


def main(outer_steps: int = 50) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    train, generator, estimator = mtl.GlyphTasks("train", queries=5), Generator(), mtl.Windowed()
    found = {"nearest class mean": accuracies(generator, 0), "before": accuracies(generator, 5)}
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    for step in range(outer_steps):  # the outer loop
        episode = mtl.Episode.stack([train.sample(8 * step + i) for i in range(8)])
        meta = generator(backbone(episode.support.inputs))
        result = estimator(inner_problem(episode, 5), {k: v.detach() for k, v in meta.items()})
        optimizer.zero_grad()
        torch.autograd.backward(list(meta.values()), [result.grads[k] for k in meta])
        optimizer.step()
    found["after"] = accuracies(generator, 5)
    for name, values in found.items():
        gain = "{:+.1f} ± {:.1f}".format(*mtl.tools.paired_difference(values, found["nearest class mean"]))
        print(f"{name:18} {values.mean():.1f} %   {gain} to nearest class mean")
    return found


if __name__ == "__main__":
    main()
