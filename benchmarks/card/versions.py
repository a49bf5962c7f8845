"""The card, its driver, libraries and tools, and how it is set: prints JSON. Nothing is set."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import asdict

import torch

from fpsgen import machine

_TOOLS = ("nvcc", "ncu", "compute-sanitizer", "nvdisasm", "g++")
_FIELDS = (
    "name,driver_version,vbios_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,clocks.applications.gr,"
    "clocks_throttle_reasons.active,power.draw,power.limit,power.max_limit,temperature.gpu,ecc.mode.current,mig.mode.current"
)

if __name__ == "__main__":
    device = torch.device("cuda", torch.cuda.current_device())
    smi = subprocess.run(["nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv"], capture_output=True, text=True)
    found = {
        "card": asdict(machine.card(device)),
        "tools": {name: shutil.which(name) for name in _TOOLS},
        "smi": smi.stdout,
    }
    print(json.dumps(found, indent=2))
