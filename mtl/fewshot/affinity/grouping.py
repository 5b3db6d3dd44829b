"""Groups of families from a matrix of affinities."""

from __future__ import annotations

import importlib
from typing import Any, Literal

import numpy as np

Method = Literal["spectral", "sdp"]


def group(matrix: np.ndarray, count: int, method: Method = "spectral") -> np.ndarray:
    """A group ``0 .. count - 1`` for every row, numbered in order of their first rows.

    Args:
        matrix: ``(n, n)`` affinities, larger for families that help each other; those of a pair are averaged.
        count: groups, ``1 .. n``.
        method: ``"spectral"`` clusters the leading eigenvectors; ``"sdp"`` those of the solution of a semi-definite
            program, the relaxation of the densest groups, which needs cvxpy.

    Raises:
        ValueError: a count outside its range.
        ImportError: cvxpy is not installed, for ``"sdp"``.
    """
    n = len(matrix)
    if not 1 <= count <= n:
        raise ValueError(f"count={count}: expected 1 .. {n} groups of {n} families")
    if count in (1, n):
        return np.zeros(n, int) if count == 1 else np.arange(n)
    even = (matrix + matrix.T) / 2
    kernel = _positive(even) if method == "spectral" else relax(even, count)
    return _numbered(_cluster(kernel, count))


def _positive(matrix: np.ndarray) -> np.ndarray:
    """Similarities above 0, with rows of like sums, as spectral clustering wants them."""
    off = ~np.eye(len(matrix), dtype=bool)
    spread = matrix[off].std() or 1.0
    similar = np.exp((matrix - matrix[off].mean()) / spread)
    np.fill_diagonal(similar, 0)
    root = similar.sum(1) ** -0.5
    return root[:, None] * similar * root


def _cluster(kernel: np.ndarray, count: int) -> np.ndarray:
    """Rows of the ``count`` leading eigenvectors, at unit length, by k-means."""
    from sklearn.cluster import KMeans  # its import takes as long as torch's

    vectors = np.linalg.eigh(kernel)[1][:, -count:]
    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return KMeans(count, n_init=20, random_state=0).fit_predict(rows)  # pyright: ignore[reportArgumentType]


def relax(matrix: np.ndarray, count: int) -> np.ndarray:
    """The matrix of the semi-definite program: ``1 / size`` for pairs inside a group, 0 for others, where it is tight.

    It maximises ``<matrix, X>`` over positive semi-definite ``X >= 0`` whose columns sum to 1 and whose trace is the
    number of groups (arXiv 2409.19458 has a price on the trace in place of the number).

    Raises:
        ImportError: cvxpy is not installed.
    """
    cp = _cvxpy()
    x = cp.Variable(matrix.shape, PSD=True)
    rules = [x >= 0, cp.sum(x, axis=0) == 1, cp.trace(x) == count]
    cp.Problem(cp.Maximize(cp.sum(cp.multiply(matrix, x))), rules).solve()
    return np.asarray(x.value)


def _cvxpy() -> Any:
    try:
        return importlib.import_module("cvxpy")
    except ImportError as error:
        raise ImportError('method="sdp" needs cvxpy: pip install "mtl[affinity]", or take "spectral"') from error


def _numbered(labels: np.ndarray) -> np.ndarray:
    order = {label: number for number, label in enumerate(dict.fromkeys(labels.tolist()))}
    return np.array([order[label] for label in labels.tolist()])
