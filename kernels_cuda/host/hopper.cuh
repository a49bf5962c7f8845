// device/hopper.cuh for g++: the same names, what they mean, on the machine of machine.h.
#pragma once
#include "wgmma.h"

#define DEVICE inline
#define KERNEL(...) inline void
#define CLUSTER_KERNEL KERNEL
#define PARAMETERS const
#define SHARED(TYPE, NAME) TYPE& NAME = *reinterpret_cast<TYPE*>(host::own_block().shared)
#define LARGE_SHARED SHARED
#define threadIdx (host::machine.current->thread)
#define blockIdx (host::own_block().at)
#define gridDim (host::machine.grid)

// Exports run_<kernel>: every block of a grid, by clusters of so many; null, or what went wrong. And the size of its
// parameters and the threads of a block, both of which the code that launches it says once more.
#define HOST_RUN(KERNEL_NAME, PARAMETERS_TYPE, CLUSTER_BLOCKS, BLOCK_THREADS, SHARED_TYPE)                             \
  extern "C" const int parameters_of_##KERNEL_NAME = sizeof(PARAMETERS_TYPE);                                          \
  extern "C" const int threads_of_##KERNEL_NAME = BLOCK_THREADS;                                                       \
  extern "C" const char* run_##KERNEL_NAME(const PARAMETERS_TYPE* given, int grid, int seed, int late, int bits) {     \
    static PARAMETERS_TYPE P;                                                                                          \
    P = *given;                                                                                                        \
    auto kernel = [] { KERNEL_NAME(P); };                                                                              \
    host::Late kind = host::Late(late);                                                                                \
    return host::launch(kernel, grid, CLUSTER_BLOCKS, BLOCK_THREADS, sizeof(SHARED_TYPE), seed, kind, bits);           \
  }

// ---- mbarrier ------------------------------------------------------------------------------------------------------

DEVICE void mbarrier_init(u64* barrier, int arrivals) {
  host::shared_offset(barrier);
  host::machine.mbarriers[barrier] = {arrivals, arrivals, 0, 0};
}
DEVICE void mbarrier_init_done() {}
DEVICE host::Mbarrier& mbarrier_at(u64* barrier) {
  auto found = host::machine.mbarriers.find(barrier);
  if (found == host::machine.mbarriers.end()) host::fail("an mbarrier that was not initialised");
  return found->second;
}
DEVICE void mbarrier_arrive_expect(u64* barrier, u32 bytes) {
  host::Mbarrier& b = mbarrier_at(barrier);
  b.bytes += bytes;
  if (--b.pending < 0) host::fail("more arrivals at an mbarrier than it expects");
  b.try_complete();
  host::machine.progress++;
}
DEVICE void mbarrier_arrive(u64* barrier) { mbarrier_arrive_expect(barrier, 0); }
DEVICE void mbarrier_arrive_warp(u64* barrier) {
  host::warp_sync();
  if (threadIdx.x % 32 == 0) mbarrier_arrive(barrier);
}
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
  host::Mbarrier& b = mbarrier_at(barrier);
  host::wait_until([&] { return b.phase != parity; });
}

// ---- bulk copies ---------------------------------------------------------------------------------------------------

DEVICE void check_copy(const void* a, const void* b, u32 bytes) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(a) % 16 || reinterpret_cast<uintptr_t>(b) % 16)
    host::fail("a bulk copy that is not of whole, aligned 16 bytes");
}
DEVICE void bulk_load(void* shared, const void* global, u32 bytes, u64* barrier) {
  check_copy(shared, global, bytes);
  host::shared_offset(shared), host::shared_offset(static_cast<u8*>(shared) + bytes - 1);
  mbarrier_at(barrier);
  host::machine.copies.push_back({shared, global, bytes, barrier, &host::own_block(), &host::own_block()});
}
DEVICE void fence_async() {}

// ---- warps and blocks ----------------------------------------------------------------------------------------------

