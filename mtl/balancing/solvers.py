"""Small convex problems, solved in float64 by a fixed number of iterations that never ask the device for an answer.

n is the number of tasks; leading axes are a batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Curve = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A convex function of x [..., n], as its gradient [..., n] and its Hessian [..., n, n]."""

RIDGE = 1e-8
"""Added to the diagonal of a matrix of unit diagonal: fp32 leaves eigenvalues about this far below zero."""

_SHORTEST = 1e-6  # a norm is at least this share of the longest one
# Complementarity at which the interior point stops shrinking, so that the answer depends smoothly on the problem.
_CENTRE = 1e-13


def directions(gram: Tensor) -> tuple[Tensor, Tensor]:
    """A Gram matrix as cosines, with a ridge [n, n], and norms [n]; in these, tasks of any scale are alike."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    longest = norms.max()
    longest = torch.where(longest > 0, longest, torch.ones_like(longest))
    norms = torch.maximum(norms, _SHORTEST * longest)
    return gram / norms[:, None] / norms + RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), norms


def interior_point(curve: Curve, start: Tensor, normal: Tensor | None = None, iterations: int = 20) -> Tensor:
    """The x >= 0 that minimises a convex function; with a positive `normal` [n], among those with normal . x = 1.

    A primal-dual interior point (Nocedal and Wright 2006, chapter 19) whose complementarity falls tenfold an iteration.

    Args:
        start: [..., n], positive; with `normal`, on its plane.
    """
    x, z = start, torch.ones_like(start)
    for _ in range(iterations):
        gradient, hessian = curve(x)
        target = (0.1 * (x * z).mean(-1, keepdim=True)).clamp(min=_CENTRE)
        matrix = hessian + torch.diag_embed(z / x)
        # On the plane the function may be flat along x; a term along the normal changes no answer.
        factor = torch.linalg.cholesky_ex(matrix if normal is None else matrix + normal[:, None] * normal)[0]
        dx = torch.cholesky_solve((target / x - gradient).unsqueeze(-1), factor)[..., 0]
        if normal is not None:
            along = torch.cholesky_solve(normal[:, None], factor)[..., 0]
            dx = dx + along * (1 - (x + dx) @ normal) / (along @ normal)
        dz = target / x - z - z / x * dx
        length = _inside(torch.cat([x, z], -1), torch.cat([dx, dz], -1), 0.99)
        x, z = x + length * dx, z + length * dz
    return x


def fair_point(cosines: Tensor, power: float, factor: Tensor, iterations: int = 30) -> Tensor:
    """The w > 0 with cosines @ w = factor * w ** -power, [n], for a positive definite matrix [n, n] and power > 0.

    It minimises the strictly convex w' C w / 2 - sum_k factor_k u(w_k), u' = w ** -power: Newton steps, each cut to the
    best of eight lengths.
    """
    n = len(cosines)
    eye = torch.eye(n, dtype=cosines.dtype, device=cosines.device)
    cuts = 0.5 ** torch.arange(8, dtype=cosines.dtype, device=cosines.device)[:, None]

    def value(w: Tensor) -> Tensor:
        utility = w.log() if power == 1 else w ** (1 - power) / (1 - power)
        return (0.5 * w * (w @ cosines) - factor * utility).sum(-1)

    even = (factor.sum() / cosines.sum().clamp(min=RIDGE * n)) ** (1 / (1 + power))
    w = even.clamp(min=1e-3) * torch.ones_like(factor)
    for _ in range(iterations):
        bend = factor * w ** (-power - 1)
        lower = torch.linalg.cholesky_ex(cosines + power * bend * eye)[0]
        dw = -torch.cholesky_solve((cosines @ w - bend * w)[:, None], lower)[:, 0]
        tried = w + _inside(w, dw, 0.9) * cuts * dw
        w = tried[value(tried).argmin().unsqueeze(0)][0]  # a tensor as index: a number would be fetched
    return w


def _inside(x: Tensor, dx: Tensor, share: float) -> Tensor:
    """The longest step [..., 1], one at most, that takes no component further than `share` of its way to zero."""
    way = torch.where(dx < 0, -share * x / dx, torch.ones_like(x))
    return way.amin(-1, keepdim=True).clamp(max=1)
