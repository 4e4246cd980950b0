"""Muon: momentum made orthogonal, for the matrices of a network; AdamW for the rest of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_SIDE = 16
"""Weights with fewer inputs or outputs, such as a convolution of pixels, are no matrices here."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic, steepest at zero
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Updates of matrices with all singular values near 1, whatever those of their gradients.

    A linear layer or convolution (whose kernel counts as inputs) moves along the orthogonal matrix
    nearest to its averaged gradient, which a Newton-Schulz iteration finds (K. Jordan, "Muon: an
    optimizer for hidden layers in neural networks", 2024). Updates are scaled to the size of
    AdamW's (arXiv 2502.16982, section 2.2), so that one rate and one weight decay serve both:
    biases, normalisations, embeddings and layers of pixels are left to AdamW.

    Args:
        params: What is trained.
        lr: Of both.
        betas: AdamW's.
        weight_decay: Of both, decoupled.
        momentum: Of the matrices; Nesterov's.
        fused: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        fused: bool | None = None,
    ) -> None:
        params = list(params)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in params if is_matrix(p) == matrices], "momentum": momentum}
            for matrices in (False, True)
        ]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make an update; parameters without a gradient stay."""
        groups = self.param_groups
        self.param_groups = groups[:1]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        self._step_matrices(groups[1])
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        if not weights:
            return
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
                state["step"] = torch.zeros(())  # unused; AdamW looks for it when state is loaded
        gradients = [weight.grad for weight in weights]
        averages = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        directions = torch._foreach_lerp(gradients, averages, group["momentum"])  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])  # pyright: ignore[reportPrivateImportUsage]

        # Those of one shape go together: a small network's products take longer to start than run.
        alike: dict[tuple[int, int], list[tuple[nn.Parameter, bool, Tensor]]] = defaultdict(list)
        for weight, direction in zip(weights, directions, strict=True):
            flat = direction.flatten(1)
            rows, columns = flat.shape
            turned = rows > columns
            alike[min(rows, columns), max(rows, columns)].append(
                (weight, turned, flat.mT if turned else flat)
            )
        for (_, longer), items in alike.items():
            found = orthogonal(torch.stack([flat for _, _, flat in items]))
            size = 0.2 * longer**0.5
            for (weight, turned, _), update in zip(items, found.unbind(), strict=True):
                upright = update.mT if turned else update
                weight.add_(upright.reshape(weight.shape), alpha=-group["lr"] * size)


def is_matrix(weight: Tensor) -> bool:
    """Whether a weight maps many numbers to many: of a linear layer or convolution."""
    return weight.ndim >= 2 and min(weight.shape[:2]) >= SMALLEST_SIDE


def orthogonal(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1 (0.7 to 1.2), and leave the directions.

    Args:
        matrices: `(N, rows, columns)`, no more rows than columns.

    Returns:
        The same shape and type, computed in bfloat16.
    """
    a, b, c = _COEFFICIENTS
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-9)
    x = x.bfloat16()
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.to(matrices)
