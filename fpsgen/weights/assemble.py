"""A transformer in a file of its own, and the parts that go with it: those that the user named, those that lie beside
it, or those of models in the hub's cache.

ComfyUI keeps transformers in `diffusion_models` (or `unet`), and the other parts in folders beside that one.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path

from fpsgen.errors import ModelError, option, reason
from fpsgen.printable import printable
from fpsgen.wan.config import WanConfig
from fpsgen.weights import headers, hub, kinds, layout, shared
from fpsgen.weights.headers import some
from fpsgen.weights.known import PIECES, Given
from fpsgen.weights.layout import EXPERTS, PARTS, Checkpoint
from fpsgen.weights.shared import Fields

# ComfyUI's folders, the first of each as it calls them today.
_TRANSFORMERS = ("diffusion_models", "unet")
_BESIDE = {"text_encoder": ("text_encoders", "clip"), "vae": ("vae",), "image_encoder": ("clip_vision",)}
_ROOTS = ("", "models", "split_files")  # where a folder that people name has these
_SUFFIXES = (".safetensors", ".gguf")
_NOISE = (
    re.compile(r"(high|low)(?=[-_. ]?noise)", re.I),
    re.compile(r"(?<![a-z])(high|low)(?![a-z])", re.I),
    re.compile(r"(?<=[a-z])(High|Low)(?![a-z])"),
)
_BETWEEN = re.compile(r"[-_. ]+")
_DATE = re.compile(r"-\d{4}(\d\d)?(?=-(safetensors|gguf)$)")  # of a name whose words are joined by hyphens
_WAN = re.compile(r"wan|umt5", re.I)
_OTHERS_VAE = re.compile(r"qwen", re.I)  # of Wan's very shapes


def named_fields(given: Given) -> Fields:
    """The fields of a `Checkpoint` that named parts give; ModelError where one is nowhere, or another kind."""
    found: Fields = {}
    for part in (field.name for field in fields(given)):
        if path := getattr(given, part):
            found |= _named(part, path)
    return found


def _named(part: str, path: Path) -> Fields:
    words = PARTS[part].words
    hint = f"{option(part)} takes the file of the {words}, or the folder that has it"
    try:
        path = path.expanduser()
        if path.is_dir():
            if own := shared.in_folder(part, path) or shared.in_folder(part, path, alone=True):
                return own
            raise ModelError(f"the folder {printable(path)} holds no {words}", hint)
        if not path.is_file():
            raise ModelError(f"there is no {words} {printable(path)}", hint)
        return shared.in_file(part, path)
    except (OSError, RuntimeError, ValueError) as fault:
        raise ModelError(
            f"{option(part, str(path))}: {printable(reason(fault))}", hint=f"name the file of the {words}"
        ) from None
    except ModelError as error:
        raise ModelError(f"{error}", hint) from None


def of_file(file: Path, given: Given) -> Checkpoint:
    """The checkpoint whose transformer is in `file`, of two experts in it and in the other expert's file.

    ModelError where a part is nowhere, where the file is another kind, or where parts do not fit together.
    """
    if headers.is_pickled(file) and (contents := headers.contents(file)).channels:
        kinds.refuse_other_kinds(contents)  # what no other file of the same model would change
        message = f"{printable(file)} is a transformer in a pickled file"
        raise ModelError(message, hint="use the .safetensors file of the same model")
    high, low = _experts(file)
    folder = file.parent.parent if file.parent.name in (*EXPERTS, *EXPERTS.values()) else file.parent
    if folder != file.parent and not low:  # half of a Wan2.2 looks like a Wan2.1
        layout.refuse_half(file, file.parent)
        try:
            layout.check_index(folder)
        except ModelError as error:
            message = f"{printable(file)} is a part of {printable(folder)}: {error}"
            raise ModelError(message, error.marked_hint) from None
    own = layout.fields_of_experts([high], [low]) if low else layout.fields_of("transformer", [file])
    try:
        checkpoint = layout.recognise(folder)
    except ModelError:
        checkpoint = _assembled(file, own, given)
    else:
        if checkpoint.transformer != own["transformer"]:
            checkpoint = replace(checkpoint, **{"transformer_2": [], "boundary": None} | own)
        if not all(getattr(checkpoint, part) for part in shared.needed(checkpoint.config)):
            checkpoint = _assembled(file, own, given)  # a model from images beside those of another
    checkpoint = with_parts(checkpoint, given)
    layout.check_widths(checkpoint)
    return checkpoint


def with_parts(checkpoint: Checkpoint, given: Given) -> Checkpoint:
    """A checkpoint with the parts that the user named in the place of its own; ModelError where they do not fit."""
    named = named_fields(given)
    if not named:
        return checkpoint
    changed = replace(checkpoint, **named)
    layout.check_widths(changed)
    return changed


def transformer_in(folder: Path) -> Path | None:
    """The transformer of a folder that is no model's in one of the two formats, but has parts in files of their own, as
    ComfyUI's folders; of two experts the high-noise one's. None where the folder is no such folder; ModelError where it
    has several transformers."""
    files = [file for root in _ROOTS for place in _TRANSFORMERS for file in _weights(folder / root / place, deep=True)]
    if not files and not (folder / "model_index.json").exists():
        named = {PARTS[part].file for part in layout.OTHERS}
        plain = not any((folder / name).exists() for name in (*named, *PARTS, *EXPERTS.values()))
        files = list(_weights(folder)) if plain and not any(folder.glob("diffusion_pytorch_model*")) else []
    found: dict[Path, None] = {}
    half: ModelError | None = None
    for file in files:
        try:
            whole = headers.contents(file).is_whole
        except ModelError:  # a neighbour that cannot be read is nobody's part
            continue
        try:
            if whole:
                found[_experts(file)[0]] = None
        except ModelError as error:
            half = half or error
    if half and not found:
        raise half
    if len(found) > 1:
        names = some([str(file.relative_to(folder)) for file in found])
        hint = f"name the one that is meant: {option('model', next(iter(found)))}"
        raise ModelError(f"{printable(folder)} has {len(found)} transformers: {names}", hint)
    return next(iter(found), None)


def _weights(folder: Path, deep: bool = False) -> Iterator[Path]:
    """The weight files in a folder, or deep inside it, by name."""
    with contextlib.suppress(OSError):
        files = folder.rglob("*") if deep else folder.glob("*")
        yield from sorted(file for file in files if file.suffix in _SUFFIXES and file.is_file())


def _experts(file: Path) -> tuple[Path, Path | None]:
    """The high-noise and the low-noise expert's file, of which `file` is one; or itself alone. ModelError where the
    other one is not where its name says that it should be."""
    contents = headers.contents(file)
    if not (contents.is_whole and kinds.kind_of(contents).expert):
        return file, None
    home = file.parent.absolute()
    places = [file.parent, *(home.with_name(name) for name in _swapped(home.name))]
    names = [*_swapped(file.name), file.name]
    others = [place / name for place in places for name in names if place / name != file]
    if not any(map(_swapped, (file.name, home.name))):
        return file, None  # whose kind says what it is
    with headers.reading(others[0].parent):
        other = next((other for other in others if other.is_file()), None) or _alike(names[:-1], places)
    if other:
        noise = _found(file.name) or _found(home.name)
        return (file, other) if noise == "high" else (other, file)
    told = f"{printable(file)} is one of the two experts of a Wan2.2 model: there is no {printable(others[0].name)}"
    raise ModelError(told, hint=f"put the other expert's file into {shlex.quote(printable(others[0].parent))}")


def _alike(names: list[str], places: list[Path]) -> Path | None:
    """The file of one of these names but for what stands between words: Kijai's are T2V-A14B_HIGH and T2V-A14B-LOW. Or
    but for a date at the end, if only one is: LightX2V's newer high-noise expert ends in _1030, the low-noise one in
    none."""
    wanted = {_BETWEEN.sub("-", name).lower() for name in names}
    near = [(file, _BETWEEN.sub("-", file.name).lower()) for place in places for file in _weights(place)]
    alike = [file for file, name in near if name in wanted]
    undated = {_DATE.sub("", name) for name in wanted}
    dated = [file for file, name in near if _DATE.sub("", name) in undated]
    return alike[0] if alike else dated[0] if len(dated) == 1 else None


def _found(name: str) -> str:
    """Which noise a name says that an expert is for."""
    return next((match[1].lower() for pattern in _NOISE if (match := pattern.search(name))), "")


def _swapped(name: str) -> list[str]:
    """The name of the other expert's file or folder, if a name says which one it is of."""
    for pattern in _NOISE:
        if match := pattern.search(name):
            other = {"high": "low", "low": "high"}[match[1].lower()]
            other = other.upper() if match[1].isupper() else other.title() if match[1].istitle() else other
            return [name[: match.start()] + other + name[match.end() :]]
    return []


