"""Wrong values, contradictions and files that are none: what people type after `fpsgen generate`, and a part of the
sentence that refuses it; cases of `tests/e2e/test_wrong_inputs.py`."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fpsgen.video import VideoWriter

PRESET = 'format = 1\n[[phase]]\nsigma = [1.0, 0.0]\nwindow = "dense"\n'

# Each line: what is said | what is typed, as a shell would have it.
LINES = """
the prompt is empty                         | ''
holds only characters that cannot be seen   | $'\\u2060\\u2800'
the prompt has 6000 characters              | $LONG
PROMPT is missing                           | --steps 3
what these words are for                    | a cat
the prompt is empty                         | -
the negative prompt has 6000 characters     | cat --negative $LONG
no option --frmes                           | cat --frmes 5
--seed needs a value                        | cat --seed
--verbose takes no value                    | cat --verbose=yes
--res potato is not a size                  | cat --res potato
is not a size                               | cat --res 480
is not a size                               | cat --res -64x64
each side must be 16 to 4096 pixels         | cat --res 0x0
9999999x9999999                             | cat --res 9999999x9999999
833x481: both sides must be even             | cat --model pocket --res 833x481
4n + 1                                      | cat --frames 80
--frames 0                                  | cat --frames 0
--frames -3                                 | cat --frames -3
at most 4093                                | cat --frames 1000001
this is not a whole number                  | cat --frames 1.5
--steps 0: must be 1 to 1000                | cat --steps 0
--steps 1001: must be                       | cat --steps 1001
this is not a whole number                  | cat --steps many
--guidance -1: must be 0 to 100             | cat --guidance -1
--guidance nan                              | cat --guidance nan
--guidance inf                              | cat --guidance inf
--guidance-low 101                          | cat --guidance-low 101
pocket has one transformer                  | cat --model pocket --guidance-low 3
--shift 0                                   | cat --shift 0
--shift nan                                 | cat --shift nan
there is no such choice                     | cat --solver ddim
the solver lightx2v has 4 steps             | cat --solver lightx2v --steps 8
noise levels of its own                     | cat --solver fastwan --shift 3
noise levels of its own                     | cat --solver turbowan --sigmas diffusers
there is no such choice                     | cat --sigmas karras
--seed -1                                   | cat --seed -1
--seed 18446744073709551616                 | cat --seed 18446744073709551616
this is not a whole number                  | cat --seed 0x10
runs on cpu and cuda                        | cat --device tpu
no GPU's number                             | cat --device cuda:x
one CPU                                     | cat --device cpu:1
there is no such choice                     | cat --dtype fp16
CUDA graphs need a CUDA GPU                 | cat --graphs --device cpu
cannot tell the video format                | cat -o video
cannot tell the video format                | cat -o video.avi
the name of a video, not of a folder        | cat -o folder.mp4
the folder nowhere does not exist           | cat -o nowhere/a.mp4
is not a folder                             | cat -o notes.txt/a.mp4
is not a regular file                       | cat -o pipe.mp4
no such user                                | cat -o ~nobody-of-that-name/a.mp4
name too long                               | cat -o $LONG.mp4
mine.mp4 exists, and --no-clobber keeps it  | cat -o mine.mp4 --no-clobber
is the image: the video would replace it    | cat --model pocket --image gif.gif -o gif.gif
is the preset: the video would replace it   | cat --model pocket --preset preset.mp4 -o preset.mp4
there is no model nope                      | cat --model nope
the model's name is empty                   | cat --model ''
cannot be used                              | cat --model folder.mp4
notes.txt                                   | cat --model notes.txt
there is no preset 'nope'                   | cat --preset nope
it is not a regular file                    | cat --preset folder.mp4
is not TOML                                 | cat --preset notes.txt
is not UTF-8 text                           | cat --preset image.png
it is not a regular file                    | cat --preset /dev/null
it is for 14b                               | cat --model pocket --preset 14b-480p-fast
there is no key 'densty'                    | cat --preset typo.toml
there is no file nope.safetensors           | cat --lora nope.safetensors
does not begin as a .safetensors file       | cat --lora noise.safetensors
the scale strong is no number               | cat --lora lora.safetensors:strong
should be the LoRA, but is no model of Wan  | cat --lora weights.safetensors
there is no such file                       | cat --image nope.png
cannot be read                              | cat --image notes.txt
it is no image, or a damaged one            | cat --image cut.png
not a regular file                          | cat --image /dev/zero
makes videos of text alone                  | cat --model pocket --image image.png
the models that are chosen by default       | cat --image image.png
takes no last image                         | cat --model pocket --last-image image.png
nope                                        | cat --model pocket --vae nope
notes.txt                                   | cat --model pocket --text-encoder notes.txt
image                                       | cat --model pocket --image-encoder notes.txt
"""


def cases() -> list[tuple[str, list[str]]]:
    """What is said, and the words that are typed."""
    lines = (line.partition(" | ") for line in LINES.strip().splitlines())
    return [(says.strip(), [_word(word) for word in shlex.split(typed)]) for says, _, typed in lines]


def _word(word: str) -> str:
    word = word.replace("$LONG", "a" * 6000)
    return word[1:].encode().decode("unicode_escape") if word.startswith("$\\") else word


def furnish(folder: Path) -> None:
    """The files that the lines name."""
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "notes.txt").write_text("a shopping list: milk, bread\n")
    (folder / "typo.toml").write_text(PRESET + "densty = 0.5\n")
    (folder / "preset.mp4").write_text(PRESET)
    Image.new("RGB", (64, 48), "red").save(folder / "image.png")
    Image.new("RGB", (64, 48), "red").save(folder / "gif.gif")
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:60])
    (folder / "noise.safetensors").write_bytes(b"\x00\xff" * 400)
    save_file({"a": torch.zeros(2)}, folder / "weights.safetensors")
    save_file({"blocks.0.ffn.0.lora_A.weight": torch.zeros(1, 2)}, folder / "lora.safetensors")
    for name, told in (("mine.mp4", None), ("foreign.mp4", {"title": "holiday"})):
        with VideoWriter(folder / name, (48, 32), 16) as writer:
            writer.write(np.zeros((2, 32, 48, 3), np.uint8))
            writer.finish(json.loads(json.dumps(told)))
