"""Fixed label sets, as text classification is usually reported: n examples per class, ten draws, mean and deviation.

    python recipes/benchmarks/compare_text.py --backbone mtl/minilm
    python recipes/benchmarks/compare_text.py --backbone mtl/minilm --last-k 1 --generator runs/few_shot_text/.../final
    python recipes/benchmarks/compare_text.py --data reviews.csv --backbone mtl/minilm --shots 8 16 64 --setfit --peft

Without --data the classes are the test modules of the embedded docstrings that have enough texts. SetFit (arXiv
2209.11055) tunes the whole encoder by contrast and needs minutes per draw; it, LoRA and IA3 need
`pip install -e ".[text]"`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from command import Checked, Count, Counts, Folder, answer

import mtl
from mtl.data.embedded.docstring_tasks import docstring_collection
from mtl.tools.files import write_csv
from mtl.tools.progress import ProgressBar

Result = dict[str, str | int | float]
Judge = Callable[[mtl.ClassTasks, int], float]
"""Tasks and the index of a draw, to the accuracy in %."""


@dataclass(frozen=True)
class Config(Checked):
    backbone: str = "mtl/minilm"  # mtl/minilm, hf/<id> or a folder
    generator: str | None = None  # folder of a trained generator for this backbone
    data: str | None = None  # csv, jsonl, parquet, folder of .txt or hub id
    text_column: str | None = None  # column of texts, where the table has no usual name for it
    label_column: str | None = None  # column of labels, where the table has no usual name for it
    last_k: Count | None = None  # modulate only the last k blocks; must match the generator
    max_length: Count = 32  # tokens that are read of each text
    shots: Counts = (8, 16)  # examples per class
    queries: Count = 10  # test examples per class
    draws: Count = 10  # random draws of examples
    setfit: bool = False  # compare with SetFit too
    peft: bool = False  # compare with LoRA and IA3 too
    out: Folder = "runs/compare_text"  # folder for text.csv


def main(config: Config) -> list[Result]:
    """One row per method and number of shots."""
    backbone = mtl.load_backbone(config.backbone, last_k=config.last_k, max_length=config.max_length)
    tokens = mtl.data.InputCache(backbone.precompute)
    methods = [m for m in mtl.baselines(backbone, c=10.0) if m.name.split(",")[0] in ("nearest class mean", LOGISTIC)]
    if config.generator is not None:
        methods.append(mtl.learner_method(mtl.from_pretrained(config.generator, backbone)))
    if config.peft:
        methods += mtl.fewshot.peft_baselines(backbone)
    judges: dict[str, Judge] = {m.name: partial(accuracy, m) for m in methods}
    if config.setfit:
        judges["SetFit"] = partial(setfit_accuracy, backbone)
    rows: list[Result] = []
    for shots in config.shots:
        tasks = fixed_label_set(config, tokens, shots)
        for name, judge in judges.items():
            values = [
                judge(tasks, i) for i in ProgressBar(range(config.draws), desc=f"{name}, {shots} each", unit="draw")
            ]
            row: Result = {"method": name, "classes": len(tasks.classes), "shots": shots}
            rows.append(row | {"mean": round(float(np.mean(values)), 2), "std": round(float(np.std(values)), 2)})
            print("{method:28s} {classes:3d} classes, {shots:3d} each: {mean:5.1f} +- {std:.1f}".format(**rows[-1]))
    write_csv(rows, Path(config.out) / "text.csv")
    return rows


LOGISTIC = "logistic regression"


def fixed_label_set(config: Config, tokens: mtl.data.InputCache, shots: int) -> mtl.ClassTasks:
    """Tasks of all classes; they differ in their examples alone."""
    if config.data is None:
        texts = docstring_collection("module", mtl.data.docstring_split().test, shots + config.queries)
    else:
        texts = mtl.open_texts(config.data, text_column=config.text_column, label_column=config.label_column)
    names = texts.class_names
    return mtl.ClassTasks(texts, names, preprocess=tokens, ways=len(names), shots=shots, queries=config.queries)


def accuracy(method: mtl.fewshot.Method, tasks: mtl.ClassTasks, index: int) -> float:
    """In %."""
    episode = tasks.sample(index)
    return 100 * float((method(episode).cpu() == episode.query.labels).float().mean())


def setfit_accuracy(backbone: mtl.Backbone, tasks: mtl.ClassTasks, index: int) -> float:
    """SetFit's own trainer, on the network as the backbone loaded it; in %."""
    import datasets
    from setfit import SetFitModel, Trainer, TrainingArguments  # pyright: ignore[reportMissingImports]

    _, support, query = tasks.read(index)
    labels = [tasks.sample(index).support.labels[0], tasks.sample(index).query.labels[0]]
    table = datasets.Dataset.from_dict({"text": support, "label": labels[0].tolist()})
    with tempfile.TemporaryDirectory() as folder:
        backbone.model.save_pretrained(folder)  # type: ignore[operator]
        backbone.adapter.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
        model = SetFitModel.from_pretrained(folder)
        arguments = TrainingArguments(output_dir=folder, num_epochs=1, max_steps=200, report_to="none", seed=index)
        Trainer(model=model, args=arguments, train_dataset=table).train()
        return 100 * float((torch.as_tensor(model.predict(query)) == labels[1]).float().mean())


if __name__ == "__main__":
    answer(main, Config)
