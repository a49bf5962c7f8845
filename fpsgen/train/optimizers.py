"""AdamW, or Muon for hidden matrices and AdamW for everything else.

Muon (Jordan et al., 2024) orthogonalises the momentum of each weight matrix by a quintic Newton-Schulz iteration. On
two CPU cores it reaches a given loss in clearly fewer steps than AdamW alone, which is what a model that begins at
random needs. `torch.optim.Muon` is not in every torch that fpsgen runs with, and takes matrices only; convolutions are
most of a VAE, so they are flattened here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fpsgen.train.fsdp import gathered, shared
from fpsgen.train.settings import TrainSettings


@torch.no_grad()
def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrix, roughly: singular values end in about 0.7..1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.size(0) > matrix.size(1)
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the update's scale is matched to AdamW's (0.2 * sqrt(longer side))."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - momentum)
                update = orthogonalise(gathered(p.grad.lerp(buffer, momentum)).flatten(1))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(shared(update.view(p.shape), p), alpha=-0.2 * lr * max(update.shape) ** 0.5)


class Optimizers:
    """One or several, driven by one learning-rate factor in 0..1. updates: how many there were."""

    def __init__(self, *own: torch.optim.Optimizer):
        self.own, self.updates = own, 0
        self._base = [[group["lr"] for group in optimizer.param_groups] for optimizer in own]

    def step(self, factor: float) -> None:
        for optimizer, base in zip(self.own, self._base, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.updates += 1

    def tensors(self, named: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, Tensor]]:
        """All that they remember of the parameters `named`, as tensors of the parameters' shapes, by name."""
        for optimizer in self.own:
            parts = ("momentum",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
            members = {p for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in named.items():
                if parameter not in members:
                    continue
                state = optimizer.state[parameter]
                for part in parts:
                    yield f"{part}/{name}", state.setdefault(part, torch.zeros_like(parameter))
                if len(parts) == 2:
                    state.setdefault("step", torch.zeros((), device=parameter.device)).fill_(self.updates)

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.own]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.own, states, strict=True):
            optimizer.load_state_dict(state)


def of(settings: TrainSettings, named: Mapping[str, nn.Parameter]) -> Optimizers:
    """Those of a run, for its trained parameters by name."""
    lr, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "muon":
        return with_muon(named.items(), lambda name, p: p.ndim == 2 and "blocks." in name, lr, lr / 2, decay)
    return Optimizers(torch.optim.AdamW(named.values(), lr, eps=settings.adam_eps, weight_decay=decay, fused=True))


def with_muon(
    named: Iterable[tuple[str, nn.Parameter]],
    is_hidden: Callable[[str, Tensor], bool],
    lr: float,
    adam_lr: float,
    weight_decay: float,
) -> Optimizers:
    """Muon for hidden matrices, AdamW for the others."""
    hidden: list[nn.Parameter] = []
    other: list[nn.Parameter] = []
    for name, parameter in named:
        if parameter.requires_grad:
            (hidden if is_hidden(name, parameter) else other).append(parameter)
    return Optimizers(
        Muon(hidden, lr, weight_decay=weight_decay),
        torch.optim.AdamW(other, adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    )
