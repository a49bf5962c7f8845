"""What the cache holds: found by its own names alone, removed whole, never under another's hands."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from itertools import product
from pathlib import Path

import pytest

from fpsgen.errors import UsageError
from fpsgen.kernels import cache, listing, sm90_attention, sm90_elementwise

pytestmark = pytest.mark.usefixtures("compiled_once")

NAME = "sm90_attention-" + "0123456789abcdef" * 2


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a kernel of long ago, with its lock and a half-written copy."""
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    place = tmp_path / "kernels" / NAME
    for folder in (place, place.with_name(f".{NAME}-a1_b2c3d")):
        folder.mkdir(parents=True)
        (folder / "kernel.cubin").write_bytes(b"x" * 100)
    cache.lock_of(place).touch()
    return place


def test_a_name_for_every_kernel_that_is_launched() -> None:
    from fpsgen.attention import hopper  # not above: processes that build and clear import this file, too
    from fpsgen.attention.plan import AttentionPlan, KeyTiles
    from fpsgen.attention.tiles import TileGrid

    named = {own.kernel for own in listing.KERNELS.values()}
    assert len(named) == len(listing.KERNELS)
    needed, tops = set(sm90_elementwise.VARIANTS.values()), (None, KeyTiles(top=0.5), KeyTiles(top=0.5, rest="summary"))
    grids = (2, 5, 9), (2, 3, 4), (2, 8, 16), (2, 8, 8), (1, 1, 700), (1, 1, 1)
    for tiles in map(TileGrid, grids[::2], grids[1::2]):
        for seen, smooth_k in product(tops, (True, False)):
            plan = AttentionPlan(tiles, (seen,), qk="fp8", pv="fp8", smooth_k=smooth_k)
            for variant in sm90_attention.VARIANTS:
                needed |= {*hopper.kernels(plan, variant), hopper.selection(plan)}
    assert named == needed - {None}


def test_a_kernel_with_all_that_belongs_to_it(place: Path) -> None:
    assert list(cache.contents()) == [NAME]
    assert cache.contents()[NAME].size == 200
    removed = cache.remove(NAME)
    assert removed is not None
    assert removed.size == 200
    assert list(place.parent.iterdir()) == []
    assert cache.contents() == {}


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        NAME.upper(),
        NAME[:-1],
        f"{NAME}0",
        f"{NAME}.bak",
        f".{NAME}",
        f".{NAME}-abc",
        f".{NAME}-abcdefghi",
        f".{NAME}.lock.old",
        "0123456789abcdef" * 2,
        f"sm90 attention-{'0123456789abcdef' * 2}",
    ],
)
def test_other_names_are_not_ours(place: Path, name: str) -> None:
    (place.parent / name).mkdir()
    assert list(cache.contents()) == [NAME]
    cache.remove(NAME)
    assert [path.name for path in place.parent.iterdir()] == [name]