def _assembled(file: Path, own: Fields, given: Given) -> Checkpoint:
    """A transformer with the parts that were named, those beside it, and for what is nowhere there those in the hub's
    cache. own: the fields of a `Checkpoint` that the transformer gives."""
    config: WanConfig = own["config"]
    fit, found = shared.fits(config), {**own}
    unfit: dict[str, ModelError] = {}
    wanted = shared.needed(config)
    for part in wanted:
        if named := getattr(given, part):
            found |= _named(part, named)
            continue
        for candidate in _beside(part, file):
            try:
                fields_of_part = shared.in_file(part, candidate)
                if not fit(fields_of_part):
                    told = f"{printable(candidate)} is the {PARTS[part].words} of another model"
                    raise ModelError(told, hint="take all parts from one model")
            except ModelError as error:
                if _WAN.search(candidate.name):  # others lie there for other models
                    unfit.setdefault(part, error)
                continue
            found |= fields_of_part
            break
    homes = _homes(file)
    if text := given.text_encoder:  # beside which a tokenizer may lie
        homes += [text, text.parent, text.parent.parent]
    if place := next(filter(None, map(shared.tokenizer_in, homes)), None) or shared.tokenizer():
        found["tokenizer"] = place
    for part in [part for part in wanted if part not in found]:
        found |= shared.found(part, config)
    if lacking := [part for part in (*wanted, "tokenizer") if part not in found]:
        why = filter(None, (_damaged(part, file) or unfit.get(part) for part in lacking))
        raise next(why, None) or _missing(file, lacking, config)
    return Checkpoint("original", **found)


