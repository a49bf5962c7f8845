"""The pocket model's recipe: what can go wrong in it without anybody noticing for an hour."""

from __future__ import annotations

import importlib
import random
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from transformers import AutoTokenizer
from typer.testing import CliRunner

from fpsgen.cli import app
from fpsgen.pocket.judge import SHAPE, Network, as_input, load_network
from fpsgen.pocket.words import MOTIONS, SUBJECTS
from fpsgen.wan.transformer import WanTransformer
from fpsgen.weights import load, models
from fpsgen.weights.keys import TRANSFORMER
from recipes.pocket import export, prompts, start, text_encoder, tokenizer, world
from recipes.pocket import vae as pocket_vae
from recipes.pocket.cache import latent_mask
from recipes.pocket.scorer import Discriminant, labelled, make_templates, save_network
from recipes.pocket.start import CONFIG

CPU = torch.device("cpu")
README = Path(__file__).parents[3] / "recipes" / "pocket" / "README.md"

needs_font = pytest.mark.skipif(not world.FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")


# --- the world ---------------------------------------------------------------------------------------


@needs_font
def test_render_is_deterministic_in_its_seed() -> None:
    first, again, other = (world.render("cat", "surf", "sea", seed, frames=3) for seed in (1, 1, 2))
    assert np.array_equal(first.video, again.video)
    assert not np.array_equal(first.video, other.video)
    assert first.video.shape == (3, world.HEIGHT, world.WIDTH, 3)


@needs_font
@pytest.mark.parametrize("motion", MOTIONS)
def test_a_shorter_clip_is_the_beginning_of_a_longer_one(motion: str) -> None:
    short = world.render("frog", motion, "night", 3, frames=5)
    long = world.render("frog", motion, "night", 3, frames=9)
    assert np.array_equal(short.video, long.video[:5])


def test_latent_mask_pools_one_frame_then_four() -> None:
    mask = torch.zeros(1, 1, 9, 16, 16)
    mask[:, :, 0, :8, :8] = 1
    mask[:, :, 5:7, 8:, 8:] = 1
    cells = latent_mask(mask)[0, 0]
    assert cells.shape == (3, 2, 2)
    assert cells[0].tolist() == [[255, 0], [0, 0]]
    assert cells[1].eq(0).all()
    assert cells[2, 1, 1] == 128  # two frames of four


def test_the_world_draws_what_the_product_has_words_for() -> None:
    assert tuple(world.SUBJECTS) == SUBJECTS
    assert (world.FRAMES, world.HEIGHT, world.WIDTH) == SHAPE


# --- the sentences -----------------------------------------------------------------------------------


def test_every_caption_is_in_the_vocabulary() -> None:
    tokens, rng = tokenizer.build(), random.Random(0)
    for label in prompts.combinations() + prompts.combinations(held_out=True):
        for sentence in [prompts.plain(*label)] + [prompts.caption(*label, rng) for _ in range(20)]:
            ids = tokens(sentence)["input_ids"]
            assert tokens.unk_token_id not in ids, sentence
            assert len(ids) <= tokenizer.TEXT_LENGTH, sentence


def test_captions_name_the_subject_and_leave_out_defaults_only() -> None:
    rng = random.Random(0)
    for subject, motion, scene in prompts.combinations():
        for _ in range(20):
            sentence = prompts.caption(subject, motion, scene, rng)
            assert any(noun in sentence for noun in prompts.NOUNS[subject])
            if scene != prompts.default_scene(subject, motion):
                assert any(place in sentence for place in prompts.PLACES[scene]), sentence


def test_held_out_combinations_are_balanced_and_never_trained() -> None:
    training, held_out = prompts.combinations(), prompts.combinations(held_out=True)
    assert len(training) == 144
    assert len(held_out) == len(prompts.HELD_OUT) == 16
    assert not set(training) & set(held_out)
    assert ("cat", "surf", "sea") in training
    subjects, motions, scenes = (Counter(label[i] for label in held_out) for i in range(3))
    assert set(subjects.values()) == {2}
    assert set(scenes.values()) == {4}
    assert set(motions.values()) == {3, 4}
    assert all(scene != prompts.default_scene(subject, motion) for subject, motion, scene in held_out)


# --- text --------------------------------------------------------------------------------------------


def test_tokenizer_survives_the_disk_and_behaves_like_umt5s(tmp_path: Path) -> None:
    tokenizer.build().save_pretrained(tmp_path)
    tokens = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokens.pad_token_id, tokens.eos_token_id, tokens.unk_token_id) == (0, 1, 2)
    assert tokens.model_max_length == tokenizer.TEXT_LENGTH
    encoded = tokens("A cat, SURFING on Mars!", padding="max_length", max_length=12, truncation=True)
    assert tokens.decode(encoded["input_ids"]).split()[:8] == [
        "a",
        "cat",
        ",",
        "surfing",
        "on",
        "<unk>",
        "</s>",
        "<pad>",
    ]
    assert encoded["attention_mask"] == [1] * 7 + [0] * 5


def test_text_beyond_the_prompt_is_zero() -> None:
    tokens = tokenizer.build()
    text = text_encoder.encode(text_encoder.build(tokens), tokens, ["a cat surfing", ""])
    assert text.shape == (2, tokenizer.TEXT_LENGTH, text_encoder.TEXT_DIM)
    assert text[0, :4].abs().sum(1).gt(0).all()
    assert text[0, 4:].eq(0).all()
    assert text[1, 1:].eq(0).all()


