"""One call of each variant, for tools that look at kernels while they run: 14B, 720p, density 1/6; or a tiny grid."""

from __future__ import annotations

import argparse

import torch

from fpsgen.attention import hopper
from fpsgen.bench.attention.contenders import Inputs
from fpsgen.bench.attention.shapes import SMOKE, chosen_windows, plan_8bit, shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    chosen = SMOKE if parser.parse_args().tiny else shape("14b", "720p")
    inputs = Inputs(chosen, torch.device("cuda", torch.cuda.current_device()))
    window = chosen_windows(chosen.tiles, ["1/6"])["1/6"]
    for variant in hopper.FASTEST.values():
        out = hopper.attention(
            inputs.q, inputs.k, inputs.v, inputs.transform, plan_8bit(chosen.tiles, window, variant), variant
        )
        print(variant, "finite" if out.isfinite().all() else "NOT FINITE", flush=True)


if __name__ == "__main__":
    main()
