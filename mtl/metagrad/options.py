"""Estimators and inner optimisers by name: for command lines, and for whoever wants to go through all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mtl.metagrad.estimators import ESTIMATORS, AbstractEstimator
from mtl.metagrad.estimators.windowed import Anchor, Mode
from mtl.metagrad.optimizers import INNER_OPTIMIZERS, AbstractInnerOptimizer, LearningRate
from mtl.metagrad.registry import Registry

PullName = Literal["reverse", "forward-over-reverse", "finite-difference", "one-sided-difference", "auto"]


def make_estimator(name: str, **options: object) -> AbstractEstimator:
    """An estimator by the name of its row in :data:`mtl.metagrad.ESTIMATORS`.

    Args:
        options: fields of the estimator; what is left out keeps its default.

    Raises:
        ValueError: for an unknown name, an option that the estimator lacks, or a value outside its range.

    >>> make_estimator("windowed", window=3, pull="finite-difference")
    Windowed(window=3, mode='adaptive', anchor='middle', pull='finite-difference', substeps=1, tau=0.4, rank_one=True)
    >>> make_estimator("first-order", window=3)
    Traceback (most recent call last):
    ValueError: the estimator 'first-order' has no option window=3; it has no options at all
    """
    return _make(ESTIMATORS, name, options)


def _make(registry: Registry, name: str, options: Mapping[str, object], prefix: str = "") -> Any:
    """A row's class with these options, of those that it has. Messages name them with the prefix."""
    known = _field_names(registry[name])
    if unknown := sorted(options.keys() - set(known)):
        given = ", ".join(f"{prefix}{k}={options[k]!r}" for k in unknown)
        settable = ", ".join(f"{prefix}{k}" for k in known if k not in NOT_ON_COMMAND_LINES)
        has = f"its options are {settable}" if settable else "it has no options at all"
        raise ValueError(f"the {registry.kind} {name!r} has no option {given}; {has}")
    return registry[name](**options)


def option_names(name: str) -> list[str]:
    """The options of an estimator, by the name of its row."""
    return _field_names(ESTIMATORS[name])


def _field_names(cls: type) -> list[str]:
    return [f.name for f in fields(cls)]


def _help(line: str) -> dict[str, str]:
    return {"line": line}


@dataclass(frozen=True)
class EstimatorOptions:
    estimator: str = "windowed"
    window: int | None = field(default=None, metadata=_help("inner steps that share one linearisation"))
    mode: Mode | None = field(default=None, metadata=_help("how a window is walked back"))
    anchor: Anchor | None = field(default=None, metadata=_help("step of a window that is linearised"))
    substeps: int | None = field(default=None, metadata=_help("pulls per window of mode exact-forward"))
    rank_one: bool | None = field(
        default=None, metadata=_help("steps of a window feel what those after them have changed")
    )
    tau: float | None = field(
        default=None, metadata=_help("change of the cotangent per sub-step, of mode adaptive, 0 .. 1")
    )
    pull: PullName | None = field(default=None, metadata=_help("how Hessian-vector products are evaluated"))
    budget: float | None = field(default=None, metadata=_help("MiB of graphs kept instead of rebuilt"))
    last_steps: int | None = field(default=None, metadata=_help("inner steps at the end that are differentiated"))
    order: int | None = field(default=None, metadata=_help("most curvatures in a term"))
    damped: bool | None = field(default=None, metadata=_help("curvature counts order / K of what it is"))
    decay: float | None = field(default=None, metadata=_help("weight of a step relative to the one after it, 0 .. 1"))
    terms: int | None = field(default=None, metadata=_help("of the Neumann series"))
    strength: float | None = field(default=None, metadata=_help("of the tie to the initial weights"))
    iterations: int | None = field(default=None, metadata=_help("of conjugate gradients"))
    tolerance: float | None = field(default=None, metadata=_help("relative residual at which conjugate gradients stop"))
    copies: int | None = field(default=None, metadata=_help("perturbed copies of the fast weights"))
    sigma: float | None = field(default=None, metadata=_help("standard deviation of the perturbations"))
    temperature: float | None = field(default=None, metadata=_help("of the softmax over the copies' losses"))
    noise_seed: int | None = field(default=None, metadata=_help("of the perturbations"))
    penalty: float | None = field(default=None, metadata=_help("weight of the gap in the outer loss"))
    factor_damping: float | None = field(
        default=None, metadata=_help("added to each factor's diagonal, in units of its mean eigenvalue")
    )
    damping: float | None = field(default=None, metadata=_help("added to the diagonal of the system"))

    def build(self) -> AbstractEstimator:
        """The estimator.

        Raises:
            ValueError: as :func:`make_estimator` does.
        """
        options = {k: v for k, v in asdict(self).items() if v is not None}
        return make_estimator(options.pop("estimator"), **options)


