"""Models by name: which names there are, which model is the default, and how a model is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fpsgen import assets
from fpsgen.attention.tiles import Shape3, TileGrid, default_tile
from fpsgen.errors import ModelError, UsageError, option, reason
from fpsgen.printable import printable
from fpsgen.settings import DEFAULTS, Settings, check_settings
from fpsgen.solvers import FEW_STEPS
from fpsgen.wan import config, sizes
from fpsgen.wan.config import WanConfig
from fpsgen.weights import assemble, configs, few_steps, headers, hub, layout
from fpsgen.weights.cached import Cached
from fpsgen.weights.headers import read_json
from fpsgen.weights.known import MODELS, NOTHING, Given
from fpsgen.weights.layout import EXPERTS, Checkpoint
from fpsgen.weights.lora import Lora

POCKET = "pocket"
_LARGEST_TILE = 64  # tokens along one axis
# Names of files that hold weights, so that such a path is not taken for a hub id.
_WEIGHT_FILES = (".safetensors", ".gguf", ".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Model:
    """A checkpoint on disk and what is known about it before anything loads.

    pocket: what `pocket.json` says of a pocket model, which renders at one size, knows few words and has a tile of its
    own; None for other models. usual: the defaults but for a LoRA that was distilled for few steps, if there is one.
    place: the folder or file that the user named; None for a model by name. parts: those that the user named.
    """

    name: str
    folder: Path
    checkpoint: Checkpoint
    defaults: Settings
    pocket: dict | None = None
    usual: Settings | None = None
    place: Path | None = None
    parts: Given = NOTHING

    @property
    def config(self) -> WanConfig:
        return self.checkpoint.config

    @property
    def family(self) -> str:
        """1.3b, 14b, 2.2-14b, 5b or pocket: the model whose presets this one takes."""
        return POCKET if self.pocket else config.family_of(self.checkpoint.kind)

    @property
    def full_name(self) -> str:
        """The name in records and metadata; a pocket model's has the version, because its weights change with it."""
        return f"pocket v{self.pocket['version']}" if self.pocket else self.name

    @property
    def loras(self) -> str:
        """The LoRAs that are merged, in words; empty where there are none."""
        return " and ".join(each.told for each in self.checkpoint.loras)

    @property
    def name_with_loras(self) -> str:
        """The name in records of what was measured with LoRAs."""
        return f"{self.full_name} with {self.loras}" if self.loras else self.full_name

    @property
    def own_preset(self) -> str | None:
        """The shipped preset of the attention that its authors trained it with, where that is not dense."""
        kind = self.checkpoint.kind
        return kind if kind != config.ungated(kind) else None

    @property
    def trained_for(self) -> tuple[str, ...]:
        """The presets that its authors, or `fpsgen train`, made its weights and LoRAs for."""
        files = [*self.checkpoint.transformer[:1], *(each.file for each in self.checkpoint.loras)]
        trained = [headers.trained_for(file) for file in files]
        return tuple(dict.fromkeys(preset for preset in (self.own_preset, *trained) if preset))

    @property
    def is_for_few_steps(self) -> bool:
        return self.defaults.solver in FEW_STEPS

    @property
    def few_steps_metadata(self) -> dict[str, str]:
        """What a file of its weights says of itself, so that it is recognised whatever it is called (`few_steps`)."""
        return {"solver": self.defaults.solver} if self.is_for_few_steps else {}

    def defaults_by(self, solver: str | None) -> Settings:
        """The defaults of a video that the user wants by a solver; None for the model's own. What is a default for few
        steps holds for no other solver."""
        plain = solver and solver not in FEW_STEPS and self.is_for_few_steps
        return (self.usual or _plain_defaults(self.checkpoint, self.name)) if plain else self.defaults

    def with_loras(self, loras: Sequence[Lora]) -> Model:
        """This model, LoRAs merged with its transformer as it is loaded: of two, with the expert that each was given to
        or says that it is for, else with both; by default in few steps, where one was distilled for these, of two
        experts for each. UsageError where one does not fit."""
        two = len(self.checkpoint.experts) > 1
        if not two and (given := next((each for each in loras if each.expert), None)):
            told = f"{option('lora', f'{given.expert}={given.file}')}: {printable(self.name)} has one transformer"
            raise UsageError(f"{told}, no experts for high and low noise", hint="leave out the expert and the sign =")
        if two:
            loras = [each if each.expert else replace(each, expert=each.meant_for()) for each in loras]
        if loras:
            from fpsgen.weights import load  # which imports torch

            shapes = load.shapes(load.empty_transformer(self.checkpoint))
            for each in loras:
                for expert in self.checkpoint.experts.values():
                    each.changes(shapes, expert)
        found = replace(self, checkpoint=replace(self.checkpoint, loras=tuple(loras)))
        fast = [each for each in loras if each.scale > 0 and few_steps.solver_of(each.called)]
        solvers = {few_steps.solver_of(each.called) for each in fast}
        reached = {each.expert for each in fast}
        every = "" in reached or reached.issuperset(self.checkpoint.experts.values())
        if len(solvers) != 1 or not every:  # an expert that needs many steps would have a few of them
            return found
        usual = self.defaults_by(self.defaults.solver if self.defaults.solver not in FEW_STEPS else "unipc")
        return replace(found, defaults=usual.override(solver=solvers.pop()), usual=usual)

    def tiles(self, latent_shape: Shape3, tile: Shape3 | None = None) -> TileGrid:
        """The tokens of a video's latents in tiles: of that size, or of the model's own."""
        grid = self.config.grid(latent_shape)
        return TileGrid(grid, tile or self.tile(grid))

    def tile(self, grid: Shape3) -> Shape3:
        if self.pocket:
            t, h, w = self.pocket["tile"]
            return t, h, w
        return default_tile(grid)


