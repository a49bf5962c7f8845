"""`fpsgen sheet`: frames of several videos on one picture."""

from __future__ import annotations

from pathlib import Path

from fpsgen import files
from fpsgen.cli.options import expand
from fpsgen.cli.output import Output
from fpsgen.errors import UsageError
from fpsgen.printable import printable

EXAMPLES = """
fpsgen sheet cats/
fpsgen sheet cat-*.mp4 --columns 8 -o cats.png
"""


def sheet(videos: list[Path], output: Path | None = None, columns: int = 5, json: bool = False) -> None:
    """Show frames of several videos on one picture, a contact sheet: which seed is the best?

    Each video has a row, with its name, and with the seed and the prompt that it was made with.
    """
    out = Output(json)
    place = files.free(Path("sheet.png")) if output is None else expand(output)
    if place.suffix.lower() != ".png":
        raise UsageError(f"-o {printable(place)}: a sheet is a .png file", hint="try -o sheet.png")
    there = files.check_place(place, "sheet.png")
    out.loading("reading videos")
    from fpsgen import sheet  # which waits for Pillow

    found = [row for video in videos for row in sheet.rows(expand(video))]
    if there and any(video.exists() and place.samefile(video) for video in found):
        raise UsageError(f"-o {printable(place)} is one of the videos", hint="choose another -o")
    if there and any(place.samefile(frame) for video in found for frame in sheet.frames_in(video)):
        raise UsageError(f"-o {printable(place)} is a frame of one of the videos", hint="choose another -o")
    strips = [sheet.read(video, columns) for video in found]
    if there:
        out.note(f"{printable(place)} exists: the sheet replaces it")
    page = sheet.draw(strips)
    with files.refused(place, "choose another -o", "output"), files.beside(place) as whole:
        page.save(whole, "PNG")
        whole.replace(files.resolved(place))  # a link stays one
    told = [{"file": str(one.path), "frames": one.frames, "seed": one.seed} for one in strips]
    out.result(str(place), {"output": str(place), "videos": told}, copied=True)