def _missing(file: Path, lacking: list[str], config: WanConfig) -> ModelError:
    """The error that names what is nowhere, with the commands that fetch it."""
    words = [PARTS[part].words if part in PARTS else part for part in lacking]
    told = f"{', '.join(words[:-1])} and {words[-1]} are" if len(words) > 1 else f"{words[0]} is"
    message = f"{printable(file)} is a transformer; its {told} neither beside it nor in the hub's cache"
    pieces = [shared.piece(part, config) for part in lacking]
    fetch = ", ".join(
        hub.pull_hint(hub.Cached(PIECES[each].repository, "not here", only=PIECES[each].files)) for each in pieces
    )
    named = [option(part) for part in lacking if part in PARTS]
    name = f", name them with {' and '.join(named)}" if named else ""
    return ModelError(message, hint=f"put the missing parts beside it{name}, or fetch them: {fetch}")


def _beside(part: str, file: Path) -> Iterator[Path]:
    """Files beside a transformer's that are a part: the original's, by name; then others by what they are, first those
    whose names speak of Wan, the largest, which is the most exact, first."""
    for home in _homes(file):
        yield from (home / name for name in shared.original_names(part) if (home / name).is_file())
    for home in _homes(file):
        near = list(_weights(home))
        for place in _BESIDE[part]:
            near += _weights(home / place, deep=True)
        yield from sorted(_of_kind(part, near), key=_order)


def _damaged(part: str, file: Path) -> ModelError | None:
    """What is wrong with a file in one of the part's own folders that cannot be read, and might be the part."""
    for folder in (home / place for home in _homes(file) for place in _BESIDE.get(part, ())):
        for near in _weights(folder, deep=True):
            try:
                headers.contents(near)
            except ModelError as error:
                return error
    return None


def _homes(file: Path) -> list[Path]:
    """The folders that may have the parts of a transformer's file: its own; the one around the experts' folders; the
    one with ComfyUI's folders."""
    around = [file.parent.parent] if file.parent.name in EXPERTS.values() else []
    comfy = (parent.parent for parent in file.absolute().parents if parent.name in _TRANSFORMERS)
    return [file.parent, *around, *list(comfy)[:1]]


def _of_kind(part: str, files: Iterable[Path]) -> Iterator[Path]:
    words = PARTS[part].words
    files = (file for file in files if not (part == "vae" and _OTHERS_VAE.search(file.name)))
    return (file for file in files if shared.kind_of(file) == words)


def _order(file: Path) -> tuple[bool, int, str]:
    return not _WAN.search(file.name), -file.stat().st_size, file.name
