"""The shapes of a Wan2.1 text-to-video transformer."""

from __future__ import annotations

from dataclasses import dataclass

from fpsgen.errors import ModelError

FETCH_AGAIN = "fetch the file again"
OURS = "use a Wan2.1 text-to-video model (T2V 1.3B or 14B)"
_WIDEST = 2**17  # channels; Wan2.1 14B's feed-forward has 13,824


@dataclass(frozen=True)
class WanConfig:
    """Hyperparameters of the DiT (Wan2.1 `wan/configs/wan_t2v_*.py`, `wan/modules/model.py`).

    What Wan2.1 never varies is no field: one patch size, q and k normalised over all heads, an affine norm
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
        if self.in_channels != self.out_channels:
            raise ModelError(
                f"its transformer takes {self.in_channels} channels and gives {self.out_channels}, as from an image",
                hint=OURS,
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def weights_per_token(self) -> int:
        """The blocks' weights, each multiplied once for each token: attention's four matrices, those of
        cross-attention that see tokens, the FFN."""
        return self.num_layers * (4 * self.dim**2 + 2 * self.dim**2 + 2 * self.dim * self.ffn_dim)

    def bytes_per_token(self, itemsize: int) -> int:
        """Memory at a block's widest moment, where matrix products have numbers of `itemsize` bytes: the float32
        residual stream, its normed and modulated copies, q, k, v and the FFN's hidden layer twice."""
        return 16 * self.dim + itemsize * (4 * self.dim + 2 * self.ffn_dim)

    def grid(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Token grid (T, H, W) of latents with the given frames, rows and columns."""
        t, h, w = latent_shape
        pt, ph, pw = self.PATCH
        return t // pt, h // ph, w // pw


WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

# By the family whose presets they take.
FAMILIES = {"1.3b": WAN_1_3B, "14b": WAN_14B}