def is_known(name: str) -> bool:
    """Whether `absent` knows a model of that name."""
    return name.lower() in MODELS or name.lower() in config.SHAPES


def absent(key: str) -> Model:
    """A model by a name of `known.MODELS` or `config.SHAPES` without its files: shapes and defaults, for what is
    worked out beforehand."""
    nothing: Any = ()
    known = MODELS.get(key)
    kind = known.kind if known else key
    shapes, text = config.SHAPES[kind], configs.TEXT_CONFIG
    vae = configs.VAE_2_2_CONFIG if shapes.time_per_token else configs.VAE_CONFIG
    low: Any = (Path(),) if DEFAULTS[kind].boundary else ()
    sees: Any = (Path(),) if shapes.image_dim else ()
    checkpoint = Checkpoint(
        "original", shapes, nothing, nothing, vae, nothing, text, Path(), transformer_2=low, image_encoder=sees,
        image_config=configs.check_image_config({}), linears_in_8_bits=known is not None and known.in_8_bits,
    )  # fmt: skip
    called = (
        " ".join(part for each in known.sources.values() for part in (each.repository, *each.files)) if known else ""
    )
    return Model(key, Path(), checkpoint, _defaults_by_label(checkpoint, key, called))


class NoWeightsError(ModelError):
    """There is a GPU but no Wan2.1 model for it. key, repository: which one to fetch; size: how much that is."""

    def __init__(self, key: str):
        cached = hub.nearest(key)
        message = f"Wan2.1 {key} is incomplete on this machine: {cached.why}" if cached.why else None
        hint = f"{hub.pull_hint(cached)}, or try the built-in toy: {option('model', POCKET)}"
        super().__init__(message or "there are no Wan2.1 weights on this machine", hint)
        self.key, self.size, self.repository = key, hub.to_fetch(cached), cached.repository


