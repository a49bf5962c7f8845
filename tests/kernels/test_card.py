"""The CUDA sources of `benchmarks.card`, without a card: compiled for it, counted, and run on the CPU machine."""

from __future__ import annotations

import functools
import re
from collections import Counter

import numpy as np
import pytest

from benchmarks.card import cubins, pipes, sums
from benchmarks.card.ablations import ABLATIONS, Ablation, jobs
from benchmarks.card.rules import equal_shares
from fpsgen.kernels import cache
from fpsgen.kernels.sm90_attention import VARIANTS
from tests.kernels import host
from tests.kernels.cases import line, plan_for, random_qkv
from tests.kernels.test_compile import disassembled

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?(\S+)(.*?);")


def loops(listing: str) -> dict[str, list[Counter[str]]]:
    """By entry function, the instructions of each of its loops: from a label to the branch back to it."""
    found: dict[str, list[Counter[str]]] = {}
    for part in re.split(r"\.section\s+\.text\.", listing)[1:]:
        labels: dict[str, int] = {}
        operations: list[str] = []
        own = found.setdefault(part.partition(",")[0], [])
        for text in part.splitlines():
            if label := re.match(r"(\.L_\S+):", text):
                labels[label[1]] = len(operations)
            if instruction := _INSTRUCTION.search(text):
                operations.append(instruction[2])
                target = re.search(r"`\((\S+)\)", instruction[3])
                if instruction[2] == "BRA" and target and target[1] in labels:
                    own.append(Counter(operations[labels[target[1]] : -1]))
    return found


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Counter[str]]]:
    cubin = tmp_path_factory.mktemp("card") / "pipes.cubin"
    cubin.write_bytes(pipes.compiled())
    return loops(disassembled(cubin))


@pytest.mark.parametrize("pipe", pipes.PIPES, ids=lambda pipe: pipe.name)
def test_a_probe_s_loop_has_what_it_divides_by(pipe: pipes.Pipe, probes: dict[str, list[Counter[str]]]) -> None:
    """The instruction so often, and little else: what stands beside it would be measured, too."""
    for what, entry in pipe.entries.items():
        wanted = set(pipe.name.removesuffix(".RS").split("."))

        def is_it(operation: str, wanted: set[str] = wanted) -> bool:
            return wanted <= set(operation.split(".")) and ("F16" in wanted or not operation.endswith("EX2.F16"))

        counts = [(sum(n for name, n in loop.items() if is_it(name)), loop.total()) for loop in probes[entry]]
        assert pipe.in_loop(what) in [own for own, _ in counts], (entry, probes[entry])
        own, all_of_it = max(counts)
        assert own == pipe.in_loop(what)
        assert all_of_it - own <= max(8, own // 4)


def test_every_entry_is_measured_and_none_twice(probes: dict[str, list[Counter[str]]]) -> None:
    entries = [entry for pipe in pipes.PIPES for entry in pipe.entries.values()]
    assert sorted(entries) == sorted(probes)


@pytest.mark.parametrize("kind", sums.ACCUMULATORS)
@pytest.mark.parametrize("with_c", [False, True])
def test_the_dump_on_the_cpu_machine_obeys_the_rule_of_that(kind: str, with_c: bool) -> None:
    """Which sums exactly where no bits are said, then rounds; 1e-3: to FP16 by way of float32."""
    assert cubins.compiled(sums.SOURCE)
    entries = "\n".join(f"HOST_RUN(sums_{name}, Parameters, THREADS, Shared)" for name in sums.ACCUMULATORS)
    library = host.build(sums.SOURCE.read_text(), entries, {})

    def run(entry: str, parameters: np.ndarray, blocks: int) -> None:
        host.run(library, entry, parameters, blocks, host.Schedule())

    found = sums.dumped(kind, with_c, run, "cpu", blocks=4)
    shares = equal_shares(kind, found["a"], found["b"], found.get("c"), found["d"])
    assert shares.pop("nearest") > 1 - 1e-3
    assert max(shares.values()) < 0.95


@functools.cache
def as_it_is(variant: str) -> bytes:
    return cache.compile_checked(VARIANTS[variant])[0]


def named(value: object) -> str:
    return value.name if isinstance(value, Ablation) else str(value)


@pytest.mark.parametrize(("ablation", "variant"), list(jobs()), ids=named)
def test_ablations_compile_for_the_card(ablation: Ablation, variant: str) -> None:
    """Each edit applies once, nothing spills, and wgmma stays asynchronous."""
    changed = ablation.compiled(variant) != as_it_is(variant)
    assert changed == (ablation is not ABLATIONS[0])


@pytest.mark.parametrize("ablation", [one for one in ABLATIONS if "barrier" in str(one.edits)], ids=named)
def test_ablations_of_barriers_do_not_hang(ablation: Ablation) -> None:
    """The CPU machine finds out where nobody can go on; what is computed is wrong."""
    source = ablation.source((host.SOURCES / "sm90_attention.cu").read_text())
    tiles, window = line(9)
    q, k, v = random_qkv(tiles, heads=1)
    plan = plan_for("fp8-fp16", tiles, (window,))
    host.attention(q, k, v, plan, "fp8-fp16", source=source, blocks=2)


def test_an_edit_that_does_not_apply_once_is_refused() -> None:
    for text in ("nothing", "if (a) if (a)"):
        with pytest.raises(ValueError, match="times 'if"):
            Ablation("a fault", (("if (a)", ""),)).source(text)
