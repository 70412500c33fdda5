"""Muon for the matrices, Adam for the embedding and the norms; matrices of one shape are stepped together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .model import Nano

# Keller Jordan, "Muon: An optimizer for hidden layers in neural networks": a quintic that drives singular values to 1
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonal(stack: Tensor) -> Tensor:
    """Return [n, rows, columns], rows <= columns, with all singular values about one."""
    a, b, c = QUINTIC
    x = stack / (stack.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Optimizer:
    """Steps a `Nano`; its state is plain tensors."""

    def __init__(
        self, model: Nano, *, matrix_rate: float, embedding_rate: float, norm_rate: float, decay: float
    ) -> None:
        """Sort the parameters: matrices of the layers by shape, all else to Adam."""
        self.matrix_rate, self.decay = matrix_rate, decay
        self.parameters = dict(model.named_parameters())
        self.matrices = [name for name in self.parameters if name.endswith((".qkv", ".o", ".gate_up", ".down"))]
        norms = [weight for name, weight in self.parameters.items() if name.endswith("norm.weight")]
        groups = [
            {"params": [model.embedding], "rate": embedding_rate},
            {"params": norms, "rate": norm_rate},
        ]
        self.adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        self.momentum = {name: torch.zeros_like(self.parameters[name]) for name in self.matrices}
        layer = model.layers[0]
        self.sizes = {"qkv": layer.sizes, "gate_up": (model.shape.intermediate_size,) * 2}

    def pieces(self, name: str, matrix: Tensor) -> list[Tensor]:
        """Return the matrices that one parameter holds, views all."""
        sizes = self.sizes.get(name.rsplit(".", 1)[1])
        return list(matrix.split(sizes)) if sizes else [matrix]

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update all parameters at `scale` times the rate, and forget the gradients."""
        for group in self.adam.param_groups:
            group["lr"] = group["rate"] * scale
        self.adam.step()
        self.adam.zero_grad()
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for name in self.matrices:
            weight, momentum = self.parameters[name], self.momentum[name]
            gradient = weight.grad
            momentum.lerp_(gradient, 0.05)
            update = gradient.lerp(momentum, 0.95)
            weight.grad = None
            for part, change in zip(self.pieces(name, weight), self.pieces(name, update), strict=True):
                if part.shape[0] > part.shape[1]:
                    part, change = part.T, change.T  # noqa: PLW2901
                stacks.setdefault((part.shape[0], part.shape[1]), []).append((part, change))
        rate = self.matrix_rate * scale
        for (rows, columns), members in stacks.items():
            changes = orthogonal(torch.stack([change for _, change in members]))
            for (part, _), change in zip(members, changes, strict=True):
                part.mul_(1 - rate * self.decay).add_(change, alpha=-rate * max(1.0, columns / rows) ** 0.5)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"adam": self.adam.state_dict(), "momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.adam.load_state_dict(state["adam"])
        for name, value in state["momentum"].items():
            self.momentum[name].copy_(value)
