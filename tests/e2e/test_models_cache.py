"""What the hub's cache holds, told as it is by every command that looks at it; and removing it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fpsgen import doctor
from fpsgen.doctor import checks, trials
from fpsgen.errors import ModelError
from fpsgen.weights import hub
from fpsgen.weights import models as by_name
from fpsgen.weights.known import MODELS
from tests.tools import hub_cache
from tests.tools.cli import models, told

ORIGINAL, DIFFUSERS = (source.repository for source in MODELS["1.3b"].sources.values())
VAE, T5 = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # whoever asks the hub fails
    return folder


@pytest.fixture
def snapshot(cache: Path, both_formats: dict[str, Path]) -> Path:
    return hub_cache.keep(cache, ORIGINAL, both_formats["original"])


def listed(name: str = "1.3b", form: str = "original") -> dict:
    return next(m for m in told(models("--json"))["models"] if (m["name"], m["format"]) == (name, form))


def shown(*args: str) -> str:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(by_cli(), ["models", *args])
    return " ".join((result.stdout + result.stderr).split())


def by_cli() -> object:
    from fpsgen.cli import app

    return app


def test_a_whole_download_is_here(snapshot: Path) -> None:
    assert listed()["state"] == "here"
    assert "1.3b original here" in shown()
    assert by_name.find("1.3b").folder == snapshot


@pytest.mark.parametrize("lost", [(VAE,), (T5, VAE, "google/umt5-xxl/tokenizer.json"), ("config.json",)])
def test_an_incomplete_download_says_what_lacks_and_how_much(snapshot: Path, lost: tuple[str, ...]) -> None:
    absent = sum((snapshot / name).stat().st_size for name in lost)
    for name in lost:
        (snapshot / name).resolve().unlink()  # the blob: its link then leads nowhere
    entry = listed()
    assert (entry["state"], sorted(entry["lacking"]), entry["absent_bytes"]) == ("incomplete", sorted(lost), absent)
    assert f"incomplete: {len(lost)} of {entry['files']} files" in shown()
    result = models("check", "1.3b")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "is incomplete in the hub's cache" in said
    assert all(name in said for name in lost)
    assert "18 GB" not in said
    assert "fpsgen models pull 1.3b" in said


def test_what_a_cut_download_has_of_a_file_is_not_fetched_again(snapshot: Path) -> None:
    size = (snapshot / T5).stat().st_size
    blob = (snapshot / T5).resolve()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(blob.read_bytes()[: size // 3])
    blob.unlink()
    assert listed()["absent_bytes"] == size - size // 3


def test_a_file_to_which_only_the_link_is_lost_is_not_fetched_again(snapshot: Path) -> None:
    (snapshot / VAE).unlink()
    entry = listed()
    assert (entry["state"], entry["lacking"], entry["absent_bytes"]) == ("incomplete", [VAE], 0)


def test_a_gpu_owner_is_offered_only_what_lacks(snapshot: Path) -> None:
    (snapshot / VAE).resolve().unlink()
    with pytest.raises(by_name.NoWeightsError, match=f"lacks 1 of 6 files: {VAE}") as caught:
        by_name.choose(None, cuda=True)
    assert "the rest is here" in caught.value.size
    assert "18 GB" not in (caught.value.hint or "")
    assert caught.value.repository == ORIGINAL


def test_the_format_of_which_less_lacks_is_offered(cache: Path, both_formats: dict[str, Path]) -> None:
    (hub_cache.keep(cache, DIFFUSERS, both_formats["diffusers"]) / "vae" / "config.json").unlink()
    assert f"fpsgen models pull {DIFFUSERS} (" in hub.pull_hint(hub.nearest("1.3b"))
    with pytest.raises(ModelError, match=r"vae/config\.json"):
        by_name.find("1.3b")


def test_a_file_of_another_length_is_called_damaged(snapshot: Path) -> None:
    blob = (snapshot / VAE).resolve()
    blob.write_bytes(blob.read_bytes()[:-1])
    assert listed()["state"] == "incomplete"
    assert "is damaged" in shown("check", "1.3b")


def test_nothing_there_is_not_here(cache: Path, both_formats: dict[str, Path]) -> None:
    assert listed()["state"] == "not here"
    assert "18 GB" in shown("check", "1.3b")
    (cache / "models--Wan-AI--Wan2.1-T2V-1.3B").write_text("a file")
    assert listed()["state"] == "not here"


@pytest.mark.parametrize("content", ["", "\x1b[2J", "../../../etc", "x" * 300])
def test_a_damaged_reference_is_said(snapshot: Path, content: str) -> None:
    (snapshot.parent.parent / "refs" / "main").write_text(content)
    assert listed()["state"] == "here"  # one snapshot is whole, whatever its name is
    (snapshot / VAE).unlink()
    assert listed()["state"] == "incomplete"
    assert f"lacks 1 of 6 files: {VAE}" in shown("check", "1.3b")
    assert "\x1b" not in shown("check", "1.3b")


@pytest.mark.parametrize("named", [None, "f" * 40])
def test_a_snapshot_that_no_name_leads_to_is_found(snapshot: Path, named: str | None) -> None:
    """As a download of one commit alone leaves it, and one that was cut before a newer commit's first file."""
    reference = snapshot.parent.parent / "refs" / "main"
    reference.unlink()
    if named:
        reference.write_text(named)
    assert listed()["state"] == "here"
    assert by_name.find("1.3b").folder == snapshot
    (snapshot / VAE).unlink()
    assert listed()["state"] == "incomplete"
    assert "GB" not in (by_name.NoWeightsError("1.3b").hint or "")


