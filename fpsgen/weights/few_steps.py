"""Models and LoRAs that were distilled for few steps: which solver they are for, by what people call them."""

from __future__ import annotations

import re

from fpsgen.solvers import SolverName

# The first that is found decides. FastVideo's names are FastWan, its pipeline in model_index.json WanDMDPipeline;
# LightX2V's have lightx2v, StepDistill or 4step in them, and those of its Wan2.2 LoRAs Wan2.2-Lightning; the rCM
# family's are TurboWan (TurboDiffusion), SparkWan and rCM.
_NAMES: tuple[tuple[str, SolverName], ...] = (
    (r"fast[-_. ]?wan|wan[-_. ]?dmd", "fastwan"),
    (r"(turbo|spark)[-_. ]?(wan|diffusion)|(?<![a-z])rcm(?![a-z])", "turbowan"),
    (r"lightx2v|step[-_. ]?distill|wan[-_. ]?2[-_. ]?2[-_. ]?lightning|(?<!\d)4[-_. ]?steps?(?![a-z0-9])", "lightx2v"),
)
# Made for few steps and no guidance, too, but by samplers that fpsgen does not have.
_OTHERS = r"causvid|acc[-_. ]?vid|self[-_. ]?forcing|fusion[-_. ]?x"


def solver_of(label: str) -> SolverName | None:
    """The solver for few steps that a file, folder, repository or its metadata names; None where there is none."""
    return next((solver for pattern, solver in _NAMES if re.search(pattern, label, re.IGNORECASE)), None)


def is_gated_only(label: str) -> bool:
    """Whether the name is of one of FastVideo's models with gates that were not distilled, Wan2.1-VSA-T2V-14B."""
    return re.search(r"wan[-_. ]?2[-_. ]?\d[-_. ]?vsa", label, re.IGNORECASE) is not None


def is_of_another_sampler(label: str) -> bool:
    """Whether the name is of something that was distilled for few steps, of which no solver is known."""
    return solver_of(label) is None and re.search(_OTHERS, label, re.IGNORECASE) is not None
