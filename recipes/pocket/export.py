"""The model that `fpsgen train` made, with a version of its own, if a wheel can carry it.

python -m recipes.pocket.export --model build/pocket/run/model --out build/pocket/model --version 2
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from fpsgen import files
from recipes.pocket.start import describe

LARGEST = 24_000_000  # bytes of weights


def write(model: Path, out: Path, version: int) -> None:
    """Copy the folder `model` to `out`, which must not be there."""
    size = sum(path.stat().st_size for path in model.glob("*/*.safetensors"))
    print(f"{model}: {size:,} bytes of weights")
    if size > LARGEST:
        raise SystemExit(f"that is more than {LARGEST:,}")
    shutil.copytree(model, out)
    files.write_json(out / "pocket.json", describe(out, version))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("build/pocket/run/model"))
    parser.add_argument("--out", type=Path, default=Path("build/pocket/model"))
    parser.add_argument("--version", type=int, required=True)
    return parser


def main() -> None:
    args = parser().parse_args()
    write(args.model, args.out, args.version)


if __name__ == "__main__":
    main()
