"""Muon: orthogonalized momentum for matrices, AdamW for all other weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

MOMENTUM = 0.95
ITERATIONS = 3
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan et al.: singular values end between 0.7 and 1.2
ADAMW_RATE = 0.25  # learning rate of AdamW, as a share of Muon's
SMALL = 64  # shorter side up to which float32 is faster than bfloat16
LONGEST = 256  # shorter side up to which a matrix is orthogonalized; the time grows with its cube


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) and AdamW, as one optimizer.

    Muon trains the weights of convolutions, flattened to [out, in * height * width], and of linear layers, if the
    shorter side of the matrix is at most LONGEST. AdamW, at ADAMW_RATE times the learning rate, trains larger matrices,
    the last one, which is the classifier's, and biases. Weight decay is decoupled in both.

    Args:
        dtype: Number format of the orthogonalization, if the shorter side is above SMALL. bfloat16 takes half of the
            time of float32, on processors that compute with it.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "dtype": dtype, "fused": True})
        for group in self.param_groups:
            # One group, so that there is one learning rate to schedule and to show.
            hidden = [weight for weight in group["params"] if weight.ndim >= 2][:-1]
            small = {weight for weight in hidden if min(len(weight), weight[0].numel()) <= LONGEST}
            group["is_matrix"] = [weight in small for weight in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            others = []
            for weight, is_matrix in zip(group["params"], group["is_matrix"], strict=True):
                if weight.grad is not None and is_matrix:
                    self._step_muon(weight, weight.grad, group)
                elif weight.grad is not None:
                    others.append(weight)
            self._step_adamw(others, [weight.grad for weight in others], group)
        return loss

    def _step_muon(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalize(gradient.lerp(momentum, MOMENTUM).flatten(1), group["dtype"])  # Nesterov's momentum
        rows, columns = update.shape
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update.view(weight.shape), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)

    def _step_adamw(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["step"] = torch.zeros((), device=weight.device)
                self.state[weight] |= {name: torch.zeros_like(weight) for name in ("mean", "square")}
        states = [self.state[weight] for weight in weights]
        means, squares, steps = ([state[name] for state in states] for name in ("mean", "square", "step"))
        rate = {"lr": group["lr"] * ADAMW_RATE, "weight_decay": group["weight_decay"]}
        constants: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False}
        adamw(weights, gradients, means, squares, [], steps, fused=True, **rate, **constants)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a matrix, float [M, N], with its singular values brought near 1, by Newton-Schulz iterations.

    They are computed in `dtype`, or in float32 if the matrix is small.
    """
    tall = len(matrix) > len(matrix[0])
    x = (matrix.T if tall else matrix).to(dtype if min(matrix.shape) > SMALL else torch.float32)
    x = x / x.norm().clamp(min=1e-7)  # singular values of at most 1
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
