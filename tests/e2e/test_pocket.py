"""The pocket model that ships: what it promises, and that it still is what it was measured as."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from diffusers import WanPipeline
from typer.testing import CliRunner

from fpsgen import assets
from fpsgen.attention.tiles import TileGrid
from fpsgen.cli import app
from fpsgen.pocket.judge import load_network
from fpsgen.wan.sizes import latent_shape
from fpsgen.weights import models
from recipes.pocket.evaluate import document
from tests.tools.videos import read

# Of the weight files' digests, per version. A line is added for a new version, never changed.
FROZEN = {
    0: "697f80ee1a434c4e8df4916a765b3da630d9131ee40af5c1ccacd38ed55ef919",
    1: "70b312d3e3863122bff217fa532eb53b0f37b8335e9936f4369891a6ccae0a61",
}


@pytest.fixture(scope="module")
def pocket() -> models.Model:
    return models.find("pocket")


def test_it_is_frozen(pocket: models.Model) -> None:
    """Presets and tables are bound to these hashes: other weights are another version, never a replacement."""
    weights = sorted(pocket.folder.glob("*/*.safetensors"))
    hashes = {
        path.relative_to(pocket.folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in weights
    }
    assert pocket.pocket["sha256"] == hashes
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == FROZEN[pocket.pocket["version"]]
    assert sum(path.stat().st_size for path in weights) <= 24_000_000


def test_it_is_wan_and_worth_being_sparse_on(pocket: models.Model) -> None:
    config, defaults = pocket.config, pocket.defaults
    assert config.head_dim == 128
    assert config.num_heads >= 3
    assert config.num_layers >= 6
    grid = config.grid(latent_shape(defaults.frames, defaults.height, defaults.width))
    tiles = TileGrid(grid, pocket.tile(grid))
    assert tiles.tokens >= 400
    assert len(tiles.offsets) - 1 >= 40
    assert min(tiles.counts) >= 3


def test_diffusers_loads_it() -> None:
    pipeline = WanPipeline.from_pretrained(assets.folder("pocket"))
    assert pipeline.transformer.config.num_layers >= 6


def test_its_published_evaluation_is_of_these_weights(pocket: models.Model) -> None:
    """And shows what was asked of it, by both judges, on held-out combinations."""
    folder = Path(__file__).parents[2] / "recipes" / "pocket"
    record = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert record["sha256"] == pocket.pocket["sha256"]
    assert (record["steps"], record["guidance"]) == (pocket.defaults.steps, pocket.defaults.guidance)
    assert (folder / "evaluation.md").read_text(encoding="utf-8") == document(record)
    for shares in record["results"]["held-out combinations: 208"].values():
        assert shares["scene"] >= 0.95
        assert shares["motion"] >= 0.90
        assert shares["subject"] >= 0.85


@pytest.mark.parametrize(
    ("res", "size"), [((), (640, 384)), pytest.param(("--res", "720p"), (1280, 720), marks=pytest.mark.slow)]
)
def test_it_makes_a_video_of_its_own_length_at_any_size(
    pocket: models.Model, tmp_path: Path, res: tuple[str, ...], size: tuple[int, int]
) -> None:
    path = tmp_path / "cat.mp4"
    result = CliRunner().invoke(app, ["generate", "a cat surfing", *res, "--steps", "2", "-o", str(path)])
    assert result.exit_code == 0, result.output
    meta, frames = read(path)
    assert (meta["size"], len(frames), meta["fps"]) == (size, pocket.defaults.frames, pocket.defaults.fps)


SURFING = ("cat", "surf", "sea")


def test_a_cat_surfing_shows_a_cat_surfing(tmp_path: Path) -> None:
    """Through the front door, as the README has it; the video is judged by the network that ships."""
    seen: list[tuple[str, str, str]] = []
    for seed in (1, 2, 3):
        if seen.count(SURFING) == 2:
            return
        path = tmp_path / f"{seed}.mp4"
        args = ["--res", "160x96", "--seed", str(seed), "-o", str(path), "--json"]
        result = CliRunner().invoke(app, ["generate", "a cat surfing", *args])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["model"].startswith("pocket v")
        seen.append(load_network().classify(read(path)[1]))
    # One of three may miss: adherence is below 1, and its table says by how much.
    assert seen.count(SURFING) >= 2, seen
