"""The table of errors: what is looked at is what the model computes, and estimates add up to what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fpsgen import metrics
from fpsgen.attention import reference
from fpsgen.attention.plan import AttentionPlan
from fpsgen.calibrate import local, trajectory
from fpsgen.calibrate.candidates import Candidates
from fpsgen.calibrate.job import spans
from fpsgen.calibrate.measure import Measuring, tapping
from fpsgen.calibrate.measurement import Measurement
from fpsgen.calibrate.trajectory import Clip, Renderer
from fpsgen.errors import RenderError
from fpsgen.wan.plan import StepPlan
from fpsgen.wan.transformer import WanTransformer
from tests.tools.calibration import EFFORT, TILES, VIDEO, clips, small_renderer, small_transformer, text

CANDIDATES = Candidates(TILES, 75_600)
PHASES = spans(replace(VIDEO, steps=EFFORT.steps), EFFORT.phases)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def forward(transformer: WanTransformer, plans: list[AttentionPlan]) -> Tensor:
    """At one timestep, both guidance branches in a batch."""
    latents = torch.randn(2, 16, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    context = transformer.embed_text(torch.cat([text(1), text(2)]))
    return transformer(latents, torch.tensor([700.0, 700.0]), context, StepPlan(tuple(plans)))


def taken(renderer: Renderer, effort: object = EFFORT, seed: int = 0) -> Measurement:
    return Measuring(renderer, CANDIDATES, PHASES, effort).measure(clips(EFFORT.clips), seed)  # type: ignore[arg-type]


def hooks(transformer: WanTransformer) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in transformer.modules())


def test_tapping_sees_what_attention_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = small_transformer()
    plans = [AttentionPlan(TILES, qk="int8", pv="fp8")] * 2  # which goes to the reference
    given: list[tuple[Tensor, ...]] = []
    real = reference.attention
    monkeypatch.setattr(reference, "attention", lambda q, k, v, plan: given.append((q, k, v)) or real(q, k, v, plan))
    seen: dict[int, tuple[Tensor, ...]] = {}
    with tapping(transformer, lambda layer, q, k, v, gram: seen.update({layer: (q, k, v)})):
        looked_at = forward(transformer, plans)
    assert sorted(seen) == [0, 1]
    for layer in seen:
        assert all(ours.equal(theirs) for ours, theirs in zip(seen[layer], given[layer], strict=True))
    assert looked_at.equal(forward(transformer, plans)), "looking changes nothing"


def test_hooks_are_gone_whatever_happens() -> None:
    transformer = small_transformer()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with tapping(transformer, lambda *_: None):
        assert hooks(transformer) == 4
    with pytest.raises(KeyboardInterrupt), tapping(transformer, stop):
        forward(transformer, [AttentionPlan(TILES)] * 2)
    assert hooks(transformer) == 0


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_local_error_is_the_change_of_the_residual_stream(layer: int, head: int) -> None:
    """Of one head with another window: what self-attention adds to the stream, times the gate, row by row. The other
    head's output does not change, so that there are no cross terms."""
    transformer = small_transformer()
    window = CANDIDATES.choices[0].window
    dense = [AttentionPlan(TILES)] * 2
    plans = list(dense)
    plans[layer] = AttentionPlan(TILES, (window, None), (0, 1) if head == 0 else (1, 0))
    block = list(transformer.layers())[layer]
    found: list[Tensor] = []
    seen: list[tuple[Tensor, ...]] = []
    modulations: list[Tensor] = []
    with tapping(transformer, lambda number, *tensors: seen.append(tensors) if number == layer else None):
        forward(transformer, dense)
    block.register_forward_pre_hook(lambda _, given: modulations.append(given[1]))
    block.self_attn.register_forward_hook(lambda *call: found.append(call[2]))
    forward(transformer, dense)
    forward(transformer, plans)
    gate = (block.modulation + modulations[0]).chunk(6, dim=1)[2]
    change = (gate * (found[1] - found[0])).double().square().sum(2).mean()
    every = torch.arange(len(TILES.valid))
    errors = local.errors(*seen[0], CANDIDATES, every)
    torch.testing.assert_close(errors[0, 0, head], change, rtol=1e-4, atol=0)  # float32 sums in another order