DEVICE void arrive(host::NamedBarrier& b, int threads) {
  if (++b.arrived == threads) b.arrived = 0, b.generation++;
  host::machine.progress++;
}
DEVICE void arrive_and_wait(host::NamedBarrier& b, int threads) {
  u64 generation = b.generation;
  arrive(b, threads);
  host::wait_until([&] { return b.generation != generation; });
}
DEVICE void barrier_arrive(int id, int threads) { arrive(host::own_block().barriers[id], threads); }
DEVICE void barrier_sync(int id, int threads) { arrive_and_wait(host::own_block().barriers[id], threads); }
DEVICE void __syncthreads() {
  barrier_sync(0, static_cast<int>(host::machine.fibers.size() / host::machine.blocks.size()));
}
DEVICE float __int_as_float(int x) {
  float y;
  memcpy(&y, &x, 4);
  return y;
}
DEVICE int __float_as_int(float x) {
  int y;
  memcpy(&y, &x, 4);
  return y;
}
DEVICE float shuffle_xor(float x, int lane_mask) {
  u32 all[32];
  host::warp_exchange(__float_as_int(x), all);
  return __int_as_float(all[threadIdx.x % 32 ^ lane_mask]);
}
DEVICE void warp_sync() { host::warp_sync(); }
DEVICE int warp_uniform(int x) {
  u32 all[32];
  host::warp_exchange(x, all);
  return static_cast<int>(all[0]);
}
DEVICE bool warp_any(bool x) {
  u32 all[32];
  host::warp_exchange(x, all);
  return std::any_of(all, all + 32, [](u32 y) { return y; });
}
DEVICE u32 warp_ballot(bool x) {
  u32 all[32], bits = 0;
  host::warp_exchange(x, all);
  for (int lane = 0; lane < 32; lane++) bits |= all[lane] << lane;
  return bits;
}
DEVICE int warp_sum(int x) {
  u32 all[32], sum = 0;
  host::warp_exchange(x, all);
  for (u32 each : all) sum += each;
  return static_cast<int>(sum);
}
DEVICE float __fmul_rn(float a, float b) { return a * b; }
DEVICE int __popc(u32 x) { return __builtin_popcount(x); }
DEVICE void atomic_max(u32* to, u32 x) { *to = std::max(*to, x); }
template <int COUNT>
DEVICE void registers_grow() {}
template <int COUNT>
DEVICE void registers_shrink() {}

// ---- clusters ------------------------------------------------------------------------------------------------------

DEVICE void cluster_sync() {
  arrive_and_wait(host::machine.cluster, static_cast<int>(host::machine.fibers.size()));
}
DEVICE void mbarrier_arrive_at(u64* barrier, int rank) {
  mbarrier_arrive(host::in_block(host::block_of(rank), barrier));
}
DEVICE void bulk_load_cluster(void* shared, const void* global, u32 bytes, u64* barrier, u32 ranks) {
  check_copy(shared, global, bytes);
  host::shared_offset(static_cast<u8*>(shared) + bytes - 1);
  for (u32 rank = 0; ranks >> rank; rank++) {
    if (!(ranks >> rank & 1)) continue;
    host::Block& into = host::block_of(rank);
    u64* there = host::in_block(into, barrier);
    mbarrier_at(there);
    host::machine.copies.push_back(
        {host::in_block(into, static_cast<u8*>(shared)), global, bytes, there, &host::own_block(), &into});
  }
}

// ---- wgmma ---------------------------------------------------------------------------------------------------------

