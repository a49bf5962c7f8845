"""Every number of a training run, in one table: the paper's values where it says one (FPSAttention, arXiv 2506.04648,
section 4.1 and appendix)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from fpsgen.errors import UsageError, option

Levels = Literal["preset", "logit-normal"]
Optimizer = Literal["adamw", "muon"]
Decay = Literal["constant", "cosine"]

_WARM_UP = 200
_LORA_LR = 1e-4  # adapters start at zero, and take larger steps than weights that are to change little

# The least and the largest value of each number, and one that is usual.
_RANGES: dict[str, tuple[float, float, float]] = {
    "distil": (0, 1e6, 1), "flow": (0, 1e6, 1), "lora": (1, 4096, 64), "steps": (1, 10**9, 1000),
    "batch": (1, 10**6, 8), "micro": (1, 10**6, 1), "lr": (1e-12, 10, 5e-6), "warm_up": (0, 10**9, 200),
    "weight_decay": (0, 10, 1e-4), "clip": (1e-6, 1e6, 1), "ema": (0, 1, 0.99), "adam_eps": (0, 1, 1e-15),
    "caption_drop": (0, 1, 0.1), "hold": (0, 1, 0.5), "floor": (0, 1, 0.1), "spike": (1, 1e6, 10),
    "save_every": (1, 10**9, 100), "keep": (1, 10**6, 3), "check_every": (1, 10**9, 100), "checks": (0, 10**4, 4),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """distil, flow: weights of the two losses: squared distance of the velocity from the dense model's, and from the
    flow's (the paper's). guided: the first of them compares guided velocities. lora: rank of the adapters, None trains
    all weights. levels: which noise levels are drawn: those that the preset's steps visit, more of them where it is
    sparse, or logit-normal ones (the paper's). caption_drop: share of samples whose caption becomes the negative
    prompt.

    steps: of the optimizer. batch: samples of a step, over all processes; micro: of those, how many run at once in each
    process. lr: None for the paper's 5e-6, or 1e-4 with LoRA. warm_up: steps in which the learning rate rises from 0,
    and sparsity and precision go from dense to the preset. decay: of the learning rate after `hold` of the steps, to
    `floor` of it. clip: of the gradients' norm. ema: decay of the averaged weights, which are the result; 0 for none.
    spike: a loss above so many times the recent median is skipped. recompute: activations in the backward pass, which
    saves memory. from_scratch: weights begin at random.

    save_every: steps between checkpoints; keep: how many of the last stay. check_every: steps between renderings of
    the held-out clips; checks: how many of them.
    """

    distil: float = 1.0
    flow: float = 0.0
    guided: bool = False
    lora: int | None = None
    levels: Levels = "preset"
    caption_drop: float = 0.1
    steps: int = 1000
    batch: int = 8
    micro: int = 1
    lr: float | None = None
    warm_up: int | None = None
    decay: Decay = "constant"
    hold: float = 0.5
    floor: float = 0.0
    optimizer: Optimizer = "adamw"
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.99
    adam_eps: float = 1e-15
    spike: float = 10.0
    recompute: bool = False
    from_scratch: bool = False
    seed: int = 0
    save_every: int = 100
    keep: int = 3
    check_every: int = 100
    checks: int = 4

    @property
    def learning_rate(self) -> float:
        """Of the optimizer, after the warm-up."""
        return self.lr if self.lr is not None else _LORA_LR if self.lora else 5e-6

    @property
    def warm_up_steps(self) -> int:
        """How many steps warm up: 200, or a fifth of all of them where that is less."""
        return self.warm_up if self.warm_up is not None else min(_WARM_UP, self.steps // 5)

    def override(self, **given: Any) -> TrainSettings:
        """These, but for every keyword that is not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def as_dict(self) -> dict[str, Any]:
        """What a settings file says, in which nothing is left to defaults but what None turns off."""
        told = asdict(self) | {"lr": self.learning_rate, "warm_up": self.warm_up_steps}
        return {name: value for name, value in told.items() if value is not None}

    def check(self) -> None:
        """UsageError where a value means nothing, or two contradict each other."""
        for name, (low, high, usual) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                hint = f"try {option(name, usual)}"
                raise UsageError(f"{option(name, value)}: must be {low:g} to {high:g}", hint)
        for name, choices in (("levels", Levels), ("decay", Decay), ("optimizer", Optimizer)):
            if (value := getattr(self, name)) not in get_args(choices):
                told = f"{option(name, value)}: there is none of that name"
                raise UsageError(told, hint=f"use {' or '.join(get_args(choices))}")
        if self.distil == self.flow == 0:
            told = f"{option('distil', 0.0)} and {option('flow', 0.0)}: nothing would be learned"
            raise UsageError(told, hint="give one of them a weight")
        if self.guided and not self.distil:
            told = f"{option('guided')} says what is distilled, and {option('distil', 0.0)} distils nothing"
            raise UsageError(told, hint=f"leave {option('guided')} out, or give {option('distil')} a weight")
        if self.from_scratch and (self.distil or self.lora):
            told = f"{option('from_scratch')} has no model to learn from, nor one to add adapters to"
            raise UsageError(
                told, hint=f"use {option('flow', 1.0)} with {option('distil', 0.0)}, without {option('lora')}"
            )
        if self.batch % self.micro:
            told = f"{option('batch', self.batch)} cannot be divided into parts of {option('micro', self.micro)}"
            raise UsageError(told, hint="give a multiple")
