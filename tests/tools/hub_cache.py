"""The hub's cache as huggingface-hub leaves it: blobs, snapshots of links to them, a commit's listing."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

COMMIT = "c" * 40


def keep(cache: Path, repository: str, model: Path, listing: bool = True, commit: str = COMMIT) -> Path:
    """Put the files of `model` there as a download of `repository`; its snapshot. listing: as of release 1.22."""
    storage = cache / f"models--{repository.replace('/', '--')}"
    snapshot, files = storage / "snapshots" / commit, {}
    for part in ("refs", "blobs", "trees"):
        (storage / part).mkdir(parents=True, exist_ok=True)
    (storage / "refs" / "main").write_text(commit)
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        content, name = file.read_bytes(), file.relative_to(model).as_posix()
        digest = hashlib.sha1(content).hexdigest()
        (storage / "blobs" / digest).write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(storage / "blobs" / digest, link.parent))
        files[name] = {"size": len(content), "blob_id": digest}
    if listing:
        told = {"format_version": 1, "files": files}
        (storage / "trees" / f"{commit}.json").write_text(json.dumps(told))
    return snapshot
