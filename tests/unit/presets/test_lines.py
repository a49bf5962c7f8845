"""The line that an error names is the one that is wrong, however the file is laid out."""

from __future__ import annotations

import random
import re
import time

import pytest

from fpsgen.errors import UsageError
from fpsgen.presets import file
from tests.tools.presets import random_preset

JUNK = [
    "# [[phase]]", "# sigma = [0.5, 0.1] ]]", "", "   ", "# \"\"\" ''' \" '", "#", "\t# a\u2028b\u0085c = 1",
    "# é [windows]",
]  # fmt: skip


def line_told(text: str) -> tuple[int | None, str]:
    """The line that the refusal of a text names, and what it says."""
    with pytest.raises(UsageError) as caught:
        file.parse(text.encode(), "x.toml")
    match = re.match(r"preset x.toml, line (\d+): ", str(caught.value))
    return (int(match[1]) if match else None), str(caught.value)


def laid_out(text: str, rng: random.Random) -> str:
    """The same file with comments, blank lines, indentation and quoted keys strewn in."""
    lines = []
    for line in text.split("\n"):
        lines += rng.sample(JUNK, rng.randrange(3))
        key, equals, value = line.partition(" = ")
        if equals and rng.random() < 0.3:
            key = rng.choice((f'"{key}"', f"'{key}'", f" {key}\t"))
        if equals and value.startswith("[") and rng.random() < 0.3:  # one value, several lines
            value = value.replace("[", "[ # [x]\n\n  ", 1).replace(", ", ",\n  ", 1)
        if re.fullmatch(r"\[+[a-z.]+\]+", line) and rng.random() < 0.3:
            key = re.sub(r"([a-z]+)", r' "\1" ', line) + " # ]] = ["
        lines.append(key + (equals and rng.choice((" = ", "=", "  =\t")) + value))
    return "\n".join(lines)


@pytest.mark.parametrize("seed", range(60))
def test_a_value_that_is_made_wrong_is_told_with_its_line(seed: int) -> None:
    rng = random.Random(seed)
    text = laid_out(file.text(random_preset(seed)), rng)
    lines = text.split("\n")
    assert file.parse(text.encode(), "random") == random_preset(seed)  # layout changes nothing
    keys = "qk|pv|smooth_k|heads|density|top|rest|at|model|about"
    places = [i for i, line in enumerate(lines) if re.match(rf"\s*[\"']?({keys})[\"']?\s*=", line)]
    ends = rng.choice(("\n", "\r\n"))
    for place in places:
        if "density" in lines[place] and place > text[: text.find("[measured]")].count("\n") > 0:
            continue  # that of [measured] may be any number
        wrong = [*lines[:place], lines[place].partition("=")[0] + "= 1979-05-27", *lines[place + 1 :]]
        line, said = line_told(ends.join(wrong))
        assert line == place + 1, said


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('format = 1\nphase = [{sigma = [1.0, 0.5]}, {sigma = [0.5, 0.0], qk = "fp4"}]\n', 2),
        ('format = 1\nphase = [\n  {sigma = [1.0, 0.5]},\n  {sigma = [0.5, 0.0], qk = "fp4"},\n]\nmodel = "14b"\n', 2),
        ('format = 1\nphase = [{sigma = [1.0, 0.0], layers = [{at = "0", qk = "no"}]}]\n', 2),
        ('format = 1\n[[phase]]\nsigma = [1.0, 0.0]\nlayers = [\n{at = "0", pv = "no"}]\n', 4),
        ("format = 1\nwindows.a = [1, 1, 1]\nwindows.b = [1]\n[[phase]]\nsigma = [1, 0]\nheads = 'a'\n", 3),
        ('format = 1\nwindows."b" = [1]\n[[phase]]\nsigma = [1, 0]\n', 2),
        ('format = 1\n"w\\u0069ndows" . b = [1]\n[[phase]]\nsigma = [1, 0]\n', 2),
        ('format = 1\n[ "windows" ] # ]\n\n"b"= [1]\n[[phase]]\nsigma = [1, 0]\n', 4),
        ("format = 1\n[[ 'phase' ]]\nsigma = [1, 0]\n[[phase . \"layers\"]]\nat = '0'\nqk = 'no'\n", 6),
        ('about = """\nformat = 1\n[[phase]]\n"""\nformat = 2\n', 5),
        ("about = '''\n\"\"\"\nformat = 1'''''\nformat = 2\n", 4),
        ('about = """a\\"""\n"""\nformat = 2\n', 3),
        ('about = """"q" ""\n"""""\nformat = 2\n', 3),
        ('about = ["#", """\n]""", [\n["phase"],\n[[1]]]] # x\nformat = 2\n', 5),
        ('"a=b" = 1\nformat = 1\n[[phase]]\nsigma = [1, 0]\n', 1),
        ('format = 1\n"#" = 1\n[[phase]]\nsigma = [1, 0]\n', 2),
        ("# \u2028 \x85 \u2029\nformat = 2\n", 2),
        ("format = 1\n[[phase]]\nsigma = [\n1.0, # ]\n\n0.0]\nqk = 'no'\n", 7),
        ("format = 1\n[[phase]]\nsigma = [1, 0]\nwindow = [\n[3, 3],\n[3]\n]\n", 4),
        ("format = 1\n[phase.layers]\nat = '0'\n", 2),
        ("format = 1\n[[phase.layers]]\nat = '0'\n", 2),
    ],
)  # fmt: skip
def test_all_that_toml_allows(text: str, line: int) -> None:
    assert line_told(text)[0] == line


