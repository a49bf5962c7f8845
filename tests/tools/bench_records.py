"""What `fpsgen bench` records, made up and seeded: the shapes of true records, without their hours."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from fpsgen.bench.record import MeasuredCard
from fpsgen.metrics import Pair
from fpsgen.timing import STAGES
from tests.tools.reports import clip

if TYPE_CHECKING:
    from fpsgen.bench.attention.record import Case
    from fpsgen.bench.attention.shapes import Shape
    from fpsgen.bench.record import State

WHOLE = (*STAGES, "total")
MACHINE = {
    "cpu": "Made-up CPU @ 2.10GHz", "cores": 2, "memory_bytes": 16_000_000_000, "python": "3.11.2", "torch": "2.13.0",
    "diffusers": "0.40.0", "transformers": "5.13.0", "fpsgen": "0.2.0",
}  # fmt: skip
CARD: dict[str, Any] = {
    "gpu": "NVIDIA H100 made up", "capability": "9.0", "multiprocessors": 132, "memory_bytes": 85_000_000_000,
    "l2_bytes": 52_428_800, "driver": "580.1", "power_limit_w": 700.0, "cuda": "13.0", "cudnn": 91_002,
    "cupy": "14.2.0", "triton": "3.6.0", "nvrtc": "13.0", "clock_hz": 1.98e9, "clock_source": "a guess",
    "copy_bytes_per_second": 3.02e12,
}  # fmt: skip
# Seconds of load, text, compile, denoise, decode, encode; attention's share of a dense step.
_BF16 = {"load": 0.31, "text": 0.24, "compile": 0.0, "denoise": 9.6, "decode": 1.35, "encode": 0.21}
_SHARES = {"attention": 0.58, "linear": 0.31, "rest": 0.11}
# How a contender's attention compares, its density late in the schedule, PSNR.
KNOWN: dict[str, tuple[float, float | None, float | None]] = {
    "quality": (0.35, 0.42, 36.2), "fast": (0.12, 0.17, 27.4), "bf16": (1.0, 1.0, None), "sage": (0.55, 1.0, 44.9),
    "diffusers": (1.25, None, 58.3), "slow": (2.1, 0.8, 33.0), "same": (1.0, 1.0, None),
}  # fmt: skip
LABELS = {"bf16": "bf16 (float32)"}  # on a CPU
EDGES = (0, 5, 12, 20)


def provenance(command: str) -> dict[str, Any]:
    return {"date": "2026-01-02", "commit": "0123456789abcdef0123456789abcdef01234567", "command": command.split(),
            "machine": dict(MACHINE)}  # fmt: skip


def times(chance: random.Random, name: str, cold: bool) -> dict[str, Any]:
    """One run of a contender, as `Timings.as_dict` has it."""
    ratio = _SHARES["attention"] * KNOWN[name][0] + 1 - _SHARES["attention"]
    seconds = {phase: value * chance.uniform(0.97, 1.03) for phase, value in _BF16.items()}
    seconds["denoise"] *= ratio
    if cold:
        seconds |= {"load": 4 * seconds["load"], "compile": 3.1 if name in ("quality", "fast") else 0.0}
    steps = [seconds["denoise"] / 20] * 20
    return {
        **{phase: round(value, 3) for phase, value in seconds.items()}, "step_mean": round(steps[0], 4),
        "steps": [round(step, 4) for step in steps], "total": round(sum(seconds.values()), 3),
        "peak_memory_bytes": None,
    }  # fmt: skip


def phases(name: str) -> list[dict[str, Any]]:
    """Dense first, then as sparse as the contender is."""
    cost, density, _ = KNOWN[name]
    found = []
    for number, (first, last) in enumerate(pairwise(EDGES)):
        sparse = number / (len(EDGES) - 2)
        own = {"attention": 0.278 * (1 + (cost - 1) * sparse * 1.4), "linear": 0.149, "rest": 0.053}
        own["attention"] = max(own["attention"], 0.02)
        found.append({
            "first": first + 1, "last": last, "sigma": [1 - first / 20, 1 - last / 20],
            "density": None if density is None else 1 + (density - 1) * min(1.0, sparse),
            "step": round(sum(own.values()), 4),
            "split": None if name == "diffusers" else {**own, "total": sum(own.values())},
        })  # fmt: skip
    return found


def fidelity(name: str) -> dict[str, Any]:
    psnr = KNOWN[name][2]
    error = 0.0 if psnr is None else 10 ** (-psnr / 9)
    return {
        "identical": psnr is None, "latent_cosine": 1 - error, "latent_error": error, "psnr": psnr,
        "ssim": 1.0 if psnr is None else 1 - 6 * error, "lpips": None if name == "fast" else 40 * error, "nonfinite": 0,
    }  # fmt: skip


def compare(*names: str, passes: int = 2, seed: int = 0) -> dict[str, Any]:
    """`fpsgen bench`: the preset first; against bf16, or the first that is compared with."""
    names = names or ("quality", "bf16")
    reference = "bf16" if "bf16" in names else names[1]
    chance = random.Random(seed)
    runs = {name: [times(chance, name, number == 0) for number in range(passes + 1)] for name in names}
    contenders = []
    for name in names:
        cold, *warm = runs[name]
        timed, theirs = warm or [cold], runs[reference][1:] or runs[reference]
        speedup = {}
        for key in ("total", "denoise"):
            each = [other[key] / own[key] for own, other in zip(timed, theirs, strict=True)]
            speedup[key] = {"median": median(each), "each": each}
        contenders.append({
            "name": name, "label": LABELS.get(name, name),
            "told": f"preset pocket-{name}, density 0.61, by reference", "preset": None,
            "density": KNOWN[name][1], "backends": ["reference"], "cold": cold, "warm": warm,
            "median": {key: median(run[key] for run in timed) for key in WHOLE},
            "spread": {key: [min(run[key] for run in timed), max(run[key] for run in timed)] for key in WHOLE},
            "phases": phases(name), "speedup": None if name == reference or not warm else speedup,
            "fidelity": None if name == reference else fidelity(name),
        })  # fmt: skip
    order = [name for number in range(passes) for name in (names[::-1] if number % 2 else names)]
    return {
        "kind": "compare", "format": 1, **provenance(f"fpsgen bench --compare {','.join(names[1:])}"), "card": None,
        "model": "pocket v1", "device": "cpu", "dtype": "float32", "text_dtype": "bfloat16", "random_weights": False,
        "extrapolated": False,
        "video": {
            "prompt": "a cat surfing", "negative": "", "width": 160, "height": 96, "frames": 25, "fps": 12, "steps": 20,
            "guidance": 4.0, "shift": 3.0, "solver": "unipc", "grid": "original", "seed": 0,
        },
        "tokens": 420, "reference": reference, "pairs": passes,
        "tried": [
            {"name": "sdpa-flash", "milliseconds": 1.234, "why_not": None},
            {"name": "sdpa-math", "milliseconds": 4.5, "why_not": None},
            {"name": "sdpa-cudnn", "milliseconds": None, "why_not": "it is for CUDA GPUs"},
        ] if reference == "bf16" else [],
        "contenders": contenders, "order": order, "states": None, "notes": ["lpips is not installed"],
    }  # fmt: skip


def cold_only() -> dict[str, Any]:
    return compare(passes=0)


def on_a_card(passes: int = 3) -> dict[str, Any]:
    """With kernels compiled, memory and clocks."""
    made = compare("quality", "bf16", "sage", "diffusers", passes=passes)
    chance = random.Random(1)
    for one in made["contenders"]:
        one["label"] = one["name"]
        for run in (one["cold"], *one["warm"]):
            run["peak_memory_bytes"] = int(chance.uniform(31e9, 36e9))
    count = len(made["contenders"]) * (passes + 1)
    states = [
        {"clocks.sm": 1980.0 - 15 * number, "clocks.mem": 2619.0, "power.draw": 612.5, "temperature.gpu": None}
        for number in range(count)
    ]
    return made | {"card": dict(CARD), "model": "Wan2.1 14B", "device": "cuda:0", "dtype": "bfloat16", "states": states}


def extrapolated() -> dict[str, Any]:
    """`--random-weights`: no cold run, nothing loaded or encoded, no fidelity."""
    made = compare(passes=1)
    made["video"] |= {"prompt": None, "negative": None}
    for one in made["contenders"]:
        [run] = one["warm"]
        run |= {"load": None, "encode": None}
        for key in ("text", "denoise", "decode"):
            run[key] = round(run[key] * 90, 3)
        run["total"] = round(run["text"] + run["denoise"] + run["decode"], 3)
        one |= {
            "cold": None, "fidelity": None, "nonfinite": 0, "median": {key: run[key] for key in WHOLE},
            "spread": {key: None if run[key] is None else [run[key]] * 2 for key in WHOLE},
        }  # fmt: skip
    notes = ["one step of each phase was measured, and stands for the others"]
    return made | {"random_weights": True, "extrapolated": True, "order": ["quality", "bf16"], "notes": notes}


def attention(cases: int = 2, ours: bool = True) -> dict[str, Any]:
    """`fpsgen bench attention` on a made-up card; without `ours` on one that our kernels are not for."""
    from fpsgen.bench.attention.record import AttentionRecord
    from fpsgen.bench.attention.shapes import shape

    facts = provenance("fpsgen bench attention --model 1.3b 14b") | {"card": MeasuredCard(**CARD)}
    shapes = [shape("1.3b", "480p"), shape("14b", "720p")][-cases:]
    made = tuple(_case(one, ours) for one in shapes)
    record = AttentionRecord(**facts, seed=0, repeats=20, seconds=500, cases=made)
    return json.loads(json.dumps(record.as_json()))


def _case(shape: Shape, ours: bool) -> Case:
    from fpsgen.bench.attention.record import Case, Kind, Line, derive

    chance = random.Random(shape.heads)
    tiles = shape.tiles
    flops, moved = 4.0 * 128 * shape.heads * tiles.tokens**2, 8.0 * tiles.tokens * shape.heads * 128

    def line(kind: Kind, name: str, bits: int, density: float, reached: float, **more: Any) -> Line:
        """reached: TFLOP/s."""
        took = flops * density / reached / 1e9
        samples = [took * chance.uniform(0.98, 1.02) for _ in range(5)]
        stages = [[flops * density, flops * density / 512, moved]]
        return Line(kind=kind, name=name, bits=bits, density=density, stages=stages, samples_ms=samples, **more)

    def moving(kind: Kind, name: str, bits: int, took: float, variant: str | None = None) -> Line:
        return Line(kind=kind, name=name, bits=bits, variant=variant, stages=[[0, 0, moved]], samples_ms=[took])

    lines = [
        line("sdpa", "SDPA flash", 16, 1.0, 390, error_to_exact=0.004),
        line("sdpa", "SDPA cuDNN", 16, 1.0, 610, error_to_exact=0.004),
        Line(kind="sdpa", name="SDPA math", bits=16, density=1.0, stages=[], why_not="left out: too large"),
        moving("prepare", "norm and RoPE, eager", 16, moved / 1e9),
    ]
    for variant, reached in (("fp8-fp32", 800.0), ("fp8-fp16", 1120.0), ("int8-int32", 930.0)) if ours else ():
        lines.append(moving("prologue", f"{variant}, prologue", 8, moved / 2e9, variant))
        for wanted in (1.0, 0.5, 0.25, 0.1):
            window = tiles.window_of(wanted)
            density = tiles.density(window)
            own: dict[str, Any] = {"variant": variant, "wanted": f"{wanted:g}", "window": window}
            own |= {"error_to_exact": 0.05, "error_to_emulator": {"accumulator aligned": 1e-3}}
            lines.append(line("kernel", f"{variant}, kernel", 8, density, reached, **own))
            lines.append(line("together", f"{variant}, together", 8, density, 0.82 * reached, **own))
    if not ours:
        why = "it is for Hopper"
        lines.append(Line(kind="prologue", name="fp8-fp16", variant="fp8-fp16", bits=8, stages=[], why_not=why))
    at: State = {"clocks.sm": 1980.0, "clocks.mem": 2619.0, "power.draw": 120.5, "temperature.gpu": 40.0}
    return Case(**shape.facts, lines=derive(lines, MeasuredCard(**CARD)), before=at, after=at, rounds=5)


def quality(*names: str, prompts: int = 12, seeds: int = 2, judged: bool = True) -> dict[str, Any]:
    """`fpsgen bench quality`; three of the first's clips are the reference's."""
    names = names or ("quality", "fast", "bf16")
    chance = random.Random(prompts)
    about = [f"prompt {number}: a cat moving left" for number in range(prompts)]
    contenders = []
    for name in names:
        told = []
        for number in range(prompts * seeds):
            one = None
            if name != "bf16":
                one = fidelity(name) | {"psnr": (KNOWN[name][2] or 0) + chance.gauss(0, 2.2)}
                one |= {"ssim": one["ssim"] - chance.uniform(0, 4e-3)}
                if number < 3 and name == "quality":
                    one |= {"identical": True, "psnr": None, "latent_error": 0.0, "latent_cosine": 1.0}
            told.append({"prompt": about[number // seeds], "seed": 1000 + number, "fidelity": one, "shown": None,
                         "video": None})  # fmt: skip
        of = len(told)
        adherence = {aspect: [round(of * share), of] for aspect, share in
                     (("subject", 0.96), ("motion", 0.82 if name == "fast" else 0.9), ("scene", 1.0))}  # fmt: skip
        contenders.append({
            "name": name, "label": LABELS.get(name, name),
            "told": f"preset pocket-{name}, density 0.61, by reference", "preset": None, "density": 0.61,
            "backends": ["reference"], "fidelity": None if name == "bf16" else _means(told),
            "identical": None if name == "bf16" else sum(one["fidelity"]["identical"] for one in told),
            "nonfinite": None if name == "bf16" else 0, "clips": told, "adherence": adherence if judged else None,
            "vbench": None,
        })  # fmt: skip
    video = {key: value for key, value in compare()["video"].items() if key not in ("prompt", "seed")}
    return {
        "kind": "quality", "format": 1, **provenance("fpsgen bench quality --prompts prompts.txt"), "card": None,
        "model": "pocket v1", "device": "cpu", "dtype": "float32", "text_dtype": "bfloat16", "video": video,
        "prompts": about, "seeds": seeds, "seed": 1000, "reference": "bf16", "contenders": contenders, "notes": [],
    }  # fmt: skip


def _means(clips: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for measure, worst in (("latent_cosine", min), ("latent_error", max), ("psnr", min), ("ssim", min), ("lpips", max)):
        values = [clip["fidelity"][measure] for clip in clips if clip["fidelity"][measure] is not None]
        mean = sum(values) / len(values) if values else 0.0
        ci95 = {"ci95": (max(values) - min(values)) / 4} if len(values) > 1 else {}
        found[measure] = {"mean": mean, **ci95, "worst": worst(values)} if values else None
    return found


def pairs(*names: str) -> list[Pair]:
    """Clips of contenders beside bf16's."""
    return [
        Pair("a cat surfing", KNOWN[name][2], clip(), clip(noise=4 + 5 * number), (LABELS["bf16"], name))
        for number, name in enumerate(names)
    ]
