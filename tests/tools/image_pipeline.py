"""Small pipelines of diffusers that begin with an image, with random weights, and by hand in the original's files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.tools.wan_pipeline import TEXT_DIM, make_plain_pipeline, save_original

WIDTH, SIDE, PATCH, LAYERS = 160, 28, 14, 3  # of the image encoder, whose heads are 80 wide
POSITIONS = (SIDE // PATCH) ** 2 + 1
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"


def make_image_pipeline(kind: str, seed: int = 5) -> WanImageToVideoPipeline:
    """As Wan2.1 I2V ("i2v-14b"), FLF2V ("flf2v-14b"), or Wan2.2 I2V ("2.2-i2v")."""
    experts = kind == "2.2-i2v"
    plain = make_plain_pipeline(seed, 0.9 if experts else None)
    more = {} if experts else {"image_dim": WIDTH, "added_kv_proj_dim": 128}
    more |= {"pos_embed_seq_len": 2 * POSITIONS} if kind == "flf2v-14b" else {}
    parts = {}
    for name in ("transformer", "transformer_2") if experts else ("transformer",):
        parts[name] = WanTransformer3DModel(
            num_attention_heads=1, attention_head_dim=128, text_dim=TEXT_DIM, freq_dim=32, ffn_dim=96, num_layers=2,
            in_channels=36, out_channels=16, **more,
        )  # fmt: skip
        randomised(parts[name])
    if not experts:
        parts["image_processor"] = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
        parts["image_encoder"] = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=2,
                image_size=SIDE, patch_size=PATCH, hidden_act="gelu",
            )
        )  # fmt: skip
        randomised(parts["image_encoder"])
    shared = {name: getattr(plain, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    return WanImageToVideoPipeline(**shared, **parts, boundary_ratio=0.9 if experts else None)


def randomised(module: torch.nn.Module) -> None:
    """Freshly made biases, norms and modulation are zeros and ones: every parameter gets something to say."""
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))


def save_image_original(pipeline: WanImageToVideoPipeline, folder: Path) -> None:
    """By hand in the original's files and names, the image encoder beside the text half that its file has."""
    save_original(pipeline, folder)
    kind = "i2v" if pipeline.transformer.config.pos_embed_seq_len is None else "flf2v"
    for config in folder.glob("**/config.json"):
        told = json.loads(config.read_text()) | {"model_type": kind, "in_dim": 36}
        config.write_text(json.dumps(told))
    if pipeline.image_encoder is not None:
        torch.save(original_clip(pipeline.image_encoder), folder / CLIP_FILE)


def original_clip(encoder: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """As Wan2.1 `wan/modules/clip.py` names it: q, k and v in one matrix, positions with a batch of one."""
    state = {name.removeprefix("vision_model."): value for name, value in encoder.state_dict().items()}
    found = {
        "visual.cls_embedding": state["embeddings.class_embedding"].view(1, 1, -1),
        "visual.pos_embedding": state["embeddings.position_embedding.weight"][None],
        "visual.patch_embedding.weight": state["embeddings.patch_embedding.weight"],
        "visual.head": torch.randn(WIDTH, 8),
        "textual.token_embedding.weight": torch.randn(10, 8),
        "log_scale": torch.tensor(2.6),
    }
    for kind in ("weight", "bias"):
        found[f"visual.pre_norm.{kind}"] = state[f"pre_layrnorm.{kind}"]
        found[f"visual.post_norm.{kind}"] = state[f"post_layernorm.{kind}"]
        for n in range(LAYERS):
            ours, theirs = f"visual.transformer.{n}", f"encoder.layers.{n}"
            found[f"{ours}.attn.to_qkv.{kind}"] = torch.cat(
                [state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            )
            for a, b in (
                ("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.out_proj"),
                ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2"),
            ):  # fmt: skip
                found[f"{ours}.{a}.{kind}"] = state[f"{theirs}.{b}.{kind}"]
    return {name: value.clone() for name, value in found.items()}
