"""Prompt files of many videos: what is read, and what is refused with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fpsgen.cli.lines import MOST, PromptLine, each_with, parse_seeds, read
from fpsgen.errors import UsageError


def lines_of(file: Path, usual: PromptLine | None = None) -> list[PromptLine]:
    found, faults = read(file, usual or PromptLine())
    faults.tell()
    return found


def written(folder: Path, text: str, name: str = "prompts.txt") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_prompts_and_objects_are_read_with_what_is_usual(tmp_path: Path) -> None:
    own = '{"prompt": "a dog", "seed": 7, "size": "64x96", "num-frames": 5, "guidance": 1, "name": "d"}'
    text = f"# shots\n\na cat\n{own}\n"
    usual = PromptLine(steps=2, frames=9, negative="blur")
    assert lines_of(written(tmp_path, text), usual) == [
        PromptLine("a cat", steps=2, frames=9, negative="blur", number=3),
        PromptLine("a dog", 7, "64x96", 5, 2, 1, negative="blur", name="d", number=4),
    ]


def test_a_line_separator_of_unicode_inside_a_prompt_ends_no_line(tmp_path: Path) -> None:
    (line,) = lines_of(written(tmp_path, '\ufeff{"prompt": "a\u2028b", "steps": null}\r\n', "a.jsonl"))
    assert (line.prompt, line.steps, line.number) == ("a\u2028b", None, 1)


def test_images_lie_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (line,) = lines_of(written(tmp_path, '{"prompt": "a", "image": "b.png", "last_image": "/c.png"}'))
    assert (line.image, line.last_image) == (tmp_path / "b.png", Path("/c.png"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a", "stepps": 3}', r"no key 'stepps'.*did you mean steps"),
        ('{"prompt": "a", "colour": 3}', r"no key 'colour'.*the keys are prompt, seed"),
        ('{"prompt": "a", "steps": 2, "num_steps": 3}', "the key steps is there twice"),
        ('{"prompt": "a", "steps": "3"}', 'steps is "3", which is not a whole number'),
        ('{"prompt": "a", "steps": true}', "steps is true, which is not a whole number"),
        ('{"prompt": "a", "steps": 2.0}', r"steps is 2\.0, which is not a whole number"),
        ('{"prompt": "a", "steps": 0}', "steps=0: must be 1 to 1000"),
        ('{"prompt": "a", "guidance": NaN}', "guidance=nan: must be 0 to 100"),
        ('{"prompt": "a", "guidance": {"high": 3}}', "guidance is .* which is not a number"),
        ('{"prompt": "a", "seed": -1}', "seed=-1: must be 0 to"),
        ('{"prompt": "a", "seed": 18446744073709551616}', "must be 0 to"),
        ('{"prompt": "a", "solver": "ddim"}', "solver is 'ddim': there is no such choice.*unipc"),
        ('{"prompt": "a", "solver": "lightx2v", "steps": 9}', "the solver lightx2v has 4 steps"),
        ('{"prompt": "a", "res": "big"}', "res=big is not a size"),
        ('{"prompt": ["a"]}', r'prompt is \["a"\], which is not text'),
        ('{"prompt": "a", "name": "../b"}', r"name is '../b', which is not the name of a file"),
        ('{"prompt": "a", "name": ".b"}', "not the name of a file"),
        ('{"prompt": "a", "name": ""}', "name is"),
        ('{"prompt": "a", "name": "\\u0000"}', "name is"),
        ('{"prompt": "a", "image": "\\ud800"}', "image is"),
        ('{"prompt": "\\ud800"}', "not UTF-8 text"),
        ('{"prompt": " "}', "the prompt is empty"),
        ('{"seed": 3}', "there is no prompt"),
        ('{"prompt": "a"', "this is not JSON"),
        ('{"prompt": "a", "steps": ' + "9" * 5000 + "}", "this is not JSON"),
        ('{"prompt": ' + "[" * 100_000, "this is not JSON"),
        ('{"prompt": "a"} {"prompt": "b"}', "this is not JSON"),
        ("a cat", "this is not a JSON object"),
        ('["a cat"]', "this is not a JSON object"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, told: str) -> None:
    file = written(tmp_path, f'{{"prompt": "fine"}}\n\n{line}\n', "a.jsonl")
    with pytest.raises(UsageError, match=r"a\.jsonl, line 3: ") as fault:
        lines_of(file)
    assert re.search(told, f"{fault.value!s}; {fault.value.hint}")


def test_all_wrong_lines_are_counted_and_the_first_are_told(tmp_path: Path) -> None:
    text = "a cat\n" + '{"prompt": "a", "steps": 0}\n' * 5
    said = r"^5 lines of .* are wrong: line 2: .*; line 3: .*; line 4: .*; and lines 5, 6$"
    with pytest.raises(UsageError, match=said) as fault:
        lines_of(written(tmp_path, text))
    assert str(fault.value.hint).startswith("line 2: ")
    with pytest.raises(UsageError, match=r"and lines 5, 6, .* 28 and 62 more$"):
        lines_of(written(tmp_path, text * 17))


@pytest.mark.parametrize("data", [b"", b"\n# nothing\n", b"\xff\xfea\n", b"\x00" * 10])
def test_a_file_without_prompts_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.txt"):
        lines_of(tmp_path / "a.txt")
    with pytest.raises(UsageError, match="cannot read the prompts"):
        lines_of(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", (3,)), ("0-3", (0, 1, 2, 3)), ("1, 5,9", (1, 5, 9)), ("2-3,3,1", (2, 3, 1)), ("7-7", (7,))],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "-1", "1-", "1,,2", "3-1", "0x1", "1.5", "9" * 21, "0-10000", "٣", f"0-{2**64}"]
)
def test_what_is_no_seeds(text: str) -> None:
    with pytest.raises(UsageError):
        parse_seeds(text)


def test_each_line_is_made_with_each_seed_but_for_its_own() -> None:
    lines = [PromptLine("a", name="x", number=1), PromptLine("b", seed=9, name="y", number=2)]
    assert [(one.prompt, one.seed, one.name) for one in each_with(lines, (0, 1))] == [
        ("a", 0, "x-0"), ("a", 1, "x-1"), ("b", 9, "y"),
    ]  # fmt: skip
    assert each_with(lines, (4,))[0].name == "x"
    with pytest.raises(UsageError, match=f"more than {MOST}"):
        each_with([PromptLine("a")] * 6, range(MOST // 5))


def test_a_file_of_too_many_lines_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of lines, which another tool wrote, are refused at once; lines that ask for nothing do not count."""
    monkeypatch.setattr("fpsgen.cli.lines.MOST", 3)
    assert [line.number for line in lines_of(written(tmp_path, "a\r\n\n# b\rc\nd\n\n"))] == [1, 4, 5]
    monkeypatch.setattr(PromptLine, "check", lambda _: pytest.fail("the lines were looked at"))
    with pytest.raises(UsageError, match="more than 3 videos"):
        lines_of(written(tmp_path, "a\n" * 4))


def test_a_standard_input_that_is_closed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="cannot read the prompts in standard input: it is closed"):
        lines_of(Path("-"))