def test_links_are_not_followed(place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (place / "link").symlink_to(outside)  # in a folder of ours
    other = NAME.replace("attention", "prologue")
    (place.parent / other).symlink_to(outside)  # in the place of one
    (place.parent / f".{NAME}-zzzzzzzz").symlink_to(outside)
    assert list(cache.contents()) == [NAME]
    assert cache.contents()[NAME].size < 1000
    cache.remove(NAME)
    assert (outside / "mine").read_text() == "mine"
    assert sorted(path.name for path in place.parent.iterdir()) == [f".{NAME}-zzzzzzzz", other]


def test_a_lock_that_is_a_link_does_not_empty_what_it_points_to(place: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    lock = cache.lock_of(place)
    lock.unlink()
    lock.symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"):
        cache.remove(NAME)
    assert mine.read_text() == "mine"
    assert place.exists()


def test_what_is_being_built_stays(place: Path) -> None:
    with cache.locked(place):
        assert cache.remove(NAME) is None
        assert place.exists()
    assert cache.remove(NAME) is not None


def test_a_lock_that_was_removed_locks_nobody_out_nor_two_in(place: Path) -> None:
    """Who waited for a lock that `remove` took away must not build beside whoever made it anew."""
    waits, entered, leave = threading.Event(), threading.Event(), threading.Event()

    def build() -> None:
        waits.set()
        with cache.locked(place):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=build)
    with cache.locked(place):
        thread.start()
        waits.wait(20)
        assert not entered.wait(0.2)
        cache.lock_of(place).unlink()
    assert entered.wait(20)
    with cache.locked(place, wait=False) as ours:
        assert not ours
    leave.set()
    thread.join()
    with cache.locked(place, wait=False) as ours:
        assert ours


def build_often(_: str) -> list[str | None]:
    cache.compile_checked = lambda *_: (b"cubin", {})  # type: ignore[assignment]
    return [cache.build(sm90_attention.VARIANTS["fp8-fp32"]).note for _ in range(100)]


def clear_until(end: str) -> int:
    cleared = 0
    while not Path(end).exists():
        for name in cache.contents():
            cleared += cache.remove(name) is not None
    return cleared


def test_building_and_clearing_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    end = tmp_path / "end"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        clearing = [pool.apply_async(clear_until, (str(end),)) for _ in range(2)]
        building = [pool.apply_async(build_often, ("",)) for _ in range(2)]
        try:
            notes = [note for each in building for note in each.get(100)]
        finally:
            end.touch()
        assert sum(each.get(100) for each in clearing) > 0
    assert len(notes) == 200
    assert set(notes) == {None}  # nobody had to give the cache up


def test_facts_of_an_earlier_version_are_no_kernel(tmp_path: Path) -> None:
    kernel = listing.KERNELS["prologue-fp8-fp32"].kernel
    cubin = cache.build(kernel, tmp_path).cubin
    facts = json.loads(cubin.with_name("kernel.json").read_text())
    for used in facts["functions"].values():
        del used["shared_bytes"]
    cubin.with_name("kernel.json").write_text(json.dumps(facts))
    again = cache.build(kernel, tmp_path)
    assert again.fresh
    assert again.note is None
    assert not cache.build(kernel, tmp_path).fresh


def test_resources_that_ptxas_does_not_mention_are_zero() -> None:
    log = "Compiling entry function 'f' for 'sm_90a'\nUsed 3 registers\nCompiling entry function 'g' for 'sm_90a'\n"
    log += "8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
    log += "Used 5 registers, used 2 barriers, 64 bytes smem"
    assert cache.resources(log) == {"f": cache.Resources(3, 0, 0, 0, 0), "g": cache.Resources(5, 16, 8, 64, 2)}


def test_no_home_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FPSGEN_CACHE_DIR", "~nobody-of-that-name/a")
    with pytest.raises(UsageError, match="no such home folder"):
        cache.folder()


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels will be kept."""
    monkeypatch.setenv("FPSGEN_CACHE_DIR", str(tmp_path))
    return tmp_path / "kernels"


def test_another_user_can_read_what_one_has_built(empty: Path) -> None:
    """A container is often built as root and run as somebody else."""
    before = os.umask(0o022)
    try:
        built = cache.build(sm90_attention.VARIANTS["fp8-fp32"])
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (built.cubin.parent, built.cubin)] == [0o755, 0o644]


@pytest.mark.parametrize("kind", ["a file", "a link", "a dangling link"])
def test_what_stands_in_a_kernel_s_place_is_replaced(empty: Path, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if kind == "a link":
        elsewhere.mkdir()
        (elsewhere / "mine").write_text("mine")
    empty.mkdir(parents=True)
    place = empty / cache.name_of(sm90_attention.VARIANTS["fp8-fp32"])
    place.write_text("") if kind == "a file" else place.symlink_to(elsewhere)
    assert cache.build(sm90_attention.VARIANTS["fp8-fp32"]).note is None
    assert place.is_dir()
    assert not place.is_symlink()
    if kind == "a link":
        assert (elsewhere / "mine").read_text() == "mine"


def test_sources_are_utf_8_whatever_the_locale_says() -> None:
    code = "from fpsgen.kernels import cache; print(len(cache.sources('sm90_attention')[0]))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert int(found.stdout) == len(cache.sources("sm90_attention")[0]), found.stderr
