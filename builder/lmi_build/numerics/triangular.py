"""
Symmetric matrices ordered, mirrored and factored in their own memory.

The largest thing that quantizing holds is H, I x I in float32. LAPACK's routines want
columns that lie together and a result beside the input, so a factorization through
them holds three such matrices. Everything here goes slab by slab and needs one matrix
and one slab; large products of slabs do the work.

Shape suffixes: N size of the matrix, B rows of one slab, b rows before a slab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Rows of a slab. Measured for N = 4096 on 2 cores, factor and inverse: 4.2 CPU s for
# 64 rows, 1.1 for 128, 1.3 for 256 (LAPACK's with three matrices: 1.5).
SLAB_ROWS = 256


def mirror(h_NN: Tensor) -> None:
    """Overwrite what is below the diagonal by what is above it."""
    for slab in _slabs(len(h_NN)):
        h_NN[slab.stop :, slab] = h_NN[slab, slab.stop :].T
        corner_BB = h_NN[slab, slab]
        corner_BB.copy_(torch.triu(corner_BB) + torch.triu(corner_BB, 1).T)


def reorder(h_NN: Tensor, order_N: Tensor) -> None:
    """Bring rows and columns into an order."""
    for slab in _slabs(len(h_NN)):
        h_NN[:, slab] = h_NN[order_N, slab]
    for slab in _slabs(len(h_NN)):
        h_NN[slab] = h_NN[slab, order_N]


def factor(h_NN: Tensor) -> bool:
    """
    The upper R with H = R R', above and on the diagonal of H.

    From the last slab up: its corner is factored, the columns above it are solved for,
    and their product is taken off the rest.

    Args:
        h_NN: float32, symmetric. What is below the diagonal stays, so that `mirror` of
            the transpose brings all but the diagonal back.

    Returns:
        Whether there is one; where not, the upper triangle is of no use.
    """
    for slab in _slabs(len(h_NN), last_first=True):
        corner_BB = h_NN[slab, slab]
        turned_BB = (torch.triu(corner_BB) + torch.triu(corner_BB, 1).T).flip(0, 1)
        lower_BB, info = torch.linalg.cholesky_ex(turned_BB)
        if int(info):
            return False
        r_BB = lower_BB.flip(0, 1)
        corner_BB.tril_(-1).add_(r_BB)
        panel_bB = h_NN[: slab.start, slab]
        panel_bB.copy_(
            torch.linalg.solve_triangular(r_BB.T, panel_bB, upper=False, left=False)
        )
        for part in _slabs(slab.start):
            row_BB, rest = panel_bB[part], slice(part.stop, slab.start)
            h_NN[part, part].sub_(torch.triu(row_BB @ row_BB.T))
            h_NN[part, rest].addmm_(row_BB, panel_bB[rest].T, alpha=-1)
    return True


def invert(r_NN: Tensor) -> None:
    """
    The inverse of an upper triangular matrix in its place.

    From the first slab of columns on: all before it is inverted already, so
    U[:b, slab] = -U[:b, :b] R[:b, slab] U[slab, slab], row slab after row slab, none of
    which needs those above it.

    Args:
        r_NN: float32; what is below the diagonal is not looked at, and 0 afterwards.
    """
    for slab in _slabs(len(r_NN)):
        corner_BB = torch.triu(r_NN[slab, slab])
        one_BB = torch.eye(len(corner_BB), dtype=r_NN.dtype, device=r_NN.device)
        u_BB = torch.linalg.solve_triangular(corner_BB, one_BB, upper=True)
        r_NN[slab, slab] = u_BB
        for part in _slabs(slab.start):
            rest = slice(part.start, slab.start)
            r_NN[part, slab] = -(r_NN[part, rest] @ r_NN[rest, slab]) @ u_BB
    r_NN.triu_()


def _slabs(size: int, *, last_first: bool = False) -> Iterator[slice]:
    starts = range(0, size, SLAB_ROWS)
    for start in reversed(starts) if last_first else starts:
        yield slice(start, min(start + SLAB_ROWS, size))
