"""Serving many adapted tasks: what a thousand cost, and a mixed batch against a loop and against PEFT's switching.

    python recipes/benchmarks/serve_tasks.py
    python recipes/benchmarks/serve_tasks.py --networks minilm base large
    python recipes/benchmarks/serve_tasks.py --networks minilm --dtype bfloat16

Tasks are random scales and shifts of all layer norms with a classifier of five classes each, texts are random sentences
of 3 to 16 words. The same batch is answered by each way in turn, tokenizing included. On a CPU the clock is that of the
process, so that a busy machine slows none:

    server    mtl.Server, one mixed batch
    plain     no tasks: the network alone on the same texts in the same passes, the least that a mixed batch can take
    loop      the adapted tasks one after the other, each with its own texts
    grouped   PEFT: one LN_TUNING adapter per task on the same norms, set_adapter for each task, its texts as a batch
    arrival   PEFT: set_adapter for each text, as requests come in

All but plain have to give the same logits. "fan-out" asks every task about the same few texts, once of tasks inside
the network and once of readouts, classifiers on plain features. Three minutes on one core.
"""

from __future__ import annotations

import ctypes
import gc
import json
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
from command import Checked, Count, Device, Folder, OneOf, answer
from measuring import clock_of, device_of, timed
from torch import Tensor

import mtl
from mtl.fewshot.adapted_task import Part
from mtl.networks.modulation.watching import plain_copy
from mtl.serving.passes import Row, features_of
from mtl.tools.files import write_csv
from mtl.tools.memory import stored_bytes

WAYS, NOISE = 5, 0.05
WORDS = [
    "my",
    "parcel",
    "is",
    "late",
    "and",
    "the",
    "box",
    "was",
    "broken",
    "please",
    "refund",
    "order",
    "again",
    "why",
]
SIZES = {"tiny": (2, 64, 2), "base": (12, 768, 12), "large": (24, 1024, 16)}  # layers, width, heads
AGREE = {"float32": 1e-3, "bfloat16": 5e-2}  # of the largest logit


@dataclass(frozen=True)
class Config(Checked):
    networks: list[str] = field(default_factory=lambda: ["tiny", "minilm"])  # tiny, minilm, base, large
    tasks: Count = 64  # tasks of the mixed batch
    batch: Count = 256  # texts of it
    saved: Count = 1000  # tasks that are saved, loaded and kept in memory; on the last network
    repeats: Count = 3  # timed runs of each way; the fastest counts
    threads: Count = 1  # CPU threads
    device: Device = ""  # cpu or cuda; the accelerator, if there is one, when empty
    dtype: Annotated[str, OneOf(tuple(AGREE))] = "float32"  # of the networks, for all ways alike
    out: Folder = "runs/serve_tasks"  # folder for tables, tasks and random networks