def test_estimates_of_the_probe_add_up_to_what_it_did(tmp_path: Path) -> None:
    renderer = small_renderer(tmp_path)
    found = taken(renderer)
    assert found.errors.shape == (2, 2, 2, 3, len(CANDIDATES.choices))
    assert found.errors.isfinite().all()
    assert (found.errors[..., 0, -1] == 0).all(), "dense BF16 errs nothing"
    precision, choice = CANDIDATES.probe
    (clip,) = clips(1)
    probe = StepPlan((CANDIDATES.plan(precision, [choice] * 2),) * 2)
    _, exact = renderer.render(clip, "again", [renderer.dense] * 4)
    for phase, span in enumerate(PHASES):
        steps = [probe if span.first <= step <= span.last else renderer.dense for step in range(4)]
        _, ours = renderer.render(clip, f"by hand {phase}", steps)
        error = metrics.latent_error(ours, exact)
        assert error > 0
        assert float(found.probed[phase].sum()) == pytest.approx(error, rel=1e-9)
        assert float(found.errors[phase, :, :, precision, choice].sum()) == pytest.approx(error, rel=1e-9)


def clip_by_hand(renderer: Renderer, clip: Clip, taps: dict[int, range]) -> tuple[Tensor, Tensor, Tensor]:
    """Changes [phases, layers], phase errors [phases] and local errors [phases, layers, precisions, choices, heads] of
    one clip, straight from what the module says they are. taps: step that is looked into -> steps of its phase."""
    transformer, layers = renderer.transformer, renderer.transformer.config.num_layers
    precision, choice = CANDIDATES.probe
    probe = AttentionPlan(TILES, (CANDIDATES.choices[choice],), (), "int8", "fp8")
    dense = AttentionPlan(TILES)
    denoiser = renderer.denoiser(clip, 6)
    assert precision == 1

    def final(probed: range) -> Tensor:
        solver, latents = denoiser.settings.new_solver(), denoiser.noise(clip.seed)
        for step in range(6):
            plan = StepPlan((probe if step in probed else dense,) * layers)
            latents = solver.step(renderer.velocity(denoiser, latents, step, plan), latents)
        return latents

    solver, latents = denoiser.settings.new_solver(), denoiser.noise(clip.seed)
    changes, locals_ = [], []
    for step, timestep in enumerate(solver.timesteps):
        velocity = renderer.velocity(denoiser, latents, step, StepPlan((dense,) * layers))
        if step in taps:
            for layer in range(layers):
                plans = tuple(probe if other == layer else dense for other in range(layers))
                moved = renderer.velocity(denoiser, latents, step, StepPlan(plans)).double() - velocity.double()
                changes.append(sum(float(x) ** 2 for x in moved.flatten()))
            branches = []
            for words in (clip.text, text(99)):
                seen: list[Tensor] = []
                every = torch.arange(len(TILES.valid))
                with tapping(transformer, lambda _, *qkv: seen.append(local.errors(*qkv, CANDIDATES, every))):  # noqa: B023
                    transformer(latents, timestep.expand(1), transformer.embed_text(words), StepPlan((dense,) * layers))
                branches.append(torch.stack(seen))
            locals_.append((branches[0] + branches[1]) / 2)
        latents = solver.step(velocity, latents)
    ended = [metrics.latent_error(final(phase), latents) for phase in taps.values()]
    return torch.tensor(changes).double().view(-1, layers), torch.tensor(ended).double(), torch.stack(locals_)


