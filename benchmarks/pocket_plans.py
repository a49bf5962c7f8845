"""What sparse and 8-bit attention does to the pocket model's videos: one plan for all steps, or after a dense start.

    python -m benchmarks.pocket_plans --clips 32 --out benchmarks/results/pocket-plans

Clips of held-out combinations, every one rendered with every plan from the same noise, through the product's own
pipeline. Against dense 16-bit attention: cosine of the final latents, PSNR of the frames, time of a step; for itself:
how often the pocket model's judge names subject, motion and scene right. Writes .json, .md and a contact sheet (.png)
of the first clip.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.markdown import page
from fpsgen import files
from fpsgen.attention.tiles import Shape3
from fpsgen.machine import provenance
from fpsgen.metrics import mean_ci95
from fpsgen.pocket.judge import load_network
from fpsgen.presets import Phase, Preset, file
from fpsgen.request import Request, resolve
from fpsgen.sampling import Denoiser
from fpsgen.target import Target
from fpsgen.wan import vae as wan_vae
from fpsgen.weights import models
from fpsgen.weights.load import load_text_encoder, load_transformer, load_vae
from recipes.pocket.evaluate import NOISE_SEED, prompts_for
from recipes.pocket.world import contact_sheet

# Windows whose density is near 1/2, 1/4 and 1/8, of 4 x 3 x 5 tiles. Chosen by a pilot of 8 of these prompts: of the
# shapes near one density, the one whose latents stayed nearest to dense ones.
WINDOWS: dict[str, Shape3 | None] = {"1": None, "1/2": (3, 3, 3), "1/4": (1, 3, 5), "1/8": (3, 3, 1)}
PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16": {"qk": "bf16", "pv": "bf16"},
    "fp8": {"qk": "fp8", "pv": "fp8"},
    "int8": {"qk": "int8", "pv": "fp8"},
}
DENSE_ABOVE = 0.9  # sigma; the first 5 of the pocket model's 20 steps


def presets() -> list[Preset]:
    """Uniform ones first, then those that begin dense."""
    found = [
        Preset(name=f"{density}, {name}", phases=(Phase(sigma=(1.0, 0.0), window=window, **PRECISIONS[name]),))
        for density, window in WINDOWS.items()
        for name in PRECISIONS
    ]
    for density, window in list(WINDOWS.items())[1:]:
        late = Phase(sigma=(DENSE_ABOVE, 0.0), window=window, **PRECISIONS["int8"])
        name = f"dense above sigma {DENSE_ABOVE}, then {density}, int8"
        found.append(Preset(name=name, phases=(Phase(sigma=(1.0, DENSE_ABOVE)), late)))
    return found


TARGET = Target(torch.device("cpu"), torch.float32, torch.bfloat16)


class Worker:
    """The pocket model in a process of its own, on one core."""

    @classmethod
    def start(cls) -> None:
        torch.set_num_threads(1)
        cpu = torch.device("cpu")
        cls.model = models.find("pocket")
        cls.encoder = load_text_encoder(cls.model.checkpoint, cpu, torch.bfloat16)
        cls.transformer = load_transformer(cls.model.checkpoint, cpu, torch.float32)
        cls.vae = load_vae(cls.model.checkpoint, cpu)
        cls.judge = load_network()

    @classmethod
    def run(cls, index: int, prompt: str) -> tuple[list[dict], list[np.ndarray]]:
        """Clip `index` with every preset: what is measured of it, and its frames."""
        every = presets()
        order = [(index + i) % len(every) for i in range(len(every))]  # each preset goes first as often as any other
        texts = [cls.encoder.encode(text).text for text in (prompt, cls.model.defaults.negative)]
        made = {i: cls.render(index, prompt, texts, every[i]) for i in order}
        dense, dense_frames, dense_step = made[0]
        told = []
        for i in range(len(every)):
            latents, frames, step = made[i]
            error = np.mean((frames.astype(np.float64) - dense_frames) ** 2)
            told.append(
                {
                    "cosine": torch.cosine_similarity(latents.flatten(), dense.flatten(), 0).item(),
                    "psnr": None if error == 0 else 10 * np.log10(255**2 / error),
                    "step_ratio": step / dense_step,
                    "step_seconds": step,
                    "judged": cls.judge.classify(frames),
                }
            )
        return told, [made[i][1] for i in range(len(every))]

    @classmethod
    @torch.inference_mode()
    def render(cls, index: int, prompt: str, texts: list[Tensor], preset: Preset) -> tuple[Tensor, np.ndarray, float]:
        """Final latents, uint8 frames, and the median seconds of a step; texts: the encoded prompt and negative."""
        request = Request(prompt, cls.model.defaults, NOISE_SEED + index, Path(), preset)
        denoiser = Denoiser(cls.transformer, request.settings, texts, TARGET.device)
        moments = list(denoiser.run(denoiser.noise(request.seed), resolve(request, cls.model, TARGET).steps))
        latents = moments[-1].latents
        frames = np.concatenate(list(wan_vae.frames_of(cls.vae, latents)))
        return latents, frames, float(np.median([moment.seconds for moment in moments]))


def summarise(clips: list[list[dict]], truth: list[tuple[str, str, str]]) -> list[dict]:
    """One row per preset: means over the clips."""
    rows = []
    for i, preset in enumerate(presets()):
        own = [clip[i] for clip in clips]
        right = np.array([np.equal(one["judged"], label) for one, label in zip(own, truth, strict=True)])
        psnr = [one["psnr"] for one in own if one["psnr"] is not None]
        cosine = np.array([one["cosine"] for one in own])
        rows.append(
            {
                "preset": preset.name,
                "phases": file.as_dict(preset)["phases"],
                "cosine": round(float(cosine.mean()), 4),
                "cosine_ci95": round(mean_ci95(cosine)[1] or 0.0, 4),
                "psnr_db": round(float(np.mean(psnr)), 2) if psnr else None,
                **dict(zip(("subject", "motion", "scene"), (round(float(r), 3) for r in right.mean(0)), strict=True)),
                "all": round(float(right.all(1).mean()), 3),
                "step_seconds": round(float(np.median([one["step_seconds"] for one in own])), 4),
                "step_ratio": round(float(np.median([one["step_ratio"] for one in own])), 3),
            }
        )
    return rows


def add_density(rows: list[dict]) -> None:
    """The true mean density over the steps."""
    model = models.find("pocket")
    for row, preset in zip(rows, presets(), strict=True):
        plan = resolve(Request("", model.defaults, 0, Path(), preset), model, TARGET)
        row["density"] = round(plan.density, 3)


def table(rows: list[dict]) -> str:
    lines = [
        "| attention | density | latent cosine | PSNR, dB | subject | motion | scene | all | s / step | x dense |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        psnr = "same" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        shares = " | ".join(f"{row[name]:.2f}" for name in ("subject", "motion", "scene", "all"))
        lines.append(
            f"| {row['preset']} | {row['density']:.3f} | {row['cosine']:.4f} ± {row['cosine_ci95']:.4f} | {psnr} | "
            f"{shares} | {row['step_seconds']:.3f} | {row['step_ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def document(record: dict) -> str:
    """What is published, in Markdown."""
    windows = ", ".join("{}x{}x{} ({})".format(*window, name) for name, window in WINDOWS.items() if window)
    clips, sheet = record["clips"], record["sheet"]
    head = page(
        "Sparse and 8-bit attention on the pocket model",
        f"""{clips} clips of held-out combinations are rendered with every plan, each clip from the same noise, in
        float32 on a CPU by the `reference` backend (`dense` in the first row). A row's name has the nominal density
        and the format of q and k: bf16 is not rounded; with fp8 and int8, P and v are in fp8. Nominal densities stand
        for windows of {windows} among 4 x 3 x 5 tiles. A pilot on 8 prompts of this kind chose them: among the shapes
        close to one density, the one whose latents stayed closest. The second column has the true share of token
        pairs, as a mean over the steps.""",
        f"""The cosine of the final latents (± 95 %) and the PSNR of the frames compare each row with the first one.
        The columns subject, motion, scene and all show the share of clips that the judge names right (± {
            1.96 * 0.5 / clips**0.5:.2f} at worst, 95 %). The time of a step is the median over all clips. The last
        column is the median of its ratio to the first row's time in the same clip, which other work on the machine
        disturbs less. Each process had one core.""",
        """The picture shows the first clip, with six frames in a row.""",
        f"`{' '.join(record['command'])}` makes this page and `{sheet}`, the first clip with every plan.",
    )
    picture = f"\n![{record['prompts'][0]}, with every plan]({sheet})\n"
    return head + table(record["rows"]) + picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pocket-plans"))
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    args = parser.parse_args()
    if args.clips < 2 or args.workers < 1:
        parser.error("at least 2 clips, for their spread, and 1 worker")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begin = provenance(["python", "-m", "benchmarks.pocket_plans", *sys.argv[1:]])  # of the code that is running
    prompts, truth = prompts_for(args.clips, True, True)
    clips, sheet = [], []
    # Processes of their own: torch's threads do not survive a fork.
    with ProcessPoolExecutor(args.workers, get_context("spawn"), Worker.start) as pool:
        for told, frames in pool.map(Worker.run, range(args.clips), prompts):
            clips.append(told)
            sheet = sheet or frames
            print(f"{len(clips)} of {args.clips} clips", flush=True)
    rows = summarise(clips, truth)
    add_density(rows)
    image = args.out.with_suffix(".png")
    pocket = models.find("pocket").pocket or {}
    begin["pocket"] = {key: pocket[key] for key in ("version", "sha256")}
    record = {**begin, "clips": args.clips, "prompts": prompts, "sheet": image.name, "rows": rows}
    files.write_json(args.out.with_suffix(".json"), record)
    files.write_text(args.out.with_suffix(".md"), document(record))
    contact_sheet(sheet, [row["preset"] for row in rows], columns=6).quantize(256).save(image, optimize=True)
    print(table(rows), end="")


if __name__ == "__main__":
    main()
