"""Run a command and watch how much memory is its own (Linux).

    python -m tests.tools.watch RESULT.json -- fpsgen generate "a cat" --model OUT --json

Peak resident memory counts mapped files, too, which the system can drop at will; RssAnon counts what a
machine must really have. The result holds what the command printed as JSON, and on what it ran.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from fpsgen.files import write_json
from fpsgen.machine import provenance

INTERVAL = 0.05  # seconds between two looks


def watch(command: list[str]) -> dict:
    """The command's JSON and its largest RssAnon in bytes; CalledProcessError where it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(INTERVAL)
    assert process.stdout is not None
    printed = process.stdout.read()  # one line, which a pipe holds
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed)
    return {"result": json.loads(printed), "peak_rss_anon_bytes": peak}


def anonymous(pid: int) -> int:
    """RssAnon of a process in bytes, 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", type=Path, metavar="RESULT.json")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    found = watch(given.command)
    write_json(given.to, {**provenance(given.command), **found})
    print(f"peak RssAnon {found['peak_rss_anon_bytes'] / 1e9:.2f} GB", file=sys.stderr)
