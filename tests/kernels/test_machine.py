"""The CPU machine is as hostile as it says: what is late, what is never written, what nobody may do.

A harmless twin, with copies that land at once, wgmmas done when they are issued and memory full of zeros, would pass
all other tests beside this file; and it would find none of the faults here.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import pytest

from fpsgen.attention.emulator import VARIANTS, emulate
from fpsgen.attention.tiles import TileGrid
from tests.kernels import host
from tests.kernels.cases import assert_near, plan_for, random_qkv
from tests.kernels.faults import FAULTS
from tests.kernels.host import Schedule

LINE = TileGrid((1, 1, 6), (1, 1, 1))  # 6 lists of 6 tiles, for one block: through the ring of stages nine times


def check(source: str | None, late: str) -> None:
    q, k, v = random_qkv(LINE, heads=1)
    plan = plan_for("fp8-fp32", LINE)
    found = host.attention(q, k, v, plan, "fp8-fp32", source=source, blocks=1, schedule=Schedule(1, late))  # type: ignore[arg-type]
    assert_near(found, emulate(q, k, v, plan, VARIANTS["fp8-fp32"]))


@pytest.mark.parametrize("late", host.LATE)
def test_the_source_as_it_is(late: str) -> None:
    check(None, late)


@pytest.mark.parametrize(
    ("name", "late", "told"),
    [
        ("no wait for v", "copies", "more arrivals at an mbarrier|not finite|error"),
        ("v is released before it is read", "wgmmas", "error"),
        ("scores are used before they are there", "nothing", "not finite|error"),
        ("p is packed before the last one is read", "nothing", "error"),
        ("k is never released", "nothing", "deadlock: block 0, 514 threads wait for ever"),
        ("a row too few is stored", "nothing", "not finite"),
    ],
)
def test_a_fault_is_noticed(name: str, late: str, told: str) -> None:
    source = FAULTS[name].source()
    with pytest.raises(AssertionError, match=f"^({told})"):
        check(source, late)


@pytest.mark.parametrize(
    ("name", "harmless"), [("no wait for v", "wgmmas"), ("v is released before it is read", "copies")]
)
def test_it_is_lateness_that_shows_a_fault(name: str, harmless: str) -> None:
    """Of the right kind: on a machine that is quick with what these faults do not wait for, nothing is wrong."""
    check(FAULTS[name].source(), harmless)


# ---- by kernels of a few lines ---------------------------------------------------------------------------------------

PROBES = """
#include <hopper.cuh>
struct Parameters { const u8* in; float* out; };
struct alignas(1024) Shared { u8 a[64 * 128], b[128 * 128]; u64 barrier; };
constexpr float NOT_YET = -1;
u32 ones() { return 0x38383838; }  // four of E4M3
"""
KERNELS = {
    "uninitialised": "mbarrier_wait(&sm.barrier, 0);",
    "outside": "static u64 elsewhere; mbarrier_init(&elsewhere, 1);",
    "arrivals": """ONE {
        mbarrier_init(&sm.barrier, 1);
        mbarrier_arrive_expect(&sm.barrier, 16);
        mbarrier_arrive(&sm.barrier);
      }""",
    "in_flight": """ONE {
        mbarrier_init(&sm.barrier, 1);
        mbarrier_arrive_expect(&sm.barrier, 16);
        bulk_load(sm.a, P.in, 16, &sm.barrier);
      }""",
    "unaligned": "ONE { mbarrier_init(&sm.barrier, 1); bulk_load(sm.a, P.in + 8, 16, &sm.barrier); }",
    "beyond": """
      float d[64];
      wgmma_n128_f32_e4m3_ss(d, swizzled_operand(sm.a), swizzled_operand(sm.b + 2048), false);
      wgmma_commit();
      wgmma_wait<0>();""",
    "no_swizzle": """
      float d[64];
      wgmma_n128_f32_e4m3_ss(d, swizzled_operand(sm.a), 0, false);
      wgmma_commit();
      wgmma_wait<0>();""",
    "waits": "ONE { mbarrier_init(&sm.barrier, 1); } __syncthreads(); mbarrier_wait(&sm.barrier, 0);",
    "left_out": "if (threadIdx.x) __syncthreads();",
    # What a thread finds: in memory that nobody wrote, before and after it waited for a copy and for a product.
    "fresh": "ONE { P.out[0] = reinterpret_cast<float*>(sm.a)[7]; }",
    "copy": """ONE {
        mbarrier_init(&sm.barrier, 1);
        mbarrier_arrive_expect(&sm.barrier, 16);
        bulk_load(sm.a, P.in, 16, &sm.barrier);
        P.out[0] = sm.a[3];
        mbarrier_wait(&sm.barrier, 0);
        P.out[1] = sm.a[3];
      }""",
    "product": """
      float d[64];
      for (float& x : d) x = NOT_YET;
      u32 a = ones();
      for (int i = threadIdx.x; i < 128 * 128; i += 128) sm.b[i] = 0x38;
      __syncthreads();
      wgmma_n128_f32_e4m3_rs(d, a, a, a, a, swizzled_operand(sm.b), false);
      wgmma_commit();
      ONE { P.out[0] = d[0]; }
      wgmma_wait<0>();
      ONE { P.out[1] = d[0]; }
      wgmma_n128_f32_e4m3_rs(d, a, a, a, a, swizzled_operand(sm.b), false);
      wgmma_commit();
      a = 0;  // still to be read
      wgmma_wait<0>();
      ONE { P.out[2] = d[0]; }""",
}

# The same by clusters of two.
CLUSTERS = {
    "no_such_block": "ONE { mbarrier_arrive_at(&sm.barrier, 2); }",
    "not_there_yet": "ONE { mbarrier_init(&sm.barrier, 1); mbarrier_arrive_at(&sm.barrier, (blockIdx.x ^ 1) % 2); }",
    "gone": """
      ONE { mbarrier_init(&sm.barrier, 1); }
      cluster_sync();
      ONE { sm.a[0] = P.out[0]++ > 0; }
      __syncthreads();
      if (!sm.a[0]) return;  // the first of both ends
      for (int i = 0; i < 100; i++) warp_sync();
      ONE { mbarrier_arrive_at(&sm.barrier, (blockIdx.x ^ 1) % 2); }""",
    "met_by_half": "if (threadIdx.x < 64) cluster_sync();",
    # Who waits for what came to it, and ends before the same copy has come to the other.
    "leaves_early": """
      ONE { mbarrier_init(&sm.barrier, 1); mbarrier_arrive_expect(&sm.barrier, 16); }
      cluster_sync();
      if (blockIdx.x % 2 == 1) ONE { bulk_load_cluster(sm.a, P.in, 16, &sm.barrier, 3); }
      mbarrier_wait(&sm.barrier, 0);
      if (blockIdx.x % 2 == 0) cluster_sync();""",
    "from_the_other": """
      ONE { mbarrier_init(&sm.barrier, 1); mbarrier_arrive_expect(&sm.barrier, 16); }
      cluster_sync();
      ONE {
        bulk_load_cluster(sm.a, P.in, 16, &sm.barrier, 2 >> blockIdx.x % 2);
        P.out[blockIdx.x % 2] = sm.a[3];
      }
      mbarrier_wait(&sm.barrier, 0);
      ONE { P.out[2 + blockIdx.x % 2] = sm.a[3]; }
      cluster_sync();""",
    # How many blocks have begun when one ends.
    "in_step": """
      ONE { P.out[0]++; }
      for (int i = 0; i < 9; i++) warp_sync();
      ONE { P.out[1 + blockIdx.x % 2] = P.out[0]; }""",
}


@cache
def library() -> ctypes.CDLL:
    kernels = [
        f"{how} {name}(PARAMETERS Parameters P) {{ SHARED(Shared, sm); (void)P, (void)sm; {body} }}"
        for how, bodies in (("KERNEL(128, 1)", KERNELS), ("CLUSTER_KERNEL(2, 128, 1)", CLUSTERS))
        for name, body in bodies.items()
    ]
    exported = [
        f"HOST_RUN({name}, Parameters, {1 if name in KERNELS else 2}, 128, Shared)" for name in (*KERNELS, *CLUSTERS)
    ]
    return host.build("\n".join([PROBES, "#define ONE if (threadIdx.x == 0)", *kernels]), "\n".join(exported), {})


def run(name: str, late: str = "nothing", blocks: int = 0) -> np.ndarray:
    """What a kernel wrote; its 16 bytes to read are 5."""
    given, out = np.full(32, 5, np.uint8), np.zeros(4, np.float32)
    at = -given.ctypes.data % 16
    parameters = np.array([given.ctypes.data + at, out.ctypes.data], np.uint64)
    blocks = blocks or (1 if name in KERNELS else 2)
    host.run(library(), name, parameters, blocks, Schedule(late=late))  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("uninitialised", "an mbarrier that was not initialised"),
        ("outside", "an address outside shared memory where one inside is wanted"),
        ("arrivals", "more arrivals at an mbarrier than it expects"),
        ("in_flight", "block 0 ended with copies in flight"),
        ("unaligned", "a bulk copy that is not of whole, aligned 16 bytes"),
        ("beyond", "wgmma reads beyond shared memory"),
        ("no_swizzle", "a descriptor without the 128-byte swizzle: only that is modelled"),
        ("waits", "deadlock: block 0, 128 threads wait for ever"),
        ("left_out", "deadlock: block 0, 127 threads wait for ever"),
        ("no_such_block", "block 2 of a cluster of 2"),
        ("not_there_yet", "an mbarrier that was not initialised"),
        ("gone", "block [01] of the grid is reached after its end"),
        ("met_by_half", "deadlock: block 0, 128 threads wait for ever"),
        ("leaves_early", "block 1 ended with copies in flight|deadlock: block 0, 128 threads wait for ever"),
    ],
)
def test_what_nobody_may_do(name: str, told: str) -> None:
    with pytest.raises(AssertionError, match=f"^({told})$"):
        run(name, "copies")


def test_a_grid_is_whole_clusters() -> None:
    with pytest.raises(AssertionError, match="a grid of 3 blocks in clusters of 2"):
        run("in_step", blocks=3)


@pytest.mark.parametrize("late", host.LATE)
def test_a_block_s_copy_lands_in_the_other(late: str) -> None:
    found = run("from_the_other", late)
    assert found[2:].tolist() == [5, 5]
    assert late != "copies" or found[:2].tolist() == [255, 255]


def test_a_block_of_an_adversarial_cluster_lags() -> None:
    """The other one has ended before it begins, unless they meet."""
    assert run("in_step", "nothing")[1:3].tolist() == [2, 2]
    for late in host.LATE[1:]:
        assert sorted(run("in_step", late)[1:3]) == [1, 2]


def test_nobody_finds_zeros() -> None:
    assert np.isnan(run("fresh")[0])


@pytest.mark.parametrize("late", ["nothing", "copies"])
def test_a_copy_lands_after_its_bytes_were_asked_for(late: str) -> None:
    assert run("copy", late)[:2].tolist() == [255, 5]


@pytest.mark.parametrize("late", host.LATE)
def test_a_product_reads_and_writes_at_the_wait(late: str) -> None:
    assert run("product", late)[:3].tolist() == [-1, 32, 0]
