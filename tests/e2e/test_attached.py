"""Our attention in diffusers' pipelines: dense is theirs, a preset gives the latents of our own pipeline."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers import WanPipeline
from PIL import Image

from fpsgen import assets, attached, pipeline, solvers
from fpsgen.attached import attach, detach
from fpsgen.attention.plan import KeyTiles
from fpsgen.errors import UsageError
from fpsgen.events import Denoised
from fpsgen.presets import Layers, Phase, Preset, file
from fpsgen.request import Request
from fpsgen.settings import Settings
from fpsgen.target import Target
from fpsgen.wan import sizes
from fpsgen.wan.plan import Linears
from fpsgen.weights import models
from tests.tools.image_pipeline import make_image_pipeline
from tests.tools.wan_pipeline import make_plain_pipeline

TARGET = Target(torch.device("cpu"), torch.float32, torch.float32)
PROMPT, NEGATIVE, SEED = "a cat surfing on the sea", "blurry", 3
WIDTH, HEIGHT, FRAMES, STEPS, SHIFT, GUIDANCE = 96, 64, 9, 3, 3.0, 4.0
TILE = (1, 2, 2)  # the grid of 3 x 4 x 6 tokens has 18 of them
HEADS = Preset(
    name="heads", tile=TILE, windows={"a": (3, 1, 3), "b": KeyTiles(top=0.3, rest="summary")},
    phases=(Phase(sigma=(1.0, 0.8), heads="ab"), Phase(sigma=(0.8, 0.0), heads="-a", qk="int8", pv="fp8")),
)  # fmt: skip
LATE = Preset(
    name="late", tile=TILE,
    phases=(
        Phase(sigma=(1.0, 0.9)),
        Phase(sigma=(0.9, 0.0), top=0.25, qk="fp8", pv="fp8", layers=(Layers(at=(1,), window=(1, 1, 3)),)),
    ),
)  # fmt: skip
DENSE_8_BIT = Preset(name="8 bit", phases=(Phase(sigma=(1.0, 0.0), qk="int8", pv="fp8"),))
RAGGED = Preset(name="ragged", tile=(2, 3, 4), phases=(Phase(sigma=(1.0, 0.0), window=(1, 1, 1)),))


@pytest.fixture
def theirs(wan_pipeline: WanPipeline) -> Any:
    wan_pipeline.set_progress_bar_config(disable=True)
    yield wan_pipeline
    detach(wan_pipeline)


def latents_of(own: Any, steps: int = STEPS, stride: int = 8, **given: Any) -> torch.Tensor:
    own.set_progress_bar_config(disable=True)
    channels = own.transformer.config.out_channels
    noise = solvers.noise(channels, sizes.latent_shape(FRAMES, HEIGHT, WIDTH, stride), SEED)
    given = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE} | given
    call = {"height": HEIGHT, "width": WIDTH, "num_frames": FRAMES, "num_inference_steps": steps}
    return own(latents=noise, output_type="latent", **call, **given).frames


def ours(
    folder: Path, preset: Preset, output: Path, steps: int = STEPS, image: Path | None = None, **settings: Any
) -> torch.Tensor:
    """The latents of our own pipeline."""
    made = Settings(WIDTH, HEIGHT, FRAMES, 16, steps, GUIDANCE, SHIFT, NEGATIVE, sigmas="diffusers", **settings)
    request = Request(PROMPT, made, SEED, output, preset, image=image)
    events = pipeline.generate([request], models.find(str(folder)), TARGET)
    return next(event.latents for event in events if isinstance(event, Denoised))


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_bf16_is_diffusers_own(theirs: WanPipeline) -> None:
    """To the last bit, and so is what `detach` leaves."""
    expected, before = latents_of(theirs), [block.attn1.processor for block in theirs.transformer.blocks]
    attach(theirs, "bf16")
    assert torch.equal(latents_of(theirs), expected)
    attach(theirs, RAGGED)  # in the place of the other
    detach(theirs)
    detach(theirs)
    assert [block.attn1.processor for block in theirs.transformer.blocks] == before
    assert not theirs.transformer._forward_pre_hooks
    assert torch.equal(latents_of(theirs), expected)


# Dense in 8 bits is rounding alone. Where a last bit of q differs, it may round to another number, and what comes of
# that grows from step to step: our own pipeline is as far from itself when its noise changes by 1e-6.
@pytest.mark.parametrize(("preset", "steps"), [(HEADS, STEPS), (LATE, STEPS), (RAGGED, STEPS), (DENSE_8_BIT, 1)])
def test_a_preset_gives_our_own_latents(
    preset: Preset, steps: int, theirs: WanPipeline, wan_folder: Path, tmp_path: Path
) -> None:
    dense = latents_of(theirs, steps)
    attach(theirs, preset)
    found = latents_of(theirs, steps)
    assert far(found, ours(wan_folder, preset, tmp_path / "a.mp4", steps)) <= 1e-3  # what README promises
    assert far(found, dense) > 3e-3  # it does something


def test_two_experts_follow_one_schedule(
    experts_pipeline: WanPipeline, experts: dict[str, Path], tmp_path: Path
) -> None:
    """The second one computes with the preset's second phase."""
    dense = latents_of(experts_pipeline)
    attach(experts_pipeline, LATE)
    found = latents_of(experts_pipeline)
    detach(experts_pipeline)
    assert far(found, ours(experts["diffusers"], LATE, tmp_path / "a.mp4", boundary=0.875)) <= 1e-3
    assert far(found, dense) > 1e-3


