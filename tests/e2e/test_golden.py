"""Videos stay what they were: the pocket's latents of seed 1, kept from before."""

from __future__ import annotations

import pytest

from fpsgen import metrics
from tests.tools import golden_run


@pytest.mark.parametrize("preset", golden_run.PRESETS)
def test_latents_are_those_that_were_kept(preset: str) -> None:
    kept, made_with = golden_run.read(preset)
    ours = golden_run.make(preset)
    if golden_run.surroundings() == made_with:
        assert ours.equal(kept)
    else:  # other instructions add in another order; a wrong step is 1e-2 away
        assert metrics.latent_error(ours, kept) < 1e-5
