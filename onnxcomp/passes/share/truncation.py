"""The product of two thin matrices that is nearest to a matrix, on the inputs that the matrix really multiplies."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
from threadpoolctl import threadpool_limits

#: inputs count as if all of them varied by this share of their mean square, each on its own: what was not seen
#: keeps its direction in the weight. On MiniLM 1e-6 to 1e-2 differ by 0.0003 in cosine
_PRIOR = 1e-3

#: energies below this share of the largest are rounding
_SMALLEST = 1e-12


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let BLAS and LAPACK add in one order, whatever number of threads the process has."""
    with threadpool_limits(1, user_api="blas"):
        yield


@dataclasses.dataclass(frozen=True)
class Truncation:
    """All best approximations of a weight W, (inputs, outputs), by rank: W V_r V_r^T.

    Attributes:
        energies: mean square that each direction adds to the outputs, falling: float64, (directions,).
        right: V^T, the directions, orthonormal: float64, (directions, outputs).
    """

    energies: np.ndarray
    right: np.ndarray

    @staticmethod
    def of(weight: np.ndarray, gram: np.ndarray | None) -> Truncation:
        """Of inputs with second moments `gram`, float64, (inputs, inputs); None: all inputs matter alike.

        The sum of |x W - x A B|^2 over the rows x is least, of all A, (inputs, r), and B, (r, outputs), for
        A = W V_r and B = V_r^T, with V_r the r first eigenvectors of W^T G W. With G = R^T R these are the right
        singular vectors of R W (Chen et al. 2021, DRONE; Wang et al. 2024, SVD-LLM, arXiv:2403.07378), but nothing
        is inverted, and G may have any rank.
        """
        width, outputs = weight.shape
        if gram is None or not np.trace(gram) > 0:
            gram = np.eye(width)
        gram = gram + _PRIOR * np.trace(gram) / width * np.eye(width)
        if outputs <= width:
            energies, vectors = np.linalg.eigh(weight.T @ (gram @ weight))
            right = vectors[:, ::-1].T
        else:
            # the same directions from a matrix of the smaller size
            squares, axes = np.linalg.eigh(gram)
            seen = np.sqrt(np.maximum(squares, 0))[:, np.newaxis] * (axes.T @ weight)
            energies, vectors = np.linalg.eigh(seen @ seen.T)
            sizes = np.sqrt(np.maximum(energies, max(energies[-1], 0) * _SMALLEST))[::-1, np.newaxis]
            right = np.divide(vectors[:, ::-1].T @ seen, sizes, out=np.zeros(weight.shape), where=sizes > 0)
        energies = np.maximum(energies[::-1], 0)
        count = max(int(np.sum(energies > energies[0] * _SMALLEST)), 1)
        return Truncation(energies[:count], right[:count])


def factors(weight: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) of a weight for some of its first directions: float64, (inputs, rank) and (rank, outputs).

    What each direction carries is divided evenly between the two, so that neither has few large columns or rows.
    """
    left = weight @ right.T
    sizes = np.sqrt(np.linalg.norm(left, axis=0))
    sizes[sizes == 0] = 1
    return left / sizes, right * sizes[:, np.newaxis]