def main(config: Config) -> list[dict[str, Any]]:
    torch.set_num_threads(config.threads)
    out, rows = Path(config.out), []
    for name in config.networks:
        backbone = network(name, out, config)
        texts, names = requests(config)
        rows += compare(name, "mixed", backbone, texts, names, config)
        few = [text for text in texts[: max(1, config.batch // config.tasks)] for _ in range(config.tasks)]
        all_tasks = [str(i % config.tasks) for i in range(len(few))]
        rows += compare(name, "fan-out", backbone, few, all_tasks, config)
        rows += compare(name, "fan-out, readout", network(name, out, config, sites="none"), few, all_tasks, config)
        if name == config.networks[-1]:
            write_csv([keep(name, backbone, out, config)], out / "saved.csv")
    write_csv(rows, out / "serving.csv")
    return rows


def network(name: str, out: Path, config: Config, **options: Any) -> mtl.Backbone:
    """A random BERT with a vocabulary of the words, or the packaged encoder."""
    options |= {"dtype": config.dtype}
    if name == "minilm":
        return mtl.load_backbone("mtl/minilm", **options).to(device_of(config.device))
    if name not in SIZES:
        raise ValueError(f"--networks {name}: expected minilm, {', '.join(SIZES)}")
    (layers, width, heads), folder = SIZES[name], out / name
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(WORDS))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    described = {"model_type": "bert", **sizes, "intermediate_size": 4 * width, "vocab_size": len(vocabulary)}
    (folder / "config.json").write_text(json.dumps(described))
    torch.manual_seed(0)
    return mtl.load_backbone(folder, pretrained=False, **options).to(device_of(config.device))


def task_on(backbone: mtl.Backbone, seed: int) -> mtl.AdaptedTask:
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
    part = Part(normal(WAYS, backbone.width), normal(WAYS))
    if inside := backbone.modulation_width:
        part = Part(part.weight, part.bias, 1 + NOISE * normal(inside), NOISE * normal(inside))
    return mtl.AdaptedTask(backbone, (part,), WAYS).to(backbone.device)


def requests(config: Config) -> tuple[list[str], list[str]]:
    """Texts, and the task of each; all tasks are asked about equally often, in random order."""
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(3, 16))) for _ in range(config.batch)]
    names = [str(i % config.tasks) for i in range(config.batch)]
    chance.shuffle(names)
    return texts, names


# --- ways of answering ---


def compare(
    name: str, question: str, backbone: mtl.Backbone, texts: Sequence[str], names: Sequence[str], config: Config
) -> list[dict[str, Any]]:
    """Seconds of each way, its requests per second, and how much longer than the server it takes."""
    tasks = {str(i): task_on(backbone, i) for i in range(config.tasks)}
    with mtl.Server(backbone, tasks) as server:
        ways: dict[str, Callable[[], Tensor]] = {
            "server": lambda: torch.stack(server.logits(list(texts), names, batch_size=len(texts))),
            "loop": lambda: by_task(texts, names, lambda task, own: tasks[task].logits(backbone.preprocess(own))),
        }
        if question == "mixed":
            ways["plain"] = lambda: plain(backbone, list(texts))
        if backbone.sites:
            switching = Switching(backbone, tasks)
            ways["grouped"] = lambda: by_task(texts, names, switching.logits)
            ways["arrival"] = lambda: torch.cat([switching.logits(n, [t]) for n, t in zip(names, texts, strict=True)])
        found = {way: run().cpu() for way, run in ways.items()}
        seconds = dict.fromkeys(ways, float("inf"))
        for _ in range(config.repeats):
            for way, run in ways.items():
                seconds[way] = min(seconds[way], timed(run, clock_of(backbone.device))[0])
    rows = []
    for way, taken in seconds.items():
        off = 0.0 if way == "plain" else float((found[way] - found["server"]).abs().max() / found["server"].abs().max())
        if off > AGREE[config.dtype]:
            raise RuntimeError(f"{way} on {name}: logits differ from those of the server by {off:.1e}")
        rows.append({
            "network": name, "question": question, "way": way, "seconds": round(taken, 4),
            "per_second": round(len(texts) / taken), "times_as_long": round(taken / seconds["server"], 2), "off": off,
        })  # fmt: skip
        print(f"{name}, {question}: {way:8} {taken:7.3f} s, {rows[-1]['times_as_long']:6.2f} x, off by {off:.0e}")
    return rows


def plain(backbone: mtl.Backbone, texts: list[str]) -> Tensor:
    """Features of the network alone, in the passes that a server makes."""
    return features_of(backbone, mtl.Inputs.of(backbone.preprocess(texts)), [Row(i, None) for i in range(len(texts))])


def by_task(texts: Sequence[str], names: Sequence[str], logits: Callable[[str, list[str]], Tensor]) -> Tensor:
    """Each task's texts as one batch, and the logits in the order of the texts."""
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name, []).append(place)
    found = torch.cat([logits(name, [texts[i] for i in places]) for name, places in groups.items()])
    order = torch.tensor([i for places in groups.values() for i in places])
    return found[order.argsort().to(found.device)]


