"""The shapes of a Wan transformer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fpsgen.errors import ModelError

FETCH_AGAIN = "fetch the file again"
OURS = "use one of the models that `fpsgen models` lists"
MASK = 4  # channels beside an image's latents, which say what is given of each latent frame's four
_WIDEST = 2**17  # channels; Wan2.1 14B's feed-forward has 13,824


@dataclass(frozen=True)
class WanConfig:
    """Hyperparameters of the DiT (Wan2.1 `wan/configs/wan_t2v_*.py`, `wan/modules/model.py`).

    in_channels: of the noisy latents, as many as out_channels, and of what an image-to-video model is given beside
    them. image_dim: width of an image encoder's states, which cross-attention reads beside the text; None where it
    reads none. image_positions: how many such states have a learned position, as in models that take a first and a last
    image; None where they have none. time_per_token: whether each token has a timestep of its own (Wan2.2's TI2V-5B).
    gated: whether self-attention adds attention over tiles' means, times a gate (`attention.coarse`; FastVideo's VSA).

    What Wan never varies is no field: one patch size, q and k normalised over all heads, an affine norm
    before cross-attention, global attention. A configuration that says otherwise is refused.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    text_dim: int = 4096
    freq_dim: int = 256
    in_channels: int = 16
    out_channels: int = 16
    eps: float = 1e-6
    image_dim: int | None = None
    image_positions: int | None = None
    time_per_token: bool = False
    gated: bool = False

    PATCH = (1, 2, 2)  # latent frames, rows, columns of one token
    ROPE_THETA = 10_000.0

    def __post_init__(self) -> None:
        """ModelError where the arithmetic of the model would not come out even, or sizes are beyond all models."""
        widths = {"dim": self.dim, "ffn_dim": self.ffn_dim, "text_dim": self.text_dim, "freq_dim": self.freq_dim}
        for name, width in widths.items():
            if not 0 < width <= _WIDEST:
                raise ModelError(f"its transformer has {name} = {width}, which is impossible", hint=OURS)
        if self.dim % self.num_heads or self.head_dim % 2 or self.head_dim < 6:  # rotary pairs on three axes
            raise ModelError(
                f"its transformer has {self.num_heads} heads in {self.dim} channels, which is impossible", OURS
            )
        if self.freq_dim % 2:
            raise ModelError(f"its transformer has freq_dim = {self.freq_dim}, which is odd", hint=OURS)
        if self.in_channels < self.out_channels:
            raise ModelError(
                f"its transformer takes {self.in_channels} channels and gives {self.out_channels}, which is impossible",
                hint=OURS,
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def condition_channels(self) -> int:
        """Of what it is given beside the noisy latents: 20 for an image, 4 of its mask and 16 of its latents."""
        return self.in_channels - self.out_channels

    @property
    def may_have_image(self) -> bool:
        """Whether a video may begin with an image."""
        return self.condition_channels > 0 or self.time_per_token

    @property
    def may_have_last_image(self) -> bool:
        """Whether a video may end with an image as well: not where an image encoder's states are those of one."""
        return self.condition_channels > 0 and (self.image_dim is None or self.image_positions is not None)

    @property
    def weights_per_token(self) -> int:
        """The blocks' weights, each multiplied once for each token: attention's four matrices or five, those of
        cross-attention that see tokens, the FFN."""
        return self.num_layers * ((4 + self.gated) * self.dim**2 + 2 * self.dim**2 + 2 * self.dim * self.ffn_dim)

    def bytes_per_token(self, itemsize: int) -> int:
        """Memory at a block's widest moment, where matrix products have numbers of `itemsize` bytes: the float32
        residual stream, its normed and modulated copies, q, k, v, the gate and the FFN's hidden layer twice."""
        return 16 * self.dim + itemsize * ((4 + self.gated) * self.dim + 2 * self.ffn_dim)

    def grid(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Token grid (T, H, W) of latents with the given frames, rows and columns."""
        t, h, w = latent_shape
        pt, ph, pw = self.PATCH
        return t // pt, h // ph, w // pw


WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

WAN_5B = WanConfig(3072, 14336, num_heads=24, num_layers=30, in_channels=48, out_channels=48, time_per_token=True)
_FROM_IMAGE = replace(WAN_14B, in_channels=36)

# By names of models: Wan2.1's, Wan2.2's, those that begin with an image, and FastVideo's with gates.
SHAPES = {
    "1.3b": WAN_1_3B,
    "14b": WAN_14B,
    "2.2-14b": WAN_14B,
    "5b": WAN_5B,
    "i2v-14b": replace(_FROM_IMAGE, image_dim=1280),
    "flf2v-14b": replace(_FROM_IMAGE, image_dim=1280, image_positions=514),
    "2.2-i2v": _FROM_IMAGE,
    "1.3b-vsa": replace(WAN_1_3B, gated=True),
    "14b-vsa": replace(WAN_14B, gated=True),
    "5b-vsa": replace(WAN_5B, gated=True),
}
_GATED = "-vsa"
# The family whose presets a model takes, where that is not its own name.
_FAMILIES = {"i2v-14b": "14b", "flf2v-14b": "14b", "2.2-i2v": "2.2-14b"}


def kind_of(shapes: WanConfig, experts: int = 1) -> str:
    """Which of `SHAPES` a model is taken for, by its inputs, the number of its experts, its gates and its width: 1.3B
    up to that model's width, 14B above."""
    kind = _ungated_kind(shapes, experts)
    return kind + _GATED if shapes.gated and kind + _GATED in SHAPES else kind


def ungated(kind: str) -> str:
    """The kind of the same model without gates, from which FastVideo's were trained."""
    return kind.removesuffix(_GATED)


def _ungated_kind(shapes: WanConfig, experts: int) -> str:
    if shapes.time_per_token:
        return "5b"
    if experts > 1:
        return "2.2-i2v" if shapes.condition_channels else "2.2-14b"
    if shapes.condition_channels:
        return "flf2v-14b" if shapes.image_positions else "i2v-14b"
    return "1.3b" if shapes.dim <= WAN_1_3B.dim else "14b"


def family_of(kind: str) -> str:
    """The family whose presets a model of a kind takes."""
    return _FAMILIES.get(kind, ungated(kind))