def find(name: str, parts: Given = NOTHING) -> Model:
    """The model called `pocket` or as in `known.MODELS`, of a hub id, in the folder `name`, or whose transformer is the
    file `name`; parts: those that the user named, in the place of its own. ModelError where there is none."""
    key = name.lower()
    if not key.strip():
        raise UsageError("the model's name is empty", hint=f"name one, or leave {option('model')} out for the default")
    if key == POCKET:
        return open_folder(assets.folder(POCKET), POCKET, parts)
    if key in MODELS:
        return _downloaded(hub.nearest(key), key, parts)
    path = Path(name)
    try:
        path = path.expanduser()
        if path.is_dir():
            return replace(open_folder(path, name, parts), place=path)
        if path.exists():
            return replace(open_file(path, parts=parts), place=path)
    except (OSError, RuntimeError, ValueError) as fault:  # a RuntimeError for the home of somebody unknown
        told = f"there is no model {printable(name, 100)}: {printable(reason(fault))}"
        raise ModelError(told, _names()) from None
    if hub.ID.fullmatch(name) and path.suffix not in _WEIGHT_FILES:
        return _downloaded(hub.look(name), name, parts)
    raise ModelError(f"there is no model {printable(name, 100)}", hint=_names())


def _names() -> str:
    known = ", ".join((POCKET, *MODELS))
    return f"give one of {known}, a folder, a .safetensors file or a hub id"


def _downloaded(cached: Cached, name: str, parts: Given) -> Model:
    """The model of a repository, if the cache holds all of it."""
    if cached.state == "here" and cached.folder:
        if cached.only:
            return open_file(cached.folder / cached.only[0], name, parts)
        return open_folder(cached.folder, name, parts)
    raise hub.refusal(cached)


def choose(size: tuple[int, int] | None, cuda: bool, parts: Given = NOTHING) -> tuple[Model, str | None]:
    """The model for a size if the user named none, and a note for the user if the choice may surprise.

    With CUDA: 14B above 480p and 1.3B else, or the other one where only that is on disk, or else the first model by
    name that makes videos of text alone. Without: the pocket.
    """
    if not cuda:
        note = f"on a CPU the pocket model is used: it is tiny and knows few words ({option('model')} picks another)"
        return find(POCKET, parts), note
    wanted = preferred(size)
    other = "1.3b" if wanted == "14b" else "14b"
    if folder := hub.on_disk(wanted):
        return open_folder(folder, wanted, parts), None
    cached = hub.nearest(wanted)
    if cached.state == "unreadable":
        raise hub.refusal(cached)  # it lies there: nothing is to be fetched
    incomplete = cached.state == "incomplete"
    state = f"is incomplete (see `fpsgen models check {wanted}`)" if incomplete else "is not on this machine"
    if folder := hub.on_disk(other):
        return open_folder(folder, other, parts), f"Wan2.1 {wanted} {state}; using {other}"
    for key, known in MODELS.items():
        if not config.SHAPES[known.kind].condition_channels and (here := hub.nearest(key)).state == "here":
            return _downloaded(here, key, parts), f"Wan2.1 {wanted} {state}; using {key}"
    raise NoWeightsError(wanted)


def preferred(size: tuple[int, int] | None) -> str:
    """The model that is better for a size, whether or not it is on this disk."""
    return "14b" if size is not None and sizes.named_size(*size) == "720p" else "1.3b"


def open_folder(folder: Path, name: str, parts: Given = NOTHING) -> Model:
    """Read a folder's configuration; ModelError that says what is wrong with it."""
    try:
        if file := assemble.transformer_in(folder):
            return open_file(file, name, parts)
        checkpoint = assemble.with_parts(layout.recognise(folder), parts)
        pocket, defaults = None, _defaults(checkpoint, name, _called(folder))
        if (folder / "pocket.json").exists():
            pocket, defaults = _read_pocket(folder / "pocket.json")
    except ModelError as error:
        raise ModelError(f"model {printable(name)} cannot be used: {error}", hint=error.marked_hint) from None
    return Model(name, folder, checkpoint, defaults, pocket, parts=parts)


def open_file(file: Path, name: str = "", parts: Given = NOTHING) -> Model:
    """A transformer in a file of its own, with parts that lie elsewhere; ModelError as `assemble.of_file`."""
    file = file.absolute()  # the folders around it say what it is a part of
    checkpoint = assemble.of_file(file, parts)
    whole = _called(file.parent.parent) if file.parent.name in (*EXPERTS, *EXPERTS.values()) else ""
    defaults = _defaults(checkpoint, name or file.name, f"{file.name} {whole}")
    return Model(name or printable(file.name), file.parent, checkpoint, defaults, parts=parts)