def test_offline_a_whole_model_needs_no_name_and_is_not_fetched_anew(snapshot: Path) -> None:
    (snapshot.parent.parent / "refs" / "main").unlink()
    assert told(models("pull", "1.3b", "--json"))["folder"] == str(snapshot)
    refused = models("pull", "1.3b", "--force")
    assert refused.exit_code == 2
    assert "HF_HUB_OFFLINE is set" in refused.stderr


def test_whoever_gives_the_caches_folder_is_led_to_the_model_in_it(snapshot: Path) -> None:
    with pytest.raises(ModelError, match="holds no checkpoint of Wan") as caught:
        by_name.find(str(snapshot.parent.parent))
    assert str(snapshot) in (caught.value.hint or "")


def test_a_download_that_was_cut_in_its_first_file_is_said(snapshot: Path) -> None:
    storage = snapshot.parent.parent
    for part in ("refs", "snapshots", "trees"):
        shutil.rmtree(storage / part)
    assert listed()["state"] == "incomplete"
    assert "its download was cut short; 3 MB are here" in shown("check", "1.3b")


def test_weights_that_may_not_be_read_are_said_without_a_listing_too(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases of huggingface-hub before 1.22 keep no listing."""
    shutil.rmtree(snapshot.parent.parent / "trees")
    weights = (snapshot / "diffusion_pytorch_model.safetensors").resolve()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).resolve() != weights and real(path, mode))
    opened = os.open

    def refuse(path: str | Path, *args: int) -> int:
        if Path(path).resolve() == weights:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args)

    monkeypatch.setattr(os, "open", refuse)
    assert listed()["state"] == "unreadable"
    with pytest.raises(ModelError, match="Permission denied") as caught:
        by_name.find("1.3b")
    assert "chmod" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["models--me--wan\x1b[31m", os.fsdecode(b"models--me--\xff"), "models--a--b--c--"])
def test_a_folder_whose_name_is_no_hub_id_is_nobodys(snapshot: Path, cache: Path, name: str) -> None:
    known = len(told(models("--json"))["models"])
    shutil.copytree(snapshot.parent.parent, cache / name, symlinks=True)
    assert len(told(models("--json"))["models"]) == known
    assert "\x1b" not in shown()


@pytest.mark.parametrize("locked", [".", "models--Wan-AI--Wan2.1-T2V-1.3B"])
def test_rm_says_that_a_locked_cache_cannot_be_read(
    snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    Locked(monkeypatch, cache / locked)
    result = models("rm", "1.3b", "--yes")
    assert result.exit_code == 2
    assert "Permission denied" in result.stderr
    assert "chmod" in result.stderr


@pytest.mark.parametrize(
    "listing",
    ["", "[" * 100_000, "{}", '{"format_version": 1, "files": {"config.json": {"size": "x", "blob_id": ""}}}'],
)
def test_a_damaged_listing_is_none(snapshot: Path, listing: str) -> None:
    (snapshot.parent.parent / "trees" / f"{hub_cache.COMMIT}.json").write_text(listing)
    assert listed()["state"] == "here"


class Locked:
    """Folders that may not be read, also where tests run as root, whom no mode stops."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *folders: Path):
        self.folders, self.real = folders, {name: getattr(os, name) for name in ("listdir", "stat", "open", "scandir")}
        for name in self.real:
            monkeypatch.setattr(os, name, lambda path=".", *args, _name=name, **more: self(_name, path, *args, **more))

    def __call__(self, name: str, path: object, *args: object, **more: object) -> object:
        if isinstance(path, (str, Path)):
            for folder in self.folders:
                if Path(path).is_relative_to(folder) and (name != "stat" or Path(path) != folder):
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return self.real[name](path, *args, **more)


def test_somebody_elses_locked_folder_does_not_end_the_list(
    snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "models--somebody--else").mkdir()
    Locked(monkeypatch, cache / "models--somebody--else")
    assert listed()["state"] == "here"
    assert models("check", "1.3b").exit_code == 0


@pytest.mark.parametrize("locked", ["models--Wan-AI--Wan2.1-T2V-1.3B", "."])
def test_a_locked_download_is_named_and_not_offered_again(
    snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    Locked(monkeypatch, cache / locked)
    entry = listed()
    assert entry["state"] == "unreadable"
    assert str(cache / "models--Wan-AI--Wan2.1-T2V-1.3B") in entry["why"]
    for ask in (lambda: by_name.find("1.3b"), lambda: by_name.choose(None, cuda=True), lambda: by_name.find(ORIGINAL)):
        with pytest.raises(ModelError, match="Permission denied") as caught:
            ask()
        assert "GB" not in str(caught.value) + (caught.value.hint or "")


def test_doctor_does_not_offer_what_lies_there(snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Locked(monkeypatch, snapshot)
    models = checks.model_cache()
    (found,) = models.models
    assert (found.state, found.whole) == ("unreadable", False)
    gpus = checks.Gpus([checks.Gpu(0, "a card", "8.0", 0, 0, 1)])
    _, following = doctor.ability(checks.Versions(), gpus, models, trials.TrialLaunch())
    assert following == "fpsgen models check 1.3b"


def test_looking_at_models_imports_no_torch(snapshot: Path, tmp_path: Path) -> None:
    """Wrong input, and the list with a download in it, are answered by what needs no torch: that takes seconds."""
    calls = [
        ["models"],
        ["models", "list"],
        ["models", "pull", "nope"],
        ["models", "check", "nope"],
        ["models", "rm", "nope"],
    ]
    calls += [["models", "check", str(snapshot / VAE)], ["models", "convert", "nope", str(tmp_path / "out")]]
    program = (
        "import sys, typer\nfrom fpsgen.cli import app\nfrom fpsgen.weights import models\n"
        f"for call in {calls!r}:\n"
        "    try: app(call, standalone_mode=False)\n"
        "    except (SystemExit, typer.Exit): pass\n"
        "models.find('1.3b')\n"
        "print('IMPORTED', sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(snapshot.parents[2]), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "IMPORTED []"
    assert "1.3b" in ran.stdout


def test_rm_frees_what_is_not_shared(
    snapshot: Path, cache: Path, both_formats: dict[str, Path], tmp_path: Path
) -> None:
    """Two revisions that share all but one file: what the name means goes, what the other needs stays."""
    older = Path(shutil.copytree(both_formats["original"], tmp_path / "older"))
    (older / VAE).write_bytes(b"an older one")
    kept = hub_cache.keep(cache, ORIGINAL, older, commit="a" * 40)
    (kept.parent.parent / "refs" / "main").write_text(hub_cache.COMMIT)  # and the newer one is what main means
    vae = (snapshot / VAE).stat().st_size
    result = models("rm", "1.3b", "--yes", "--json")
    assert told(result)["removed"] == [ORIGINAL]
    assert 0 <= told(result)["freed_bytes"] - vae < 2000  # the reference to the commit and its listing as well
    assert "other revisions" in result.stderr
    assert not snapshot.exists()
    assert all(link.is_file() for link in kept.rglob("*") if link.is_symlink())


def test_rm_removes_no_copy_of_the_same_commit(snapshot: Path, cache: Path, both_formats: dict[str, Path]) -> None:
    copy = hub_cache.keep(cache, "somebody/copy", both_formats["original"])
    assert models("rm", "somebody/copy", "--yes").exit_code == 0
    assert not copy.exists()
    assert listed()["state"] == "here"


@pytest.mark.parametrize("damage", ["none", "blob", "reference", "locked"])
def test_rm_removes_a_download_in_any_state(
    snapshot: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    storage = cache / "models--Wan-AI--Wan2.1-T2V-1.3B"
    if damage == "blob":
        (snapshot / VAE).resolve().unlink()
    elif damage == "reference":
        (storage / "refs" / "main").write_text("f" * 40)
    elif damage == "locked":
        (cache / "models--somebody--else").mkdir()
        Locked(monkeypatch, cache / "models--somebody--else")
    freed = told(models("rm", "1.3b", "--yes", "--json"))["freed_bytes"]
    assert freed > 1_000_000
    assert not storage.exists()
    assert not [path for path in cache.iterdir() if path.name != "models--somebody--else"]


def test_what_cannot_be_removed_is_a_sentence_and_no_traceback(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    spoken = logging.StreamHandler(io.StringIO())  # as huggingface-hub's own, which writes to stderr
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [spoken])
    monkeypatch.setattr(shutil, "rmtree", refuse)
    (snapshot.parent.parent / "trees" / f"{hub_cache.COMMIT}.json").write_text("damaged")
    assert listed()["state"] == "here"
    result = models("rm", "1.3b", "--yes")
    assert result.exit_code == 2
    assert "could not be removed" in result.stderr
    assert not spoken.stream.getvalue()


def test_rm_asks_where_somebody_can_be_asked(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = models("rm", "1.3b")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    monkeypatch.setattr("fpsgen.cli.output.Output.may_ask", True)
    for answer, code in (("n\n", 130), ("", 130)):
        asked = CliRunner().invoke(by_cli(), ["models", "rm", "1.3b"], input=answer)
        assert asked.exit_code == code
        assert "Remove Wan-AI/Wan2.1-T2V-1.3B" in asked.stderr
        assert snapshot.exists()
    assert CliRunner().invoke(by_cli(), ["models", "rm", "1.3b"], input="y\n").exit_code == 0
    assert not snapshot.exists()


def test_rm_touches_nothing_outside_the_cache(
    snapshot: Path, cache: Path, both_formats: dict[str, Path], tmp_path: Path
) -> None:
    """Links that lead elsewhere, a folder of one's own, names that are none."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    hub_cache.keep(cache, ORIGINAL, both_formats["original"], commit="a" * 40)  # a second revision: blobs go one by one
    (cache / "models--Wan-AI--Wan2.1-T2V-1.3B" / "snapshots" / ("a" * 40) / "config.json").unlink()
    (cache / "models--Wan-AI--Wan2.1-T2V-1.3B" / "snapshots" / ("a" * 40) / "config.json").symlink_to(mine)
    elsewhere = Path(shutil.move(cache / "models--Wan-AI--Wan2.1-T2V-1.3B", tmp_path / "elsewhere"))
    (cache / "models--somebody--linked").symlink_to(elsewhere)
    shutil.copytree(elsewhere, cache / "models--Wan-AI--Wan2.1-T2V-1.3B", symlinks=True)
    cases = (
        (ORIGINAL, "outside the hub's cache"),
        ("somebody/linked", "outside the hub's cache"),
        ("pocket", "not a downloaded model"),
        ("14b", "not in the hub's cache"),
        (str(both_formats["original"]), "not a downloaded model"),
    )
    for name, says in cases:
        result = models("rm", name, "--yes")
        assert result.exit_code == 2, result.output
        assert says in " ".join(result.stderr.split())
    assert mine.read_text() == "mine"
    assert (elsewhere / "snapshots").is_dir()
    assert json.loads(models("--json").stdout)
