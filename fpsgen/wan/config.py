"""The shapes of a Wan2.1 text-to-video transformer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fpsgen.errors import ModelError
from fpsgen.printable import printable

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

    @classmethod
    def from_diffusers(cls, config: dict) -> WanConfig:
        """Read `transformer/config.json` of a Diffusers folder; refuse what is not Wan2.1 text-to-video."""
        name = config.get("_class_name", "WanTransformer3DModel")
        if name != "WanTransformer3DModel":
            raise ModelError(f"its transformer is a {printable(name, 60)}, not a WanTransformer3DModel", hint=OURS)
        if config.get("image_dim") is not None or config.get("added_kv_proj_dim") is not None:
            raise ModelError("it is an image-to-video model", hint=OURS)
        fixed = {
            "patch_size": list(cls.PATCH),
            "qk_norm": "rms_norm_across_heads",
            "cross_attn_norm": True,
        }
        for key, value in fixed.items():
            found = config.get(key, value)
            if (list(found) if isinstance(found, (list, tuple)) else found) != value:
                raise ModelError(f"its transformer has {key} = {shown(found)}; Wan2.1 has {value!r}", hint=OURS)

        def count(key: str, default: int | None = None) -> int:
            value = config.get(key, default)
            if key not in config and default is None:
                raise ModelError(f"its transformer/config.json has no {key}", hint=FETCH_AGAIN)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**20:
                told = f"its transformer/config.json says {key} = {shown(value)}, which is not a count"
                raise ModelError(told, hint=FETCH_AGAIN)
            return value

        heads, in_channels = count("num_attention_heads"), count("in_channels")
        return cls(
            dim=heads * count("attention_head_dim"),
            ffn_dim=count("ffn_dim"),
            num_heads=heads,
            num_layers=count("num_layers"),
            text_dim=count("text_dim"),
            freq_dim=count("freq_dim", 256),
            in_channels=in_channels,
            out_channels=in_channels if config.get("out_channels") is None else count("out_channels"),
            eps=_epsilon(config),
        )

    def with_original(self, config: dict) -> WanConfig:
        """This, read from shapes, completed by an original checkpoint's config.json; refuse one that disagrees.

        That file lacks what Wan2.1's model class does not save (patch size, norms, text_dim).
        """
        check_original_kind(config)
        names = {"dim": "dim", "ffn_dim": "ffn_dim", "num_layers": "num_layers", "in_dim": "in_channels"}
        for theirs, ours in names.items():
            if (told := config.get(theirs, getattr(self, ours))) != getattr(self, ours):
                told = f"its config.json says {theirs} = {shown(told)}; its weights have {getattr(self, ours)}"
                raise ModelError(told, hint="fetch the config.json that belongs to these weights")
        heads = config.get("num_heads", self.num_heads)
        if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or self.dim % heads:
            told = f"its config.json says num_heads = {shown(heads)}, which does not divide dim = {self.dim}"
            raise ModelError(told, hint="fetch the config.json that belongs to these weights")
        return replace(self, num_heads=heads, eps=_epsilon(config))

    def to_diffusers(self) -> dict[str, Any]:
        """What `from_diffusers` reads, as diffusers' WanTransformer3DModel writes it."""
        return {
            "_class_name": "WanTransformer3DModel",
            "added_kv_proj_dim": None,
            "attention_head_dim": self.head_dim,
            "cross_attn_norm": True,
            "eps": self.eps,
            "ffn_dim": self.ffn_dim,
            "freq_dim": self.freq_dim,
            "image_dim": None,
            "in_channels": self.in_channels,
            "num_attention_heads": self.num_heads,
            "num_layers": self.num_layers,
            "out_channels": self.out_channels,
            "patch_size": list(self.PATCH),
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 1024,
            "text_dim": self.text_dim,
        }

    def to_original(self) -> dict[str, Any]:
        """An original checkpoint's config.json, with the fields that Wan2.1's model class saves."""
        return {
            "_class_name": "WanModel",
            "dim": self.dim,
            "eps": self.eps,
            "ffn_dim": self.ffn_dim,
            "freq_dim": self.freq_dim,
            "in_dim": self.in_channels,
            "model_type": "t2v",
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "out_dim": self.out_channels,
            "text_len": 512,
        }


def check_original_kind(config: dict) -> None:
    """Refuse an original checkpoint's config.json that is not text-to-video's."""
    if (kind := config.get("model_type", "t2v")) != "t2v":
        raise ModelError(f"it is a {printable(kind, 60)} model", hint=OURS)


def _epsilon(config: dict) -> float:
    eps = config.get("eps", 1e-6)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ModelError(f"its config.json says eps = {shown(eps)}, which is not a valid value", hint=FETCH_AGAIN)
    return eps


def shown(value: object) -> str:
    """A value of a configuration, as it is written but short."""
    return printable(repr(value), 60)


WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

# What the files of Wan2.1 say (`layout.text_config_of`, `layout.vae_config_of`).
TEXT_CONFIG: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
}
VAE_CONFIG: dict[str, Any] = {"base_dim": 96, "z_dim": 16}

# By the family whose presets they take.
FAMILIES = {"1.3b": WAN_1_3B, "14b": WAN_14B}
