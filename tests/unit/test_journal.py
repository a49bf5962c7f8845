"""What is measured is kept: whole, apart by key, and not taken for good where it is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
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

    def half(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:9])
        raise stop

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises((RenderError, KeyboardInterrupt)) as told:
        journal.put("one", rows=2 * ROWS)
    if isinstance(told.value, RenderError):
        assert "No space left on device" in str(told.value)
        assert "FPSGEN_CACHE_DIR" in (told.value.hint or "")
    monkeypatch.undo()
    assert same(journal.get("one"), rows=ROWS)
    assert sorted(path.name for path in journal.folder.iterdir()) == ["key.json", "one.piece"]


@pytest.mark.parametrize("damage", ["empty", "cut", "longer", "header", "text", "no hash", "no tensor", "other shape"])
def test_a_damaged_piece_is_not_there(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path, {})
    journal.put("one", rows=ROWS)
    path = journal.folder / "one.piece"
    data = path.read_bytes()
    other = {"no tensor": save({}), "other shape": save({"rows": ROWS.T.contiguous()}), "no hash": save({"rows": ROWS})}
    whole = {"empty": b"", "cut": data[:-1], "longer": data + b"\0", "header": b"\xff" * 8 + data[8:], "text": b"lost"}
    path.write_bytes((whole | other | {"other shape": other["other shape"] + data[-32:]})[damage])
    assert journal.get("one") is None
    journal.put("one", rows=ROWS)
    assert same(journal.get("one"), rows=ROWS)


def test_no_bit_of_a_piece_flips_unnoticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.put("one", rows=ROWS)
    path = journal.folder / "one.piece"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        assert journal.get("one") is None, bit


def test_a_piece_counts_under_its_own_name_and_key_alone(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path, {"a": 1}), Journal(tmp_path, {"a": 2})
    journal.put("one", rows=ROWS)
    data = (journal.folder / "one.piece").read_bytes()
    (journal.folder / "two.piece").write_bytes(data)
    (other.folder / "one.piece").write_bytes(data)
    assert journal.get("two") is None
    assert other.get("one") is None


@pytest.mark.parametrize("kind", ["pipe", "link", "link to a device", "link to itself"])
def test_what_is_no_file_of_its_own_is_replaced_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    journal, outside = Journal(tmp_path / "cache", {}), tmp_path / "outside"
    journal.put("one", rows=ROWS)
    path = journal.folder / "one.piece"
    path.rename(outside)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": outside, "link to a device": Path("/dev/zero")}.get(kind, path))
    before = outside.read_bytes()
    assert journal.get("one") is None
    journal.put("one", rows=2 * ROWS)
    assert same(journal.get("one"), rows=2 * ROWS)
    assert outside.read_bytes() == before


@pytest.mark.parametrize("dangling", [True, False])
def test_the_key_is_not_written_through_a_link(tmp_path: Path, dangling: bool) -> None:
    journal, outside = Journal(tmp_path / "cache", {}), tmp_path / "outside"
    if not dangling:
        outside.write_text("mine")
    (journal.folder / "key.json").unlink()
    (journal.folder / "key.json").symlink_to(outside)
    Journal(tmp_path / "cache", {})
    assert (journal.folder / "key.json").read_text() == "{}"
    assert not outside.exists() if dangling else outside.read_text() == "mine"


def test_a_folder_in_a_pieces_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    (journal.folder / "one.piece").mkdir()
    assert journal.get("one") is None


def test_dropping_and_forgetting(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path, {"a": 1}), Journal(tmp_path, {"a": 2})
    for name in ("check1-step0", "check1-step1", "check10-step0", "check1"):
        journal.put(name, rows=ROWS)
    other.put("check1", rows=ROWS)
    journal.drop("check1-step")
    assert {path.stem for path in journal.folder.glob("*.piece")} == {"check10-step0", "check1"}
    journal.forget()
    assert journal.get("check1") is None
    assert other.get("check1") is not None
    journal.put("check1", rows=ROWS)


def test_another_run_may_forget_while_this_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--fresh beside a run of the same job: pieces that are being written arrive."""
    journal = Journal(tmp_path, {})
    real = Path.replace

    def forgotten(self: Path, target: Path) -> Path:
        if target.name == "one.piece":
            Journal(tmp_path, {}).forget()
        return real(self, target)

    monkeypatch.setattr(Path, "replace", forgotten)
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
