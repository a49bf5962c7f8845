"""What Wan2.1's own checkpoints hold: names and shapes, written down from the original's source.

An oracle beside our modules and our key tables, which are not consulted here. Sources: Wan2.1
`wan/modules/model.py`, `wan/modules/t5.py`, `wan/modules/vae.py` and their configurations.
"""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

T5_WIDTH, T5_HIDDEN, T5_HEADS, T5_LAYERS, T5_BUCKETS, T5_VOCABULARY = 4096, 10240, 64, 24, 32, 256384
CLIP_WIDTH = 1280
VAE_WIDTH, VAE_LATENT = 96, 16


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def transformer(
    dim: int, ffn_dim: int, num_layers: int, channels: int = VAE_LATENT, inputs: int = 0, images: int = 0
) -> Shapes:
    """`diffusion_pytorch_model*.safetensors`, of text-to-video unless said otherwise. inputs: channels that it takes,
    where these are others; images: how many images cross-attention reads through CLIP."""
    found: Shapes = {
        "patch_embedding.weight": (dim, inputs or channels, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        **linear("text_embedding.0", T5_WIDTH, dim),
        **linear("text_embedding.2", dim, dim),
        **linear("time_embedding.0", 256, dim),
        **linear("time_embedding.2", dim, dim),
        **linear("time_projection.1", dim, 6 * dim),
        **linear("head.head", dim, 4 * channels),
        "head.modulation": (1, 2, dim),
    }
    if images:
        found |= linear("img_emb.proj.1", CLIP_WIDTH, CLIP_WIDTH) | linear("img_emb.proj.3", CLIP_WIDTH, dim)
        for number, width in ((0, CLIP_WIDTH), (4, dim)):
            found |= {f"img_emb.proj.{number}.{kind}": (width,) for kind in ("weight", "bias")}
    if images > 1:
        found["img_emb.emb_pos"] = (1, 257 * images, CLIP_WIDTH)
    for n in range(num_layers):
        block = f"blocks.{n}"
        found[f"{block}.modulation"] = (1, 6, dim)
        if images:
            for part in "kv":
                found |= linear(f"{block}.cross_attn.{part}_img", dim, dim)
            found[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        found |= {f"{block}.norm3.weight": (dim,), f"{block}.norm3.bias": (dim,)}
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                found |= linear(f"{block}.{attention}.{part}", dim, dim)
            found |= {f"{block}.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
        found |= linear(f"{block}.ffn.0", dim, ffn_dim) | linear(f"{block}.ffn.2", ffn_dim, dim)
    return found


def text_encoder() -> Shapes:
    """`models_t5_umt5-xxl-enc-bf16.pth`."""
    found: Shapes = {"token_embedding.weight": (T5_VOCABULARY, T5_WIDTH), "norm.weight": (T5_WIDTH,)}
    for n in range(T5_LAYERS):
        block = f"blocks.{n}"
        found |= {f"{block}.norm{i}.weight": (T5_WIDTH,) for i in (1, 2)}
        found |= {f"{block}.attn.{part}.weight": (T5_WIDTH, T5_WIDTH) for part in "qkvo"}
        found |= {f"{block}.ffn.{part}.weight": (T5_HIDDEN, T5_WIDTH) for part in ("gate.0", "fc1")}
        found[f"{block}.ffn.fc2.weight"] = (T5_WIDTH, T5_HIDDEN)
        found[f"{block}.pos_embedding.embedding.weight"] = (T5_BUCKETS, T5_HEADS)
    return found


def image_encoder() -> Shapes:
    """`models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`, but for its text half (`wan/modules/clip.py`)."""
    width, hidden = CLIP_WIDTH, 5120
    found: Shapes = {
        "visual.cls_embedding": (1, 1, width),
        "visual.pos_embedding": (1, 257, width),
        "visual.patch_embedding.weight": (width, 3, 14, 14),
        "visual.head": (width, 1024),
        "log_scale": (),
    }
    norms = ["visual.pre_norm", "visual.post_norm"]
    for n in range(32):
        block = f"visual.transformer.{n}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        found |= linear(f"{block}.attn.to_qkv", width, 3 * width) | linear(f"{block}.attn.proj", width, width)
        found |= linear(f"{block}.mlp.0", width, hidden) | linear(f"{block}.mlp.2", hidden, width)
    return found | {f"{name}.{kind}": (width,) for name in norms for kind in ("weight", "bias")}


def vae() -> Shapes:
    """`Wan2.1_VAE.pth`."""
    widths = [VAE_WIDTH * factor for factor in (1, 2, 4, 4)]
    found: Shapes = _conv("conv1", 2 * VAE_LATENT, 2 * VAE_LATENT, 1, 1, 1) | _conv(
        "conv2", VAE_LATENT, VAE_LATENT, 1, 1, 1
    )

    found |= _conv("encoder.conv1", 3, widths[0], 3, 3, 3)
    index, width = 0, widths[0]
    for level, after in enumerate(widths):
        for _ in range(2):
            found |= _residual(f"encoder.downsamples.{index}", width, after)
            index, width = index + 1, after
        if level < 3:  # the last level keeps its size; the first halves space alone
            found |= _conv(f"encoder.downsamples.{index}.resample.1", width, width, 3, 3)
            if level > 0:
                found |= _conv(f"encoder.downsamples.{index}.time_conv", width, width, 3, 1, 1)
            index += 1
    found |= _middle_and_head("encoder", width, width, 2 * VAE_LATENT)

    found |= _conv("decoder.conv1", VAE_LATENT, width, 3, 3, 3)
    index = 0
    for level, after in enumerate(reversed(widths)):
        for _ in range(3):
            found |= _residual(f"decoder.upsamples.{index}", width, after)
            index, width = index + 1, after
        if level < 3:  # halves the channels, too; the first two double time as well
            found |= _conv(f"decoder.upsamples.{index}.resample.1", width, width // 2, 3, 3)
            if level < 2:
                found |= _conv(f"decoder.upsamples.{index}.time_conv", width, 2 * width, 3, 1, 1)
            index, width = index + 1, width // 2
    return found | _middle_and_head("decoder", widths[-1], width, 3)


def vae_2_2(encoder: int = 160, decoder: int = 256, latent: int = 48) -> Shapes:
    """`Wan2.2_VAE.pth` (Wan2.2 `wan/modules/vae2_2.py`): 2 x 2 pixels are 12 channels; every level has a list."""
    factors = (1, 2, 4, 4)
    found: Shapes = _conv("conv1", 2 * latent, 2 * latent, 1, 1, 1) | _conv("conv2", latent, latent, 1, 1, 1)
    found |= _conv("encoder.conv1", 12, encoder, 3, 3, 3)
    width = encoder
    for level, factor in enumerate(factors):
        stem = f"encoder.downsamples.{level}.downsamples"
        for block in range(2):
            found |= _residual(f"{stem}.{block}", width, encoder * factor)
            width = encoder * factor
        if level < 3:
            found |= _conv(f"{stem}.2.resample.1", width, width, 3, 3)
        if level in (1, 2):
            found |= _conv(f"{stem}.2.time_conv", width, width, 3, 1, 1)
    found |= _middle_and_head("encoder", width, width, 2 * latent)

    width = decoder * factors[-1]
    found |= _conv("decoder.conv1", latent, width, 3, 3, 3)
    for level, factor in enumerate(reversed(factors)):
        stem = f"decoder.upsamples.{level}.upsamples"
        for block in range(3):
            found |= _residual(f"{stem}.{block}", width, decoder * factor)
            width = decoder * factor
        if level < 3:
            found |= _conv(f"{stem}.3.resample.1", width, width, 3, 3)
        if level < 2:
            found |= _conv(f"{stem}.3.time_conv", width, 2 * width, 3, 1, 1)
    return found | _middle_and_head("decoder", decoder * factors[-1], width, 12)


def _conv(name: str, inputs: int, outputs: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def _residual(name: str, inputs: int, outputs: int) -> Shapes:
    found: Shapes = {f"{name}.residual.0.gamma": (inputs, 1, 1, 1), f"{name}.residual.3.gamma": (outputs, 1, 1, 1)}
    found |= _conv(f"{name}.residual.2", inputs, outputs, 3, 3, 3) | _conv(
        f"{name}.residual.6", outputs, outputs, 3, 3, 3
    )
    return found | (_conv(f"{name}.shortcut", inputs, outputs, 1, 1, 1) if inputs != outputs else {})


def _middle_and_head(half: str, middle: int, last: int, outputs: int) -> Shapes:
    found = _residual(f"{half}.middle.0", middle, middle) | _residual(f"{half}.middle.2", middle, middle)
    found[f"{half}.middle.1.norm.gamma"] = (middle, 1, 1)
    found |= _conv(f"{half}.middle.1.to_qkv", middle, 3 * middle, 1, 1) | _conv(
        f"{half}.middle.1.proj", middle, middle, 1, 1
    )
    found[f"{half}.head.0.gamma"] = (last, 1, 1, 1)
    return found | _conv(f"{half}.head.2", last, outputs, 3, 3, 3)
