"""The shapes of a Wan2.1 text-to-video transformer."""

from __future__ import annotations

from dataclasses import dataclass

from fpsgen.errors import ModelError


@dataclass(frozen=True)
class WanConfig:
    """Hyperparameters of the DiT (Wan2.1 `wan/configs/wan_t2v_*.py`, `wan/modules/model.py`).

    What Wan2.1 never varies is a class constant: one patch size, q and k normalised over all heads, an
    affine norm before cross-attention, global attention.
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

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def grid(self, latents: tuple[int, int, int]) -> tuple[int, int, int]:
        """Token grid (T, H, W) of latents with the given frames, rows and columns."""
        t, h, w = latents
        pt, ph, pw = self.PATCH
        return t // pt, h // ph, w // pw

    @classmethod
    def from_diffusers(cls, config: dict) -> WanConfig:
        """Read `transformer/config.json` of a Diffusers folder; refuse what is not Wan2.1 text-to-video."""
        name = config.get("_class_name", "WanTransformer3DModel")
        if name != "WanTransformer3DModel":
            raise ModelError(f"its transformer is a {name}, not a WanTransformer3DModel")
        if config.get("image_dim") is not None or config.get("added_kv_proj_dim") is not None:
            raise ModelError("it is an image-to-video model", hint="fpsgen runs Wan2.1 text-to-video")
        fixed = {
            "patch_size": list(cls.PATCH),
            "qk_norm": "rms_norm_across_heads",
            "cross_attn_norm": True,
        }
        for key, value in fixed.items():
            found = config.get(key, value)
            if (list(found) if isinstance(found, (list, tuple)) else found) != value:
                raise ModelError(f"its transformer has {key} = {found!r}; Wan2.1 has {value!r}")
        try:
            heads = config["num_attention_heads"]
            return cls(
                dim=heads * config["attention_head_dim"],
                ffn_dim=config["ffn_dim"],
                num_heads=heads,
                num_layers=config["num_layers"],
                text_dim=config["text_dim"],
                freq_dim=config.get("freq_dim", 256),
                in_channels=config["in_channels"],
                out_channels=config.get("out_channels") or config["in_channels"],
                eps=config.get("eps", 1e-6),
            )
        except KeyError as missing:
            raise ModelError(f"its transformer/config.json has no {missing}") from None


WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
