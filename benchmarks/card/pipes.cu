// How many clocks an instruction keeps its pipe, and how many pass until its result can be used.
//
// For each instruction there is an entry with one chain of dependent instructions, which gives the latency, and one
// with eight chains in each thread, which gives the interval. A loop has as many of the instruction as benchmarks/card/
// pipes.py divides by: a test counts them in the SASS.
#include <hopper.cuh>
#include <more_wgmma.cuh>

struct Parameters {
  u64* clocks;  // [warp][begin, end]
  u32* sink;    // [thread]: a result, or ptxas would leave the work out
  int rounds;
  u32 seed;
};

constexpr int UNROLL = 64, MMAS = 16;

DEVICE void keep(const Parameters& P, u64 begin, u64 end, u32 result) {
  if (threadIdx.x % 32 == 0) P.clocks[threadIdx.x / 32 * 2] = begin, P.clocks[threadIdx.x / 32 * 2 + 1] = end;
  P.sink[threadIdx.x] = result;
}

template <int CHAINS, class STEP>
DEVICE void chains(const Parameters& P, u32 first, STEP step) {
  u32 x[CHAINS], y = P.seed ^ threadIdx.x, z = 3 * P.seed ^ threadIdx.x, all = 0;
#pragma unroll
  for (int i = 0; i < CHAINS; i++) x[i] = first + 4 * i;
  __syncthreads();
  u64 begin = clock64();
#pragma unroll 1
  for (int round = 0; round < P.rounds; round++) {
#pragma unroll
    for (int i = 0; i < UNROLL; i++) step(x[i % CHAINS], y, z);
  }
  u64 end = clock64();
#pragma unroll
  for (int i = 0; i < CHAINS; i++) all ^= x[i];
  keep(P, begin, end, all);
}

#define CHAINS(NAME, COUNT, ...)                                                       \
  KERNEL(512, 1) NAME##_##COUNT(PARAMETERS Parameters P) {                             \
    chains<COUNT>(P, threadIdx.x, [](u32& x, u32 y, u32 z) { asm volatile(__VA_ARGS__); }); \
  }
#define PIPE(NAME, ...) CHAINS(NAME, 1, __VA_ARGS__) CHAINS(NAME, 8, __VA_ARGS__)

PIPE(exp2, "ex2.approx.ftz.f32 %0, %0;" : "+r"(x))
PIPE(exp2_half, "{.reg .b16 a, b; mov.b32 {a, b}, %0; ex2.approx.f16 a, a; mov.b32 %0, {a, b};}" : "+r"(x))
PIPE(half_fma, "fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x) : "r"(y), "r"(z))
PIPE(fma, "fma.rn.f32 %0, %0, %1, %2;" : "+r"(x) : "r"(y), "r"(z))
PIPE(pack_e4m3, "{.reg .b16 a, b; cvt.rn.satfinite.e4m3x2.f32 a, %0, %1; cvt.rn.satfinite.e4m3x2.f32 b, %0, %2;"
     "mov.b32 %0, {a, b};}" : "+r"(x) : "r"(y), "r"(z))
PIPE(half_max, "max.f16x2 %0, %0, %1; max.f16x2 %0, %0, %2;" : "+r"(x) : "r"(y), "r"(z))
PIPE(int_max, "max.s32 %0, %0, %1; max.s32 %0, %0, %2;" : "+r"(x) : "r"(y), "r"(z))
PIPE(float_max, "max.f32 %0, %0, %1;" : "+r"(x) : "r"(y))
PIPE(to_float, "cvt.rn.f32.s32 %0, %0;" : "+r"(x))
PIPE(byte_perm, "prmt.b32 %0, %0, %1, %2;" : "+r"(x) : "r"(y), "r"(z))
PIPE(logic, "lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(x) : "r"(y), "r"(z))
PIPE(shuffle, "shfl.sync.bfly.b32 %0, %0, %1, 31, -1;" : "+r"(x) : "r"(y))
PIPE(ceiling, "cvt.rpi.f32.f32 %0, %0;" : "+r"(x))

// Each word of shared memory has the address of the word 32 further on.
struct Words {
  u32 word[1024];
};
#define LOADS(COUNT)                                                                              \
  KERNEL(512, 1) load_##COUNT(PARAMETERS Parameters P) {                                          \
    SHARED(Words, sm);                                                                            \
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) sm.word[i] = shared_address(&sm.word[(i + 32) % 1024]); \
    chains<COUNT>(P, shared_address(&sm.word[threadIdx.x]),                                       \
                  [](u32& x, u32, u32) { asm volatile("ld.shared.u32 %0, [%0];" : "+r"(x) :: "memory"); }); \
  }
LOADS(1)
LOADS(8)

// Two warpgroups take turns, as the kernel's consumers do: each passes its turn on, then waits for the next one.
KERNEL(256, 1) barrier_1(PARAMETERS Parameters P) {
  int group = warp_uniform(threadIdx.x / 128);
  if (group == 1) barrier_arrive(1, 256);
  chains<1>(P, 0, [=](u32&, u32, u32) { barrier_sync(1 + group, 256), barrier_arrive(2 - group, 256); });
  if (group == 0) barrier_sync(1, 256);
}

// wgmma by one warpgroup: MMAS in a group, and a group behind it, for the interval; one that is waited for, for latency.
struct Tiles {
  alignas(1024) u8 a[64 * 128], b[136 * 128];
};
template <int COUNT, class NUMBER, int REGISTERS, class ISSUE>
DEVICE void tensor(const Parameters& P, const Tiles& sm, ISSUE issue) {
  NUMBER d[REGISTERS] = {};
  u64 a = swizzled_operand(sm.a), b = swizzled_operand(sm.b);
  asm volatile("" : "+l"(a), "+l"(b));  // or they are made anew in the loop
  __syncthreads();
  u64 begin = clock64();
#pragma unroll 1
  for (int round = 0; round < P.rounds; round++) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < COUNT; i++) issue(d, a, b);
    wgmma_commit();
    wgmma_wait<COUNT == 1 ? 0 : 1>();
  }
  wgmma_wait<0>();
  u64 end = clock64();
  NUMBER all = d[0];
#pragma unroll
  for (int i = 1; i < REGISTERS; i++) all += d[i];
  keep(P, begin, end, static_cast<u32>(all));
}
#define TENSOR(NAME, COUNT, NUMBER, REGISTERS, ...)                                                              \
  KERNEL(128, 1) NAME##_##COUNT(PARAMETERS Parameters P) {                                                       \
    SHARED(Tiles, sm);                                                                                           \
    u32 r[4] = {P.seed, P.seed + 1, P.seed + 2, P.seed + 3};                                                     \
    asm volatile("" : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3]));                                           \
    tensor<COUNT, NUMBER, REGISTERS>(P, sm, [=](NUMBER(&d)[REGISTERS], u64 a, u64 b) { NAME(d, __VA_ARGS__, b, true); }); \
  }
#define SS(NAME, NUMBER, REGISTERS) TENSOR(NAME, 1, NUMBER, REGISTERS, a) TENSOR(NAME, 16, NUMBER, REGISTERS, a)
#define RS(NAME, NUMBER, REGISTERS) \
  TENSOR(NAME, 1, NUMBER, REGISTERS, r[0], r[1], r[2], r[3]) TENSOR(NAME, 16, NUMBER, REGISTERS, r[0], r[1], r[2], r[3])

