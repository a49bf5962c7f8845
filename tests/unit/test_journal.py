"""What is measured is kept: whole, apart by key, and not taken for good where it is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fpsgen import journal as journals
from fpsgen.errors import RenderError
from fpsgen.journal import Journal

ROWS = torch.arange(12.0).view(3, 4)


def same(kept: dict[str, Tensor] | None, **wanted: Tensor) -> bool:
    return kept is not None and kept.keys() == wanted.keys() and all(kept[key].equal(wanted[key]) for key in wanted)


def test_a_piece_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"a": 1})
    numbers = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert same(journal.put("one", rows=ROWS.T, numbers=numbers), rows=ROWS.T, numbers=numbers)
    assert same(Journal(tmp_path, {"a": 1}).get("one"), rows=ROWS.T, numbers=numbers)
    assert journal.get("two") is None


def test_keys_are_apart(tmp_path: Path) -> None:
    Journal(tmp_path, {"seed": 1, "prompts": ["a", "é"]}).put("one", rows=ROWS)
    assert Journal(tmp_path, {"prompts": ["a", "é"], "seed": 1}).get("one") is not None, "in any order"
    for other in ({"seed": 2, "prompts": ["a", "é"]}, {"seed": 1, "prompts": ["a"]}, {"seed": 1}):
        assert Journal(tmp_path, other).get("one") is None


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    """Whatever ends it while it writes: the piece that was there stays, and nothing else does."""
    journal = Journal(tmp_path, {})
    journal.put("one", rows=ROWS)

    def half(tensors: dict[str, Tensor], path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise stop

    monkeypatch.setattr("safetensors.torch.save_file", half)
    with pytest.raises((RenderError, KeyboardInterrupt)) as told:
        journal.put("one", rows=2 * ROWS)
    if isinstance(told.value, RenderError):
        assert "No space left on device" in str(told.value)
        assert "FPSGEN_CACHE_DIR" in (told.value.hint or "")
    monkeypatch.undo()
    assert same(journal.get("one"), rows=ROWS)
    assert sorted(path.name for path in journal.folder.iterdir()) == ["key.json", "one.safetensors"]


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "folder", "text"])
def test_a_damaged_piece_is_not_there(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path, {})
    journal.put("one", rows=ROWS)
    (path,) = journal.folder.glob("*.safetensors")
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
        assert journal.get("one") is None
        return
    path.write_bytes({"empty": b"", "cut": data[:-1], "header": b"\xff" * 8 + data[8:], "text": b"lost"}[damage])
    assert journal.get("one") is None
    journal.put("one", rows=ROWS)
    assert same(journal.get("one"), rows=ROWS)


def test_dropping_and_forgetting(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path, {"a": 1}), Journal(tmp_path, {"a": 2})
    for name in ("check1-step0", "check1-step1", "check10-step0", "check1"):
        journal.put(name, rows=ROWS)
    other.put("check1", rows=ROWS)
    journal.drop("check1-step")
    assert {path.stem for path in journal.folder.glob("*.safetensors")} == {"check10-step0", "check1"}
    journal.forget()
    assert journal.get("check1") is None
    assert other.get("check1") is not None
    journal.put("check1", rows=ROWS)


def test_another_run_may_forget_while_this_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--fresh beside a run of the same job: pieces that are being written arrive."""
    journal = Journal(tmp_path, {})
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (Journal(tmp_path, {}).forget(), real(*paths)))
    journal.put("one", rows=ROWS)
    assert same(journal.get("one"), rows=ROWS)


def test_a_place_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """A file stands where the folder would be: for root, too, who may write into any folder."""
    (tmp_path / "cache").write_text("in the way")
    for attempt in (lambda: Journal(tmp_path / "cache", {}), lambda: journals.check(tmp_path / "cache")):
        with pytest.raises(RenderError, match="cannot be written: ") as told:
            attempt()
        assert "FPSGEN_CACHE_DIR" in (told.value.hint or "")
    journals.check(tmp_path / "new" / "cache")
    assert list((tmp_path / "new" / "cache").iterdir()) == []