# --- the models --------------------------------------------------------------------------------------


def test_whole_clip_vae_equals_the_chunked_one() -> None:
    torch.manual_seed(0)
    vae = pocket_vae.build().eval()
    video = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    with torch.no_grad():
        chunked = vae.encode(video).latent_dist.mean
        decoded = vae.decode(chunked).sample
        with pocket_vae.whole_clip():
            latents, _ = pocket_vae.encode(vae, video)
            whole = pocket_vae.decode(vae, chunked).clamp(-1, 1)
    torch.testing.assert_close(latents, chunked, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(whole, decoded, atol=2e-5, rtol=1e-4)


def test_all_weights_fit_in_the_wheel() -> None:
    parts = WanTransformer(CONFIG), text_encoder.build(tokenizer.build()), pocket_vae.build()
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < export.LARGEST


def test_diffusers_has_a_name_for_every_weight() -> None:
    with torch.device("meta"):
        theirs = WanTransformer3DModel(
            num_attention_heads=CONFIG.num_heads, attention_head_dim=CONFIG.head_dim, text_dim=CONFIG.text_dim,
            ffn_dim=CONFIG.ffn_dim, num_layers=CONFIG.num_layers,
        )  # fmt: skip
    ours = {name: tensor.shape for name, tensor in WanTransformer(CONFIG).state_dict().items()}
    assert {TRANSFORMER.to_original(name): tensor.shape for name, tensor in theirs.state_dict().items()} == ours


# --- the judges --------------------------------------------------------------------------------------


def test_scorer_survives_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network().eval()
    save_network(network, tmp_path / "network.safetensors")
    assert (tmp_path / "network.safetensors").stat().st_size < 1_000_000
    again = load_network(tmp_path / "network.safetensors")
    video = as_input([np.random.default_rng(0).integers(0, 256, (25, 96, 160, 3), np.uint8)])
    with torch.no_grad():
        for one, other in zip(network(video), again(video), strict=True):
            torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def test_discriminant_separates_shifted_clouds() -> None:
    rng = np.random.default_rng(0)
    labels = [0, 1, 2] * 50
    features = rng.normal(size=(150, 4)) + 6 * np.eye(4)[labels]
    discriminant = Discriminant(features, labels)
    assert np.mean([discriminant(f) == label for f, label in zip(features, labels, strict=True)]) > 0.98


@needs_font
@pytest.mark.slow  # a quarter of a minute
def test_templates_name_what_they_see() -> None:
    """The second judge, fitted on few clips: it must be right about most of what it has not seen."""
    templates = make_templates(48)
    clips, labels = labelled(8, seed=77)
    seen = [templates.classify(clip.video) for clip in clips]
    right = [[a == b for a, b in zip(one, other, strict=True)] for one, other in zip(seen, labels, strict=True)]
    subject, _, scene = np.mean(right, axis=0)
    assert subject >= 0.75
    assert scene >= 0.75


# --- the programs ------------------------------------------------------------------------------------


def test_what_is_trained_and_exported_is_a_model_that_fpsgen_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the programs and the command of the README, in two steps on two clips."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    Path("build/pocket").mkdir(parents=True)
    torch.save({"model": pocket_vae.build().state_dict()}, "build/pocket/vae.pt")
    mean, std = torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16)
    clips = {"latents": torch.randn(2, 16, 7, 12, 20).bfloat16(), "masks": torch.zeros(2, 1, 7, 12, 20).byte()}
    labels = [("cat", "surf", "sea"), ("dog", "left", "sea")]
    torch.save({**clips, "labels": labels, "mean": mean, "std": std}, "build/pocket/latents.pt")
    monkeypatch.setattr("sys.argv", ["start"])
    start.main()
    command = re.search(r"    fpsgen (train (?:[^\n\\]|\\\n)*)", README.read_text(encoding="utf-8"))
    assert command
    given = shlex.split(command[1].replace("\\\n", " "))
    small = ["--steps", "2", "--batch", "2", "--micro", "2", "--checks", "0", "--no-report"]
    result = CliRunner().invoke(app, [*given, *small])
    assert result.exit_code == 0, result.output
    export.write(Path("build/pocket/run/model"), Path("build/pocket/model"), version=7)

    opened = models.open_folder(Path("build/pocket/model"), "pocket")
    assert opened.pocket["version"] == 7
    load.check(opened.checkpoint)
    assert load.load_vae(opened.checkpoint, torch.device("cpu")).latents_std == std.tolist()
    first, last = (
        load.load_transformer(models.open_folder(Path("build/pocket") / name, "pocket").checkpoint, CPU, torch.float32)
        for name in ("start", "model")
    )
    assert not torch.equal(first.blocks[3].ffn[0].weight, last.blocks[3].ffn[0].weight)


def test_the_recipes_commands_are_ones_its_programs_take() -> None:
    """Every command in the recipe's README, held against the program's own parser."""
    text = README.read_text(encoding="utf-8")
    commands = re.findall(r"python -m recipes\.pocket\.([a-z_]+)((?:[^\n\\]|\\\n)*)", text)
    commands += re.findall(r"^\| \d+ \| `([a-z_]+)([^`]*)` \|", text, flags=re.MULTILINE)
    programs = {name for name, _ in commands}
    assert {"train_vae", "start", "cache", "export", "scorer", "evaluate", "sheet"} <= programs
    for name, arguments in commands:
        parser = importlib.import_module(f"recipes.pocket.{name}").parser()
        parser.parse_args(shlex.split(arguments.replace("\\\n", " ")))
