"""Estimators by name: for command lines, and for whoever wants to go through all of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from mtl.metagrad.estimators import ESTIMATORS, AbstractEstimator
from mtl.metagrad.estimators.windowed import Anchor, Mode

PullName = Literal["reverse", "forward-over-reverse", "finite-difference"]


def make_estimator(name: str, **options: object) -> AbstractEstimator:
    """An estimator by the name of its row in :data:`mtl.metagrad.ESTIMATORS`.

    Args:
        options: fields of the estimator; what is left out keeps its default.

    Raises:
        ValueError: for an unknown name, an option that the estimator lacks, or a value outside its range.

    >>> make_estimator("windowed", window=3, pull="finite-difference")
    Windowed(window=3, mode='adaptive', anchor='middle', pull='finite-difference', substeps=1, tau=0.5)
    >>> make_estimator("first-order", window=3)
    Traceback (most recent call last):
    ValueError: the estimator 'first-order' has no option window=3; it has no options at all
    """
    known = option_names(name)
    if unknown := sorted(options.keys() - set(known)):
        given = ", ".join(f"{k}={options[k]!r}" for k in unknown)
        has = f"its options are {', '.join(known)}" if known else "it has no options at all"
        raise ValueError(f"the estimator {name!r} has no option {given}; {has}")
    return ESTIMATORS[name](**options)


def option_names(name: str) -> list[str]:
    """The options of an estimator, by the name of its row."""
    return [f.name for f in fields(ESTIMATORS[name])]


def _help(line: str) -> dict[str, str]:
    return {"line": line}


@dataclass(frozen=True)
class EstimatorOptions:
    estimator: str = "windowed"
    window: int | None = field(default=None, metadata=_help("inner steps that share one linearisation"))
    mode: Mode | None = field(default=None, metadata=_help("how a window is walked back"))
    anchor: Anchor | None = field(default=None, metadata=_help("step of a window that is linearised"))
    substeps: int | None = field(default=None, metadata=_help("pulls per window of mode exact-forward"))
    tau: float | None = field(
        default=None, metadata=_help("change of the cotangent per sub-step, of mode adaptive, 0 .. 1")
    )
    pull: PullName | None = field(default=None, metadata=_help("how Hessian-vector products are evaluated"))
    budget: float | None = field(default=None, metadata=_help("MiB of graphs kept instead of rebuilt"))
    last_steps: int | None = field(default=None, metadata=_help("inner steps at the end that are differentiated"))
    order: int | None = field(default=None, metadata=_help("most curvatures in a term"))
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
    damping: float | None = field(default=None, metadata=_help("added to the diagonal of the system"))

    def build(self) -> AbstractEstimator:
        """The estimator.

        Raises:
            ValueError: as :func:`make_estimator` does.
        """
        options = {k: v for k, v in asdict(self).items() if v is not None}
        return make_estimator(options.pop("estimator"), **options)


def _documented() -> str:
    """The docstring of :class:`EstimatorOptions`, which command lines show: the rows' own help, and who has what."""
    rows = "; ".join(f"{name}, {ESTIMATORS.help(name)}" for name in ESTIMATORS)
    lines = [f"estimator: {rows}"]
    for option in fields(EstimatorOptions)[1:]:
        users = ", ".join(name for name in ESTIMATORS if option.name in option_names(name))
        lines.append(f"{option.name}: {option.metadata['line']} ({users})")
    return (
        "The estimator of the meta-gradient, and its options as plain values. Made for command lines.\n\n"
        "An option that is None keeps the estimator's own default.\n\nArgs:\n    " + "\n    ".join(lines) + "\n"
    )


EstimatorOptions.__doc__ = _documented()


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
