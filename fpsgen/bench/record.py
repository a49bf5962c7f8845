"""What benches find, field by field as JSON has it: docs/bench.md explains each. Pages and tables read the same values.

A field with a default is one that older records do not have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from fpsgen.machine import Card
from fpsgen.timing import RunTimes

State = dict[str, float | None]  # of a card, see `machine.card_state`
Contender = TypeVar("Contender", bound="ContenderRecord")


@dataclass(frozen=True, kw_only=True)
class MeasuredCard(Card):
    """A card, and what a large copy reads and writes in a second, which is measured here."""

    copy_bytes_per_second: float


@dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """The fields that all benches have in common. BRIEF: fields that JSON does not have where they are None."""

    kind: str
    format: int = 1
    date: str
    commit: str | None
    command: list[str]
    machine: dict[str, Any]
    card: MeasuredCard | None
    BRIEF: ClassVar[frozenset[str]] = frozenset()

    def as_json(self) -> dict[str, Any]:
        """The record as its JSON has it."""
        return asdict(self, dict_factory=lambda items: {k: v for k, v in items if v is not None or k not in self.BRIEF})


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """What all contenders made. prompt, seed: None where each clip has its own; prompt and negative also where the
    weights were random."""

    prompt: str | None = None
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float
    shift: float
    negative: str | None
    solver: str
    grid: str
    seed: int | None = None
    image: dict[str, str] | None = None
    last_image: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class VideoBenchRecord(BenchRecord, Generic[Contender]):
    """The fields that `bench` and `bench quality` have in common; `contenders` comes behind those of each."""

    model: str
    device: str
    dtype: str
    text_dtype: str
    video: VideoRecord
    reference: str
    notes: list[str]
    loras: list[dict[str, Any]] = field(default_factory=list)
    if TYPE_CHECKING:
        contenders: list[Contender]

    @property
    def fps(self) -> int:
        return self.video.fps

    @property
    def base(self) -> Contender:
        """The reference."""
        return next(one for one in self.contenders if one.name == self.reference)

    @property
    def others(self) -> list[Contender]:
        """All contenders but the reference; a page is about the first."""
        return [one for one in self.contenders if one.name != self.reference]


@dataclass(frozen=True, kw_only=True)
class CompareRecord(VideoBenchRecord["CompareContender"]):
    kind: str = "compare"
    tokens: int
    random_weights: bool
    extrapolated: bool
    pairs: int
    order: list[str]
    tried: list[KernelTrial]
    states: list[State | None] | None
    contenders: list[CompareContender]


@dataclass(frozen=True, kw_only=True)
class QualityRecord(VideoBenchRecord["QualityContender"]):
    kind: str = "quality"
    prompts: tuple[str, ...]
    seeds: int
    seed: int
    contenders: list[QualityContender]
    BRIEF: ClassVar[frozenset[str]] = frozenset({"prompt", "seed", "ci95"})


@dataclass(frozen=True, kw_only=True)
class ContenderRecord:
    """The fields that both have for a contender. told: what runs, in a few words. steps: the number of
    denoising steps."""

    name: str
    label: str = ""
    told: str
    steps: int | None = None
    preset: dict[str, Any] | None
    density: float | None
    backends: list[str]

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.name)


@dataclass(frozen=True, kw_only=True)
class CompareContender(ContenderRecord):
    """median, spread: over the runs that count, of each stage and of the total."""

    together: bool | None = None
    cold: RunTimes | None
    warm: list[RunTimes]
    median: dict[str, float | None]
    spread: dict[str, list[float | None]]
    phases: list[PhaseTimes]
    speedup: dict[str, SpeedUp] | None
    fidelity: Fidelity | None
    nonfinite: int | None = None


@dataclass(frozen=True, kw_only=True)
class QualityContender(ContenderRecord):
    """adherence: for each aspect, how many clips show what their prompt says, of how many."""

    fidelity: MeanFidelity | None
    identical: int | None
    nonfinite: int | None
    clips: list[ClipRecord]
    adherence: dict[str, tuple[int, ...]] | None
    vbench: dict[str, float | None] | None


@dataclass(frozen=True)
class KernelTrial:
    """One kernel for dense attention at the video's own shape: its time, or why it has none."""

    name: str
    milliseconds: float | None
    why_not: str | None


@dataclass(frozen=True)
class Split:
    """Seconds of one step, all guidance branches together.

    attention: self-attention but for its projections, that is norms of q and k, RoPE, rounding, the kernel. linear:
    every nn.Linear, the projections of both attentions and the FFN above all. rest: norms, modulation,
    cross-attention's product, patchify with its small product, guidance. What linear layers are given is rounded in
    attention and in rest.
    """

    attention: float
    linear: float
    rest: float

    @property
    def total(self) -> float:
        return self.attention + self.linear + self.rest


@dataclass(frozen=True)
class PhaseTimes:
    """Steps that compute the same, counted from 1; step: the median over them and all runs, in seconds."""

    first: int
    last: int
    sigma: tuple[float, ...]
    density: float | None
    step: float
    split: Split | None


@dataclass(frozen=True)
class SpeedUp:
    """The reference's time divided by the contender's, in each pass."""

    median: float
    each: list[float]


@dataclass(frozen=True)
class Fidelity:
    """How near one clip is to another.

    identical: whether all frames are the same; psnr, in dB, is then infinite, which is None here. latent_error: 1 -
    latent_cosine, with the digits that the latter loses. lpips: mean over frames; None where it could not be measured.
    nonfinite: how many of our latents are NaN or infinite; they are taken for 0 in latent_cosine and latent_error.
    """

    identical: bool
    latent_cosine: float
    latent_error: float
    psnr: float | None
    ssim: float
    lpips: float | None
    nonfinite: int

    @property
    def psnr_or_inf(self) -> float:
        return inf if self.psnr is None else self.psnr


@dataclass(frozen=True, kw_only=True)
class ClipMean:
    """Over the clips that have a value. ci95: half of the mean's 95 % interval, None where one clip alone has a value;
    worst: of all."""

    mean: float
    ci95: float | None = None
    worst: float


@dataclass(frozen=True, kw_only=True)
class MeanFidelity:
    """`Fidelity` over clips; None where no clip has a value."""

    latent_cosine: ClipMean
    latent_error: ClipMean
    psnr: ClipMean | None
    ssim: ClipMean
    lpips: ClipMean | None


@dataclass(frozen=True)
class ClipRecord:
    """shown: what the judge sees, by aspect; None where it does not judge. video: the file."""

    prompt: str
    seed: int
    fidelity: Fidelity | None
    shown: dict[str, str] | None
    video: str | None
