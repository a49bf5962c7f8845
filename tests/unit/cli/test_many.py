"""Where several videos go, which are there already, and who makes which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fpsgen.cli import many
from fpsgen.cli.lines import Faults, PromptLine, Wanted
from fpsgen.errors import UsageError
from fpsgen.formats import Encoding
from fpsgen.weights.known import NOTHING, Given

SAME = {"model": "pocket", "parts": NOTHING}


def places(folder: Path, *lines: PromptLine) -> list[many.Place]:
    return many.places(lines, folder, SAME, Faults("a.txt"))


def made(place: many.Place) -> None:
    place.path.write_bytes(b'....comment{"fpsgen": "1", "asked": "%s"}' % place.asked.encode())


def test_what_is_there_is_found_and_what_was_asked_for_otherwise_is_kept(tmp_path: Path) -> None:
    line, other = PromptLine("a cat", seed=1), PromptLine("a cat", seed=1, steps=3)
    (first,) = places(tmp_path, line)
    assert (first.path, first.is_there) == (tmp_path / "a-cat-1.mp4", False)
    made(first)
    (second,) = places(tmp_path, other)
    assert (second.path, second.is_there) == (tmp_path / "a-cat-1-2.mp4", False)
    made(second)
    assert [places(tmp_path, each)[0].path for each in (line, other)] == [first.path, second.path]
    assert all(places(tmp_path, each)[0].is_there for each in (line, other))


def test_what_does_not_tell_counts_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    (tmp_path / "b.mp4").mkdir()
    found = places(tmp_path, PromptLine("a", 1, name="a.gif"), PromptLine("b", 1, name="b"))
    assert [each.is_there for each in found] == [True, True]


def test_a_number_is_no_name_of_another_line(tmp_path: Path) -> None:
    (first,) = places(tmp_path, PromptLine("a", 1, name="shot"))
    made(first)
    found = places(tmp_path, PromptLine("a", 2, name="shot", number=1), PromptLine("a", 3, name="shot-2", number=2))
    assert [each.path.name for each in found] == ["shot-3.mp4", "shot-2.mp4"]


def test_images_and_presets_count_by_their_content(tmp_path: Path) -> None:
    file, copy, third = (tmp_path / name for name in ("a.png", "b.png", "c.png"))
    for path, data in ((file, b"1"), (copy, b"1"), (third, b"2")):
        path.write_bytes(data)
    hashes = [many.asked_for(PromptLine("a", 1, image=each), SAME) for each in (file, copy, third)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert many.asked_for(PromptLine("a", 1, name="x", number=3), SAME) == many.asked_for(PromptLine("a", 1), SAME)
    assert many.asked_for(PromptLine("a", 1), SAME | {"model": "14b"}) != many.asked_for(PromptLine("a", 1), SAME)


def test_long_prompts_that_begin_alike_have_names_of_their_own(tmp_path: Path) -> None:
    begin = "a cinematic shot of a cat that walks through the rain in a large city "
    one, two = (
        place.path.name
        for place in places(tmp_path, PromptLine(begin + "at night", 0), PromptLine(begin + "at dawn", 0))
    )
    assert one != two
    assert len(one) < 90


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (PromptLine("a cat!", 0, number=1), PromptLine("A cat", 0, number=3)),
        (PromptLine("a", 0, name="Dog", number=1), PromptLine("b", 0, name="dog.mp4", number=3)),
        (PromptLine("a", 0, name="\u00e9", number=1), PromptLine("b", 0, name="e\u0301", number=3)),
    ],
)
def test_two_lines_of_one_name_are_refused(tmp_path: Path, first: PromptLine, second: PromptLine) -> None:
    with pytest.raises(UsageError, match=r"^a\.txt, line 3: its video would be called .*, as that of line 1$"):
        places(tmp_path, first, second)


def test_a_folder_is_made_and_gone_again_with_what_is_refused(tmp_path: Path) -> None:
    found = many.folder(f"{tmp_path}/a/b/")
    assert found == tmp_path / "a" / "b"
    with pytest.raises(UsageError, match="no such"), many.folder_made(found):
        raise UsageError("no such model")
    assert not found.exists()
    with many.folder_made(found):
        assert found.is_dir()
    with pytest.raises(UsageError), many.folder_made(found):
        raise UsageError("no such model")
    assert found.is_dir()  # it was there before
    with pytest.raises(UsageError, match="several videos need a folder"):
        many.folder(str(tmp_path / "a.mp4"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"), many.folder_made(tmp_path / "file" / "b"):
        pass


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_each_video_is_made_by_one_process(tmp_path: Path, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    every = places(tmp_path, *(PromptLine("a", seed) for seed in range(5)))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    made = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        made += many.Tally(every, many.Share.of_process()).todo
    assert sorted(place.path.name for place in made) == sorted(place.path.name for place in every)


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("a", "2"), ("0", "0"), ("0", "")])
def test_an_environment_that_cannot_be(rank: str, world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(UsageError, match="no process of a run"):
        many.Share.of_process()


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert many.Share(3, 4).device(None) == "cuda:3"
    assert many.Share(3, 4).device("cuda") == "cuda:3"
    assert many.Share(3, 4).device("cuda:0") == "cuda:0"
    assert many.Share().device(None) is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert many.Share(3, 4).device(None) is None


CHANGES: tuple[dict[str, Any], ...] = (
    {"model": "14b"}, {"lora": ["a.safetensors"]}, {"preset": "fast"}, {"dtype": "bf16"},
    {"parts": Given(vae=Path("v"))}, {"encoding": Encoding(crf=20)}, {"encoding": Encoding(fps=24)},
)  # fmt: skip
ALIKE: tuple[dict[str, Any], ...] = (
    {"device": "cpu"}, {"graphs": True}, {"gpus": 2}, {"resume": True}, {"no_clobber": True},
    {"encoding": Encoding(preview=1)},
)  # fmt: skip


@pytest.mark.parametrize(("change", "another"), [(each, True) for each in CHANGES] + [(each, False) for each in ALIKE])
def test_what_makes_another_video(change: dict[str, Any], another: bool) -> None:
    line = PromptLine("a cat", seed=1)
    asked = [many.asked_for(line, many.spelled(wanted)) for wanted in (Wanted(), Wanted(**change))]
    assert (asked[0] != asked[1]) is another
