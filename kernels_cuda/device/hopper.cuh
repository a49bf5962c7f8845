// The part of Hopper's PTX that our kernels use, one name each. host/hopper.cuh has the same names for g++.
//
// Kernels include nothing but this and tile.cuh, and contain no inline assembly of their own: what runs on the card is
// then line by line what the tests run on a CPU. References: PTX ISA 8.x, sections in brackets.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
// KERNEL(threads of a block, blocks that an SM should hold): what bounds a thread's registers.
#define KERNEL(...) extern "C" __global__ void __launch_bounds__(__VA_ARGS__)
// CLUSTER_KERNEL(blocks of a cluster, ...): the same, of blocks that run on neighbouring SMs at the same time. A grid is a
// multiple of them.
#define CLUSTER_KERNEL(BLOCKS, ...) \
  extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(__VA_ARGS__)
#define PARAMETERS const __grid_constant__
// Shared memory as one struct: up to 48 KB, or more, which the host must ask for at the launch. 1024 bytes is the
// alignment that the 128-byte swizzle wants.
#define SHARED(TYPE, NAME) __shared__ TYPE NAME
#define LARGE_SHARED(TYPE, NAME)                                    \
  extern __shared__ __align__(1024) unsigned char shared_raw[]; \
  TYPE& NAME = *reinterpret_cast<TYPE*>(shared_raw)

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// ---- mbarrier [9.7.13.15]: a counter of arrivals and of bytes in flight, with a phase bit -------------------------

DEVICE void mbarrier_init(u64* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
// Makes the initialisations visible to the copy engine; then __syncthreads for the other threads.
DEVICE void mbarrier_init_done() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// One arrival for the whole warp, when all its threads have come here.
DEVICE void mbarrier_arrive_warp(u64* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
}
// Arrives, and makes the phase wait for so many bytes of bulk copies as well.
DEVICE void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity is complete. A fresh barrier is in phase 0; waiting for parity 1 on it returns
// at once, which is how a producer finds its buffers free at the start.
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again_%=;\n}\n" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// ---- bulk copies [9.7.9.25]: 16-byte aligned, a multiple of 16 bytes, done by the copy engine -----------------------

DEVICE void bulk_load(void* shared, const void* global, u32 bytes, u64* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// What this thread wrote to shared memory is visible to the copy engine and the tensor cores.
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- warps and blocks ----------------------------------------------------------------------------------------------

// Named barriers: id 1 to 15 (0 is __syncthreads), for a multiple of 32 threads, those that arrive included.
DEVICE void barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE float shuffle_xor(float x, int lane_mask) { return __shfl_xor_sync(0xffffffffu, x, lane_mask); }
// Where threads of a warp meet, and see what the others wrote before.
DEVICE void warp_sync() { __syncwarp(); }
// A number that all threads of a warp share, said so that the compiler knows.
DEVICE int warp_uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }
DEVICE bool warp_any(bool x) { return __any_sync(0xffffffffu, x); }
// A bit for each thread of the warp.
DEVICE u32 warp_ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
DEVICE int warp_sum(int x) { return __reduce_add_sync(0xffffffffu, x); }
// In device memory, by any number of blocks, in any order.
DEVICE void atomic_max(u32* to, u32 x) { atomicMax(to, x); }
// Registers move from the producer's warpgroup to the consumers'.
template <int COUNT>
DEVICE void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
DEVICE void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- clusters: blocks that reach each other's shared memory -----------------------------------------------------------
//
// A block's rank in its cluster is its number in the grid modulo the cluster's size; it is not read from its register,
// because the compiler would not know that all threads find the same there.

// Where all threads of all blocks meet, and see what the others wrote before [9.7.13.4].
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Arrives at the barrier that another block has at this place: it has done with what copies may then overwrite. What this
// thread *wrote* that block need not see, whence no release at the scope of the cluster, which is a fence of the whole GPU.
DEVICE void mbarrier_arrive_at(u64* barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}
// As bulk_load, read once and copied to the same place in each block whose bit is set in `ranks`; it counts at the
// barrier of each.
DEVICE void bulk_load_cluster(void* shared, const void* global, u32 bytes, u64* barrier, u32 ranks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
          shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "h"(static_cast<u16>(ranks))
      : "memory");
}

// ---- wgmma [9.7.14]: a warpgroup multiplies 64 rows, asynchronously; the instructions are in wgmma.cuh --------------

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// At most PENDING groups are still under way.
template <int PENDING>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Descriptor of an operand in shared memory: rows of 128 bytes, K-major, 128-byte swizzle (1 << 62), groups of 8 rows
// 1024 bytes apart (64 << 32; the other distance, 1 << 16, is not used). The next 32 bytes along K are at descriptor + 2:
// addresses count in units of 16 bytes. That works inside the swizzle because the hardware swizzles the address that it
// arrives at, bits 4 to 6 by bits 7 to 9, and not the descriptor; hence operands begin at multiples of 1024.
DEVICE u64 swizzled_operand(const void* p) {
  return static_cast<u64>((shared_address(p) & 0x3FFFF) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
}

// ---- numbers -------------------------------------------------------------------------------------------------------

DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// The larger one; NaN where either is, unlike fmaxf.
DEVICE float max_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}
// a b + c, cut to [0, 1].
DEVICE float fma_saturate(float a, float b, float c) {
  float y;
  asm("fma.rn.ftz.sat.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
  return y;
}
// Four floats to E4M3 bytes, a the lowest; saturating, to nearest even.
DEVICE u32 pack_e4m3(float a, float b, float c, float d) {
  u32 r;
  asm("{\n.reg .b16 low, high;\ncvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\ncvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n}\n"
      : "=r"(r)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return r;
}
// Two floats to the lower two bytes.
DEVICE u32 pack_e4m3_pair(float a, float b) {
  u32 r;
  asm("{\n.reg .b16 both;\ncvt.rn.satfinite.e4m3x2.f32 both, %2, %1;\ncvt.u32.u16 %0, both;\n}\n"
      : "=r"(r)
      : "f"(a), "f"(b));
  return r;
}
DEVICE u32 pack_bf16(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(r) : "f"(low), "f"(high));
  return r;
}

// Pairs of FP16 numbers in one register.
DEVICE u32 half2(float x) {
  u32 r;
  asm("cvt.rn.f16x2.f32 %0, %1, %1;" : "=r"(r) : "f"(x));
  return r;
}
DEVICE float half2_low(u32 x) {
  float r;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, low;\n}\n" : "=f"(r) : "r"(x));
  return r;
}
DEVICE float half2_high(u32 x) {
  float r;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.f32.f16 %0, high;\n}\n" : "=f"(r) : "r"(x));
  return r;
}
DEVICE u32 half2_max(u32 a, u32 b) {
  u32 r;
  asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
DEVICE u32 half2_fma(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}
DEVICE u32 half2_fma_saturate(u32 a, u32 b, u32 c) {
  u32 r;
  asm("fma.rn.sat.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
  return r;
}

#include <wgmma.cuh>