class Switching:
    """The same tasks as LN_TUNING adapters of one network of PEFT, one of which is active at a time."""

    def __init__(self, backbone: mtl.Backbone, tasks: dict[str, mtl.AdaptedTask]) -> None:
        import peft  # pyright: ignore[reportMissingImports]

        self._backbone, self._tasks = backbone, tasks
        targets = [site.name for site in backbone.sites]
        config = lambda: peft.LNTuningConfig(target_modules=targets, inference_mode=True)  # noqa: E731
        plain = plain_copy(backbone.model)
        first, *others = tasks
        self._model: Any = peft.get_peft_model(plain, config(), adapter_name=first)
        for name in others:
            self._model.add_adapter(name, config())
        for name, task in tasks.items():
            self._fill(name, task.parts[0])
        self._model.eval()
        self._active = ""

    @torch.no_grad()
    def _fill(self, name: str, part: Part) -> None:
        assert part.scale is not None
        assert part.shift is not None
        widths = [site.width for site in self._backbone.sites]
        pieces = zip(self._backbone.sites, part.scale.split(widths), part.shift.split(widths), strict=True)
        for site, scale, shift in pieces:
            norm: Any = self._model.base_model.model.get_submodule(site.name).ln_tuning_layers[name]
            norm.weight.mul_(scale)
            norm.bias.mul_(scale).add_(shift)

    @torch.no_grad()
    def logits(self, name: str, texts: list[str]) -> Tensor:
        if name != self._active:
            self._model.set_adapter(name)
            self._active = name
        inputs = {k: v.to(self._backbone.device) for k, v in self._backbone.preprocess(texts).items()}
        features = self._backbone.adapter.features(self._model.base_model.model, inputs).float()
        part = self._tasks[name].parts[0]
        return torch.nn.functional.linear(features, part.weight, part.bias)


# --- a thousand tasks ---


def keep(name: str, backbone: mtl.Backbone, out: Path, config: Config) -> dict[str, Any]:
    """What so many tasks cost on disk and in memory, and how long they take to save and to load."""
    folder = out / "tasks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    def save() -> int:
        for i in range(config.saved):
            task_on(backbone, i).save(folder / f"task{i}.mtl")
        return config.saved

    saving, _ = timed(save)
    size = sum(path.stat().st_size for path in folder.iterdir())
    row = {"network": name, "tasks": config.saved, "mib_on_disk": round(size / 2**20, 1)}
    row["seconds_to_save"] = round(saving, 2)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        row |= fresh.submit(loaded, name, out, config).result()
    print(", ".join(f"{key}: {value}" for key, value in row.items()))
    return row


def loaded(name: str, out: Path, config: Config) -> dict[str, float]:
    """Seconds and memory of all saved tasks in a server: bytes of their tensors, and what the process grew by.

    In a process of its own, because one that has freed memory before takes no more for them. A first task was loaded
    and asked before, so that no code and no part of the network is counted.
    """
    torch.set_num_threads(config.threads)
    server = mtl.Server(network(name, out, config), out / "tasks", capacity=config.saved)
    server.logits([WORDS[1]], [next(iter(server))])
    before = _resident()
    seconds, tasks = timed(lambda: [server.task(task) for task in server])
    tensors = [value for task in tasks for part in task.parts for value in vars(part).values()]
    return {
        "seconds_to_load": round(seconds, 3), "mib_in_memory": round(_resident() - before, 1),
        "mib_of_tensors": round(stored_bytes(v for v in tensors if isinstance(v, Tensor)) / 2**20, 3),
    }  # fmt: skip


def _resident() -> float:
    """MiB of this process in memory now; nan where the system does not say.

    What was freed goes back to the system first, or tasks would fill it unseen.
    """
    gc.collect()
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), float("nan"))


if __name__ == "__main__":
    answer(main, Config)