DEVICE void wgmma_fence() {}
DEVICE void wgmma_commit() {
  host::Fiber& own = *host::machine.current;
  own.groups.push_back(own.open);
  own.open.clear();
}
template <int PENDING>
DEVICE void wgmma_wait() {
  host::wait_for_groups(PENDING);
}
DEVICE u64 swizzled_operand(const void* p) {
  return static_cast<u64>((host::shared_offset(p) & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
#define WGMMA_SS(NAME, KIND, N, TYPE, COUNT)                                   \
  DEVICE void NAME(TYPE (&d)[COUNT], u64 a, u64 b, bool accumulate) {          \
    host::machine.current->open.push_back({KIND, N, d, {}, a, b, accumulate}); \
  }
// Registers by reference: they are read at the wait, as the hardware may.
#define WGMMA_RS(NAME, KIND, N, TYPE, COUNT)                                                                          \
  DEVICE void NAME(TYPE (&d)[COUNT], const u32& a0, const u32& a1, const u32& a2, const u32& a3, u64 b, bool accumulate) { \
    host::machine.current->open.push_back({KIND, N, d, {&a0, &a1, &a2, &a3}, 0, b, accumulate});                      \
  }
WGMMA_SS(wgmma_n120_f32_e4m3_ss, host::Wgmma::F32_E4M3, 120, float, 60)
WGMMA_SS(wgmma_n120_f16_e4m3_ss, host::Wgmma::F16_E4M3, 120, u32, 30)
WGMMA_SS(wgmma_n128_f32_e4m3_ss, host::Wgmma::F32_E4M3, 128, float, 64)
WGMMA_SS(wgmma_n128_f16_e4m3_ss, host::Wgmma::F16_E4M3, 128, u32, 32)
WGMMA_SS(wgmma_n128_s32_s8_ss, host::Wgmma::S32_S8, 128, int, 64)
WGMMA_RS(wgmma_n128_f32_e4m3_rs, host::Wgmma::F32_E4M3, 128, float, 64)
WGMMA_RS(wgmma_n136_f32_e4m3_rs, host::Wgmma::F32_E4M3, 136, float, 68)

// ---- numbers -------------------------------------------------------------------------------------------------------

using std::max;
using std::min;
// NaN where either is; of two zeros the positive one.
DEVICE float max_or_nan(float a, float b) {
  if (a != a || b != b) return NAN;
  return a > b || (a == b && std::signbit(b)) ? a : b;
}
// .sat: cut to [0, 1]; NaN becomes 0.
template <class NUMBER>
DEVICE NUMBER saturate(NUMBER x) {
  return x > 0 ? std::min(x, NUMBER(1)) : NUMBER(0);
}
// .ftz: subnormal numbers become zero, and keep their sign.
DEVICE float flush(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0.f, x) : x; }
DEVICE float exp2_approx(float x) { return flush(exp2f(flush(x))); }
DEVICE float fma_saturate(float a, float b, float c) {
  return flush(saturate(fmaf(flush(a), flush(b), flush(c))));
}
DEVICE u32 pack_e4m3(float a, float b, float c, float d) {
  return host::to_e4m3(a) | host::to_e4m3(b) << 8 | host::to_e4m3(c) << 16 | static_cast<u32>(host::to_e4m3(d)) << 24;
}
DEVICE u32 pack_e4m3_pair(float a, float b) { return pack_e4m3(a, b, 0, 0); }
DEVICE u32 to_bf16(float x) {
  u32 bits = __float_as_int(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 pack_bf16(float low, float high) { return to_bf16(low) | to_bf16(high) << 16; }
DEVICE u32 __byte_perm(u32 a, u32 b, u32 selector) {
  u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 r = 0;
  for (int i = 0; i < 4; i++) r |= static_cast<u32>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return r;
}

DEVICE u32 half2_of(double low, double high) { return host::to_half(low) | static_cast<u32>(host::to_half(high)) << 16; }
DEVICE u32 half2(float x) { return half2_of(x, x); }
DEVICE float half2_low(u32 x) { return host::from_half(static_cast<u16>(x)); }
DEVICE float half2_high(u32 x) { return host::from_half(static_cast<u16>(x >> 16)); }
// The other number where one is NaN; of two zeros the positive one.
DEVICE float half_max(float a, float b) { return a > b || b != b || (a == b && std::signbit(b)) ? a : b; }
DEVICE u32 half2_max(u32 a, u32 b) {
  return half2_of(half_max(half2_low(a), half2_low(b)), half_max(half2_high(a), half2_high(b)));
}
// In double, where a product of FP16 is exact and a sum exact enough to be rounded once more: float would fall on ties.
DEVICE double half_fma(double a, double b, double c) { return a * b + c; }
DEVICE u32 half2_fma(u32 a, u32 b, u32 c) {
  return half2_of(half_fma(half2_low(a), half2_low(b), half2_low(c)),
                  half_fma(half2_high(a), half2_high(b), half2_high(c)));
}
DEVICE u32 half2_fma_saturate(u32 a, u32 b, u32 c) {
  return half2_of(saturate(half_fma(half2_low(a), half2_low(b), half2_low(c))),
                  saturate(half_fma(half2_high(a), half2_high(b), half2_high(c))));
}