@dataclass(frozen=True)
class InnerOptions:
    inner_optimizer: str = "sgd"
    inner_momentum: float | None = field(default=None, metadata=_help("share of the last step in the next, 0 .. 1"))
    inner_weight_decay: float | None = field(default=None, metadata=_help("pull of the weights towards zero"))
    inner_clip: float | None = field(default=None, metadata=_help("largest norm of a task's gradient"))
    inner_betas: tuple[float, float] | None = field(default=None, metadata=_help("decay of Adam's two averages"))
    inner_eps: float | None = field(default=None, metadata=_help("added to what a gradient is divided by"))
    inner_relative: bool = field(default=False, metadata=_help("steps are shares of a tensor's length, as in LARS"))

    def build(self, lr: LearningRate = 0.1) -> AbstractInnerOptimizer:
        """The inner optimiser.

        Args:
            lr: its step size, see :class:`mtl.InnerSGD`.

        Raises:
            ValueError: for an unknown name, an option that the optimiser lacks, or a value outside its range.
        """
        given = {k.removeprefix(INNER): v for k, v in asdict(self).items()}
        options = {k: v for k, v in given.items() if v is not None and v is not False}
        return _make(INNER_OPTIMIZERS, options.pop("optimizer"), options | {"lr": lr}, INNER)


INNER = "inner_"
"""Before the options of inner optimisers on command lines, which have a ``clip`` and a ``weight_decay`` elsewhere."""
NOT_ON_COMMAND_LINES = ("lr", "start")
"""Fields of inner optimisers that are functions of the meta-parameters."""


def _documented(options: type, registry: Registry, summary: str, prefix: str = "") -> str:
    """The docstring of a class of options, which command lines show: the rows' own help, and who has what."""
    name, *others = fields(options)
    rows = "; ".join(f"{row}, {registry.help(row).rstrip('.')}" for row in registry)
    lines = [f"{name.name}: {rows}"]
    for option in others:
        users = ", ".join(row for row in registry if option.name.removeprefix(prefix) in _field_names(registry[row]))
        lines.append(f"{option.name}: {option.metadata['line']} ({users})")
    return (
        f"{summary} Made for command lines.\n\n"
        f"An option that is None keeps the {registry.kind}'s own default.\n\nArgs:\n    " + "\n    ".join(lines) + "\n"
    )


EstimatorOptions.__doc__ = _documented(
    EstimatorOptions, ESTIMATORS, "The estimator of the meta-gradient, and its options as plain values."
)
InnerOptions.__doc__ = _documented(
    InnerOptions, INNER_OPTIMIZERS, "The inner optimiser, and its options as plain values but its step size.", INNER
)


def representatives(window: int = 5) -> dict[str, AbstractEstimator]:
    """Every registered estimator with its own defaults, and every mode of windows: for tables and comparisons.

    Args:
        window: for the estimators that have a window, or look at the last steps.

    Returns:
        By name; where an estimator counts something, the count is part of the name.

    >>> [name for name in representatives(3) if "3" in name]
    ['windowed(3), adaptive', 'windowed(3), exact-forward', 'windowed(3), lazy', 'truncated(3)']
    """
    found: dict[str, AbstractEstimator] = {}
    for name in ESTIMATORS:
        known = option_names(name)
        counted = {k: window for k in ("window", "last_steps") if k in known}
        if name == "windowed":
            modes = ("adaptive", "exact-forward", "lazy")
            found |= {f"windowed({window}), {m}": make_estimator(name, mode=m, **counted) for m in modes}
            continue
        estimator = make_estimator(name, **counted)
        first = getattr(estimator, known[0]) if known else None
        found[f"{name}({first})" if type(first) is int else name] = estimator
    return found