def _called(folder: Path) -> str:
    """A folder's name, in the hub's cache the repository's; and what a Diffusers folder calls its pipeline."""
    folder = folder.absolute()
    name = folder.parents[1].name if folder.parent.name == "snapshots" else folder.name
    return f"{name} {layout.check_index(folder).get('_class_name', '')}"


def _plain_defaults(checkpoint: Checkpoint, name: str) -> Settings:
    """Those of the published model of its kind, or of its name, with the boundary between two experts that its own
    files say."""
    own = DEFAULTS[config.ungated(checkpoint.kind)]
    if known := hub.known_as(name):
        own = replace(own, **known.own)
    return replace(own, boundary=checkpoint.boundary) if checkpoint.boundary else own


def _defaults(checkpoint: Checkpoint, name: str, called: str) -> Settings:
    """The same; for few steps where what the model is called, or its transformer's file, says that it was distilled for
    them."""
    label = headers.contents(checkpoint.transformer[0]).label
    known = MODELS.get(name.lower())  # whose names are ours, and would be read as somebody's
    return _defaults_by_label(checkpoint, name, f"{known.label if known else ''} {called} {label}")


def _defaults_by_label(checkpoint: Checkpoint, name: str, label: str) -> Settings:
    solver = few_steps.solver_of(label)
    if checkpoint.config.gated and (solver == "fastwan" or not few_steps.is_gated_only(label)):
        return DEFAULTS[checkpoint.kind].override(solver="fastwan")
    return _plain_defaults(checkpoint, name).override(solver=solver)


def _read_pocket(path: Path) -> tuple[dict, Settings]:
    """What `pocket.json` says, and the defaults in it; a ModelError names the field whose value cannot be."""
    pocket = read_json(path)
    for field, fits in _FIELDS.items():
        try:
            fine = fits(pocket[field]) if field in pocket else field in _MAY_LACK
        except (AttributeError, TypeError, ValueError, OverflowError, UsageError):
            fine = False
        if not fine:
            fault = f"{field} = {configs.shown(pocket[field])}, which cannot be" if field in pocket else f"no {field}"
            raise ModelError(f"its pocket.json has {fault}", "copy it again from the source of the model")
    pocket["knows"] = printable(pocket["knows"], 1000)  # which will be shown
    width, height = pocket["size"]
    plain = {field: pocket[field] for field in ("frames", "fps", "steps", "negative")}
    return pocket, Settings(width, height, **plain, guidance=float(pocket["guidance"]), shift=float(pocket["shift"]))


def _is_size(size: Any) -> bool:
    width, height = size
    sizes.parse_resolution(f"{width}x{height}")
    sizes.check_model_size(width, height)
    return all(type(side) is int for side in size)


def _legal(**setting: Any) -> bool:
    """Whether a frame or step count, guidance or shift is one that users may give; they raise where it is none."""
    check_settings(**({"frames": None, "steps": None, "guidance": None, "shift": None} | setting))
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in setting.values())


# What `pocket.json` must say, and whether a value fits. Texts end in a video's metadata, hence as UTF-8.
_FIELDS: dict[str, Callable[[Any], object]] = {
    "size": _is_size,
    "frames": lambda value: type(value) is int and _legal(frames=value),
    "fps": lambda value: type(value) is int and 1 <= value <= 240,
    "steps": lambda value: type(value) is int and _legal(steps=value),
    "guidance": lambda value: _legal(guidance=value),
    "shift": lambda value: _legal(shift=value),
    "tile": lambda value: len(value) == 3 and all(type(n) is int and 1 <= n <= _LARGEST_TILE for n in value),
    "version": lambda value: type(value) is int and 0 <= value < 10**9,
    "knows": lambda value: value.encode() is not None,
    "negative": lambda value: value.encode() is not None,
    "subjects": lambda value: type(value) is list and all(text.encode() for text in value),
    "tries": lambda value: type(value) is list and all(text.encode() for text in value),
}
_MAY_LACK = ("subjects", "tries")
