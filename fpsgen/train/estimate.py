"""How much memory training takes on each card, and how fast it may be: formulas, for what a dry run prints.

Neither knows what a card does besides: fragmentation of memory, communication between cards, waiting for data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from math import ceil, prod
from statistics import fmean

from fpsgen.presets import Preset, shipped
from fpsgen.settings import Settings
from fpsgen.train.settings import TrainSettings
from fpsgen.wan.config import WanConfig
from fpsgen.wan.tokenizer import TEXT_LENGTH
from fpsgen.weights import lora
from fpsgen.weights.models import Model

# Datasheet of an H100 or H200 SXM: BF16 without sparsity. How much of it training reaches is an assumption, and no card
# has been asked: Megatron-LM (arXiv 2104.04473) reports 44 to 52 % on A100s, and sparse attention reaches less.
PEAK, SHARE = 989e12, 0.4
CARDS = (80, 141)  # GB


@dataclass(frozen=True)
class CardMemory:
    """Bytes on one card. weights: what is trained, in float32, and with LoRA the frozen model; whole: the layers that
    are whole at one moment, where each card keeps a part of them, and copies in the dtype of matrix products."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    teacher: int
    whole: int
    activations: int

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class TrainEstimate:
    """One size on each of so many cards. tokens: of a sample; seconds: of a step; tokens_per_second: of all cards. The
    times are a model: PEAK and SHARE."""

    size: str
    frames: int
    tokens: int
    recompute: bool
    memory: CardMemory
    seconds: float
    tokens_per_second: float


def parameters(config: WanConfig) -> int:
    """How many numbers the transformer learns, as `WanTransformer` makes them."""
    dim, channels = config.dim, prod(config.PATCH) * config.in_channels
    square = dim * (dim + 1)
    attention = 4 * square + 2 * dim
    block = 2 * attention + config.gated * square + 2 * dim + config.ffn_dim * (2 * dim + 1) + dim + 6 * dim
    ends = (channels + 1) * dim + (dim + 1) * channels + 2 * dim
    embeddings = (config.text_dim + 1 + config.freq_dim + 1) * dim + 2 * square + 6 * square
    return config.num_layers * block + ends + embeddings


def adapters(config: WanConfig, rank: int) -> int:
    """How many numbers a LoRA of that rank has."""
    return rank * sum(map(sum, lora.targets(config).values()))


def checkpoint_bytes(config: WanConfig, settings: TrainSettings) -> int:
    """Of a checkpoint: what is trained, its average and the optimizer's moments."""
    own = memory(config, settings, tokens=0)
    learned = adapters(config, settings.lora) if settings.lora else parameters(config)
    return 4 * learned + own.average + own.optimizer


def memory(
    config: WanConfig, settings: TrainSettings, tokens: int, cards: int = 1, itemsize: int = 2, approximate: bool = True
) -> CardMemory:
    """At the widest moment: the backward pass begins, and all that it needs is there.

    tokens: of a sample; itemsize: of the dtype of matrix products. What is trained and a teacher are float32, a LoRA's
    frozen model has `itemsize`. approximate: whether attention is sparse or rounded.
    """
    whole, layers = parameters(config), config.num_layers
    learned = adapters(config, settings.lora) if settings.lora else whole
    full = 1 if settings.recompute else layers  # layers whose activations are there
    token = full * _kept(config, settings, itemsize, approximate) + config.bytes_per_token(itemsize)
    token += 4 * config.dim * layers if settings.recompute else 0  # what each block begins with
    text = TEXT_LENGTH * layers * (8 + 2 * itemsize) * config.dim  # keys and values of cross-attention
    copies = itemsize * whole * full // layers if itemsize < 4 and not settings.lora else 0
    return CardMemory(
        weights=(4 * learned + (itemsize * whole if settings.lora else 0)) // cards,
        gradients=4 * learned // cards,
        optimizer=(8 if settings.optimizer == "adamw" else 4) * learned // cards,
        average=4 * learned // cards if settings.ema else 0,
        teacher=4 * whole // cards if settings.distil and not settings.lora else 0,
        whole=copies + (2 * 4 * whole // layers if cards > 1 else 0),
        activations=_branches(settings) * settings.micro * (tokens * token + text),
    )


def _kept(config: WanConfig, settings: TrainSettings, itemsize: int, approximate: bool) -> int:
    """Bytes that autograd keeps of one token in one block, as counted on a CPU in both dtypes
    (tests/unit/train/test_estimate.py): the residual stream, norms and modulated copies in float32, what products,
    rotation and attention take and give in `itemsize`. Frozen weights want no inputs. Approximate attention keeps
    rounded and padded copies of q, k and v."""
    channel = 28 + 8 * itemsize if settings.lora else 40 + 12 * itemsize
    return (channel + (28 + 4 * itemsize if approximate else 0)) * config.dim + 2 * itemsize * config.ffn_dim


def flops(config: WanConfig, settings: TrainSettings, tokens: int, density: float) -> float:
    """Operations of a sample: forward, backward and what the settings add. density: of the student's attention.

    Two for each weight of a product and token; four for each channel and pair of tokens in attention. The backward pass
    takes twice as many, of frozen weights as many; recomputing takes the forward pass once more, and so does a teacher,
    whose attention is dense.
    """
    linear = 2.0 * config.weights_per_token * tokens
    attention = 4.0 * config.dim * config.num_layers * tokens
    pairs = density * tokens + TEXT_LENGTH
    times = 2 if settings.recompute else 1
    student = (times + (1 if settings.lora else 2)) * linear + (times + 2) * attention * pairs
    teacher = linear + attention * (tokens + TEXT_LENGTH) if settings.distil else 0.0
    return _branches(settings) * (student + teacher)


def _branches(settings: TrainSettings) -> int:
    """Forward passes for each sample: with and without its caption, or one of both."""
    return 2 if settings.guided else 1


def estimates(
    model: Model, preset: Preset | str, settings: TrainSettings, videos: Sequence[Settings], cards: int
) -> list[TrainEstimate]:
    """Of each video's size, with and without recomputing, in BF16. preset: or a grade; its density is the mean over the
    video's steps."""
    found = []
    for video in videos:
        own = (
            preset if isinstance(preset, Preset) else shipped.of_grade(preset, model.family, video.width, video.height)
        )
        plans = own.steps(model, video)
        tokens, density = plans[0].tiles.tokens, fmean(step.density for step in plans)
        for recompute in (False, True):
            how = replace(settings, recompute=recompute)
            each = ceil(settings.batch / cards)  # samples of the card that has most
            seconds = each * flops(model.config, how, tokens, density) / (PEAK * SHARE)
            needs = memory(model.config, how, tokens, cards)
            found.append(
                TrainEstimate(
                    video.size, video.frames, tokens, recompute, needs, seconds, settings.batch * tokens / seconds
                )
            )
    return found
