"""Each wrapper of the device headers on a card, against the host twin: whether the twin is right about the hardware.

What the twin computes, tests/kernels/test_probes.py holds to numpy and the PTX ISA, without a card.
"""

from __future__ import annotations

import pytest

from tests.kernels import probes
from tests.kernels.probes import PROBES, Probe

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("probe", PROBES.values(), ids=str)
def test_the_card_does_what_the_host_twin_does(probe: Probe) -> None:
    probes.assert_agree(probe, probes.on_card(probe), probes.on_host(probe))
