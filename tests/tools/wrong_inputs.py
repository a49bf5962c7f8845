"""Wrong values, contradictions and files that are none: what people type after `fpsgen generate`, and a part of the
sentence that refuses it; cases of `tests/e2e/test_wrong_inputs.py`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fpsgen.video import VideoWriter

# What the comment of a video by the pocket model says.
MADE = {
    "model": "pocket v1", "loras": [], "width": 160, "height": 96, "frames": 5, "fps": 16, "steps": 2, "guidance": 4.0,
    "shift": 3.0, "negative": "", "solver": "unipc", "grid": "original", "seed": 3, "scale_to": None,
    "preset": {"name": "bf16", "tile": None, "phases": [{"sigma": [1.0, 0.0], "window": None}]},
}  # fmt: skip
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
name too long                               | cat -o $FULL.mp4
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
--gpus 0                                    | cat --gpus 0
--gpus 1000                                 | cat --gpus 1000
--gpus 65: a model of 3 heads               | cat --model pocket --gpus 65
this is not a whole number                  | cat --gpus all
--device cuda:1 is one GPU, and --gpus 2    | cat --gpus 2 --device cuda:1
--offload maybe: there is no such choice    | cat --offload maybe
--preview 0: must be at least 1             | cat --preview 0
this is not a whole number                  | cat --preview often
several videos need a folder                | cat --resume --seeds 0-3 -o x.mp4
PROMPT is missing                           | --resume
there is a prompt beside --prompts          | cat --prompts prompts.txt
nope.txt                                    | --prompts nope.txt
it is not a regular file                    | --prompts folder.mp4
is not UTF-8 text                           | --prompts image.png
has no prompt                               | --prompts empty.txt
standard input                              | --prompts -
there is no key 'sed'                       | --prompts wrong.jsonl
would be called                             | --prompts twice.txt
several videos need a folder                | --prompts prompts.txt -o new.mp4
several videos need a folder                | cat --seeds 0-7 -o new.mp4
--seeds and --seed contradict each other    | cat --seeds 0-7 --seed 3
--seeds 7-0                                 | cat --seeds 7-0
--seeds a                                   | cat --seeds a
--seeds ''                                  | cat --seeds ''
more than 10000 videos                       | cat --seeds 0-99999999999
--last-frame-to is for one video            | cat --seeds 0-7 --last-frame-to last.png
is the name of a video, not of a folder     | cat -o folder.mp4/
has room for one frame                      | cat --frames 5 -o one.png
--crf 52: must be 1 to 51                   | cat --crf 52 -o a.mp4
--crf -1                                    | cat --crf -1
--crf 10: a.gif                             | cat --crf 10 -o a.gif
--crf 10: frames                            | cat --crf 10 -o frames/
--fps 0: must be 1 to 120                   | cat --fps 0
--fps 121                                   | cat --fps 121
at most 50 frames a second                  | cat --fps 60 -o a.gif
a last frame is a .png file                 | cat --last-frame-to last.jpg
is where the video goes                     | cat --frames 1 -o one.png --last-frame-to one.png
nowhere                                     | cat --last-frame-to nowhere/last.png
exists, and --no-clobber keeps it           | cat --last-frame-to image.png --no-clobber
is the image: the last frame would replace  | cat --model pocket --image image.png --last-frame-to image.png
there is no such file                       | --from nope.mp4
ile name too long                           | --from $LONG
mine.mp4 does not say that fpsgen made it   | --from mine.mp4
foreign.mp4 does not say that fpsgen made   | --from foreign.mp4
does not tell how fpsgen made it            | --from half.mp4
it is a damaged video                       | --from cut.mp4
notes.txt is no video that fpsgen makes     | --from notes.txt
gif.gif is a gif, which has no place        | --from gif.gif
it is a folder without video.json           | --from folder.mp4
image.png does not say that fpsgen made it  | --from image.png
--from needs a value                        | --from
made.mp4 is the video that is made again    | --from made.mp4 -o made.mp4
--last-frame-to would replace a frame of it | --from earlier --last-frame-to earlier/0001.png
there is a prompt beside --prompts          | cat --from made.mp4 --prompts prompts.txt
--lora style.safetensors, which lora.mp4    | --from lora.mp4
the model /nowhere/wan, which gone.mp4 was  | --from gone.mp4
--steps 0: must be 1 to 1000                | --from made.mp4 --steps 0
makes videos of text alone                  | --from made.mp4 --image image.png
the solver fastwan has 3 steps              | --from made.mp4 --solver fastwan --steps 9
"""


def cases() -> list[tuple[str, list[str]]]:
    """What is said, and the words that are typed."""
    lines = (line.partition(" | ") for line in LINES.strip().splitlines())
    return [(says.strip(), [_word(word) for word in shlex.split(typed)]) for says, _, typed in lines]


def _word(word: str) -> str:
    word = word.replace("$LONG", "a" * 6000).replace("$FULL", "a" * 250)  # the latter's state would have no name
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
    (folder / "prompts.txt").write_text("a cat\na dog\n")
    (folder / "empty.txt").write_text("# nothing\n\n")
    (folder / "twice.txt").write_text("a cat\nA cat!\n")
    (folder / "wrong.jsonl").write_text('{"prompt": "a cat", "sed": 1}\n')
    half = {"fpsgen": "0.1.0", "prompt": "a cat"}
    made = half | MADE
    lora = {"file": "style.safetensors", "path": "/nowhere/style.safetensors", "scale": 1.0, "sha256": "0"}
    videos = {
        "mine": None, "foreign": {"title": "holiday"}, "half": half, "made": made, "lora": made | {"loras": [lora]},
        "gone": made | {"model": "/nowhere/wan", "model_path": "/nowhere/wan"},
    }  # fmt: skip
    places = {folder / f"{name}.mp4": told for name, told in videos.items()} | {folder / "earlier": made}
    for place, told in places.items():
        with VideoWriter(place, (48, 32), 16) as writer:
            writer.write(np.zeros((2, 32, 48, 3), np.uint8))
            writer.finish(told)
    (folder / "cut.mp4").write_bytes((folder / "made.mp4").read_bytes()[:24] + b"\xff" * 99)