def test_timesteps_of_each_token_and_images(tmp_path: Path) -> None:
    """Wan2.2's 5B, whose calls have a timestep for each token; and a model from images, which sees more channels."""
    own = make_plain_pipeline(5, channels=48)
    own.save_pretrained(tmp_path / "5b")
    dense = latents_of(own, stride=16)
    preset = Preset(name="5b", tile=(1, 1, 1), phases=(Phase(sigma=(1.0, 0.0), window=(1, 1, 3)),))
    attach(own, preset)
    found = latents_of(own, stride=16)
    assert far(found, ours(tmp_path / "5b", preset, tmp_path / "a.mp4", stride=16)) <= 1e-3
    assert far(found, dense) > 1e-3
    own = make_image_pipeline("2.2-i2v")
    own.save_pretrained(tmp_path / "i2v")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    attach(own, LATE)
    found = latents_of(own, image=picture)
    expected = ours(tmp_path / "i2v", LATE, tmp_path / "b.mp4", image=tmp_path / "a.png", boundary=0.9)
    assert far(found, expected) <= 1e-3


def test_a_grade_is_of_the_rendered_size(theirs: WanPipeline) -> None:
    """Known when the transformer is called; tiny layers and heads do for what ships for 1.3B."""
    attach(theirs, "fast")
    own = theirs.transformer.blocks[0].attn1.processor.attached
    for width, height, size in ((832, 480, "480p"), (720, 1280, "720p")):
        preset, _ = own._planned((2, height // 8, width // 8), TARGET.device)
        assert preset.name == f"1.3b-{size}-fast"


def test_a_file_is_a_preset_and_what_diffusers_does_without_is_told(theirs: WanPipeline, tmp_path: Path) -> None:
    kept = Preset(
        name="kept", tile=TILE,
        phases=(
            Phase(sigma=(1.0, 0.5), linear=Linears("int8", "int8"), guidance="off"),
            Phase(sigma=(0.5, 0.0), compute="reuse"),
        ),
    )  # fmt: skip
    told = "8-bit linear layers, guidance that is reused or left out, steps that are reused"
    with pytest.warns(UserWarning, match=f"without its {told}") as warned:
        attach(theirs, kept)
    assert warned[0].filename == __file__
    path = tmp_path / "own.toml"
    path.write_text(file.text(LATE))
    attach(theirs, LATE)
    expected = latents_of(theirs)
    attach(theirs, path)
    assert torch.equal(latents_of(theirs), expected)


def test_what_cannot_be_is_refused_in_words(theirs: WanPipeline, wan_folder: Path) -> None:
    for pipe, preset, told in (
        (object(), "bf16", "no transformer of Wan's"),
        (SimpleNamespace(transformer=torch.nn.Linear(2, 2)), "bf16", "the pipeline's transformer is a Linear"),
        (theirs, "swift", "there is no preset 'swift'"),
        (theirs, "14b-720p-fast", "it is for 14b, and this model belongs to the family 1.3b"),
        (make_image_pipeline("i2v-14b"), "pocket-fast", "belongs to the family"),
    ):
        with pytest.raises(UsageError, match=told):
            attach(pipe, preset)
    attach(theirs, Preset(name="even", tile=TILE, phases=(Phase(sigma=(1.0, 0.0), window=(2, 1, 1)),)))
    with pytest.raises(UsageError, match="even: window"):
        latents_of(theirs)
    own = WanPipeline.from_pretrained(wan_folder)
    attach(own, RAGGED)
    cpu_offload(own.transformer, torch.device("cpu"))
    with pytest.raises(UsageError, match="sequential offload"):
        latents_of(own)


def test_fused_projections_and_offload_in_groups(wan_folder: Path) -> None:
    """What diffusers does to a transformer besides."""
    own = WanPipeline.from_pretrained(wan_folder)
    attach(own, LATE)
    expected = latents_of(own)
    own.transformer.fuse_qkv_projections()
    assert far(latents_of(own), expected) <= 1e-5  # one product instead of three: last bits
    own.transformer.unfuse_qkv_projections()
    own.transformer.enable_group_offload(TARGET.device, offload_type="leaf_level")
    assert torch.equal(latents_of(own), expected)


def test_whole_models_are_moved_and_parallel_contexts_refused(theirs: WanPipeline, wan_folder: Path) -> None:
    """As `enable_model_cpu_offload` moves them. A process that has some of the tokens has too few, in dense layers
    too."""
    own = WanPipeline.from_pretrained(wan_folder)
    attach(own, LATE)
    expected = latents_of(own)
    cpu_offload_with_hook(own.transformer, TARGET.device)
    assert torch.equal(latents_of(own), expected)
    attach(theirs, "bf16")
    theirs.transformer.blocks[0].register_forward_pre_hook(lambda block, given: (given[0][:, :36], *given[1:]))
    try:
        with pytest.raises(UsageError, match="a layer sees 36 of 72 tokens"):
            latents_of(theirs)
    finally:
        theirs.transformer.blocks[0]._forward_pre_hooks.clear()


def test_the_pocket_has_presets_and_tiles_of_its_own() -> None:
    own = WanPipeline.from_pretrained(assets.folder("pocket"))
    attach(own, "fast")
    preset, plans = own.transformer.blocks[0].attn1.processor.attached._planned((7, 12, 20), TARGET.device)
    assert preset.name == "pocket-fast"
    assert {plan.tiles.tile for plan in plans.values()} == {(2, 2, 2)}


def test_noise_levels_of_whole_timesteps(theirs: WanPipeline) -> None:
    """UniPC's are cut: 857 is the step at 0.857 and some more. What a scheduler does not have is 1000 sigma."""
    theirs.scheduler.set_timesteps(STEPS)
    steps = zip(theirs.scheduler.timesteps.tolist(), theirs.scheduler.sigmas.tolist(), strict=False)
    assert all(attached.noise_level(theirs, float(timestep)) == sigma for timestep, sigma in steps)
    assert attached.noise_level(theirs, 123.5) == attached.noise_level(None, 123.5) == 0.1235


def test_the_page_s_example_runs(theirs: WanPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model, and a small size."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "attach" in block)
    monkeypatch.setattr(WanPipeline, "from_pretrained", lambda name, torch_dtype: theirs)
    given = {"height=480, width=832": "height=64, width=96, num_frames=5, num_inference_steps=2"}
    told: dict[str, Any] = {}
    for old, new in given.items():
        assert old in example
        example = example.replace(old, new)
    exec(example, told)
    assert told["frames"].shape == (5, 64, 96, 3)
    assert isinstance(theirs.transformer.blocks[0].attn1.processor, attached.AttachedProcessor)