def test_the_table_is_phase_times_layer_times_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every factor by hand, of two clips: changes of the velocity are squared, shares are over the layers of a phase,
    a phase is looked into at its middle step, and everything is a mean over clips and guidance branches, which run one
    after the other here."""
    monkeypatch.setattr(trajectory, "both_fit", lambda *_: False)
    effort = replace(EFFORT, clips=2, probed=2, steps=6, layers=3, tiles=len(TILES.valid))
    renderer = small_renderer(tmp_path, layers=3)
    phases = spans(replace(VIDEO, steps=6), 2)
    found = Measuring(renderer, CANDIDATES, phases, effort).measure(clips(2), seed=0)
    taps = {1: range(3), 4: range(3, 6)}
    changes, ended, local_ = (
        torch.stack(x) for x in zip(*(clip_by_hand(renderer, clip, taps) for clip in clips(2)), strict=True)
    )
    share = (changes / changes.sum(2, keepdim=True)).mean(0)
    assert (share.amax(1) > 1.2 * share.amin(1)).all()  # squared or not is seen in the shares
    probed = ended.mean(0)[:, None] * share
    torch.testing.assert_close(found.probed, probed, rtol=1e-3, atol=0)
    added = local_.mean(0).permute(0, 1, 4, 2, 3)  # heads before precisions and choices
    precision, choice = CANDIDATES.probe
    of_probe = added[..., precision, choice].sum(2)
    expected = added * (probed / of_probe)[:, :, None, None, None]
    torch.testing.assert_close(found.errors, expected, rtol=1e-3, atol=0)


def test_every_look_is_at_other_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each layer, phase and clip: else what is peculiar to a few tiles would count everywhere."""
    picks: list[tuple[int, ...]] = []
    real = local.errors
    monkeypatch.setattr(local, "errors", lambda *args: picks.append(tuple(args[-1].tolist())) or real(*args))
    Measuring(small_renderer(tmp_path), CANDIDATES, PHASES, replace(EFFORT, clips=2)).measure(clips(2), seed=0)
    assert len(set(picks)) == len(picks) == 2 * 2 * 2


def test_layers_between_are_interpolated(tmp_path: Path) -> None:
    """The first and last of four probed: between them shares go geometrically, by distance."""
    effort = replace(EFFORT, layers=2)
    probed = taken(small_renderer(tmp_path, layers=4), effort).probed
    assert probed.shape == (2, 4)
    for layer, share in ((1, 1 / 3), (2, 2 / 3)):
        expected = probed[:, 0] ** (1 - share) * probed[:, 3] ** share
        torch.testing.assert_close(probed[:, layer], expected, rtol=1e-9, atol=0)
    assert ((probed[:, 0] / probed[:, 3]).log().abs() > 0.1).all()  # it matters which of the two is nearer


def test_one_layer_probed(tmp_path: Path) -> None:
    found = taken(small_renderer(tmp_path), replace(EFFORT, layers=1))
    assert found.probed.isfinite().all()
    assert (found.errors >= 0).all()


def test_the_same_again_computes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = taken(small_renderer(tmp_path))
    monkeypatch.setattr(Renderer, "velocity", lambda *args: pytest.fail("it computes"))
    again = taken(small_renderer(tmp_path))
    assert again.errors.equal(first.errors)
    assert again.probed.equal(first.probed)


@pytest.mark.parametrize(
    ("lost", "forwards"),
    [
        ("measure0-local*", 2),  # a look into one step of each phase
        ("measure0-step3", 1),
        ("measure0-step*", 4),
        ("measure0-layer1-*", 2),
        ("measure0-phase1", 2),  # the last two of four steps
        ("measure0-phase0", 4),
    ],
)
def test_a_lost_piece_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, forwards: int) -> None:
    """And nothing else; damaged ones are as lost."""
    first = taken(small_renderer(tmp_path))
    calls: list[int] = []
    real = Renderer.velocity
    monkeypatch.setattr(Renderer, "velocity", lambda *args: calls.append(1) or real(*args))
    for damage in (True, False):
        for path in tmp_path.glob(f"*/{lost}.piece"):
            path.write_bytes(path.read_bytes()[:-5]) if damage else path.unlink()
        calls.clear()
        again = taken(small_renderer(tmp_path))
        assert again.errors.equal(first.errors)
        assert again.probed.equal(first.probed)
        assert len(calls) == forwards


def test_seeds_differ_and_any_is_taken(tmp_path: Path) -> None:
    """It picks the tiles of queries that are compared; seeds go up to 2^64 - 1."""
    few = replace(EFFORT, tiles=1)
    one, two, largest = (taken(small_renderer(tmp_path / str(seed)), few, seed) for seed in (0, 1, 2**64 - 1))
    assert not one.errors.equal(two.errors)
    assert largest.errors.isfinite().all()


def test_weights_that_give_no_numbers(tmp_path: Path) -> None:
    renderer = small_renderer(tmp_path)
    next(renderer.transformer.layers()).ffn[0].weight.data[0, 0] = torch.nan
    with pytest.raises(RenderError, match="the model gave values that are not finite"):
        taken(renderer)
    assert hooks(renderer.transformer) == 0