@pytest.mark.parametrize(
    "text",
    [
        "a." * 2**17,
        '"#".' + "a." * 2**17 + "a = 1",
        "x = {" + "a." * 2**16 + "a = 1}",
        "[" + "a." * 2**16 + "a]",
        "format = 1\n" + ".\n" * 2**17,
        '"\\"' * 2**16,
        '"""\\' * 2**16,
        "'''" * 2**16,
        "[" * 2**18,
        "x = " + "[" * 400 + "]" * 400,
        "x = " + "{a = " * 2**15,
        "format = 1\n" + "".join(f"a{i} = 1\n" for i in range(2**14)),
        "format = 1\n" + "".join(f"'{i}'.a = 1\n" for i in range(2**14)),
        "format = 1\n" + "[[phase]]\n" * 2**14,
        "\0" * 2**18,
        "format = 1\r\r\n",
        "0" * 2**18,
        "x = 0x" + "f" * 2**17,
        'format = 1\n[[phase]]\nsigma = [1, 0]\n[[phase.layers]]\nqk = "fp8"\nat = "0' + " " * 2**17 + 'x"\n',
    ],
    ids=lambda text: text[:20],
)
def test_attacks_end_in_a_sentence_and_soon(text: str) -> None:
    begin = time.process_time()
    line, said = line_told(text)
    assert time.process_time() - begin < 5
    assert line is None or 1 <= line <= text.count("\n") + 1
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize("seed", range(200))
def test_whatever_is_scrambled_is_read_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    text = file.text(random_preset(seed))
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(text))
        other = rng.randrange(len(text))
        junk = rng.choice(
            ('"', "'", '"""', "[", "]", "{", "}", ".", "=", "#", "\n", "\\", "\0", "é", "9", "-", ", ", "nan")
        )
        text = rng.choice(
            (text[:place] + junk + text[place:], text[:place] + text[place + 1 :], text[:place] + text[other:])
        )
    said = refusal(text)
    assert "\n" not in said
    match = re.match(r"preset x.toml, line (\d+): ", said)
    assert match is None or 1 <= int(match[1]) <= text.count("\n") + 1


def refusal(text: str) -> str:
    """What is said of a text, empty where it is a preset."""
    try:
        file.parse(text.encode(), "x.toml")
    except UsageError as fault:
        return str(fault)
    return ""
