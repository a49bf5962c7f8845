// One small kernel for each name of hopper.cuh and wgmma.cuh, or for each few that mean nothing alone (an mbarrier's).
//
// probes.py has their inputs, and runs them by g++ over the host twin and by NVRTC on a card; what differs between the
// two is where the twin is wrong about the hardware. No inline assembly here, as in every kernel.
#include <hopper.cuh>
#include <tile.cuh>

// `in` is rows of `count` words: operands of a conversion, rounds of a barrier, patterns of a product. A block of a
// product computes one pattern; every other probe has one block, or two clusters of two.
struct Parameters {
  const u32* in;
  u32* out;
  int count;
};

constexpr int GROUP = 128, WORDS = 1024, ROUNDS = 4;  // WORDS: of a copy in bulk
constexpr int A_ROWS = 64, A_BYTES = A_ROWS * 128, K_STEPS = 4;
constexpr u32 JUNK = 0xdeadbeef;

struct alignas(1024) Shared {
  u8 a[A_BYTES], b[136 * 128];
  u32 words[WORDS];
  u64 full, empty;
};

// ---- mbarrier, bulk copies -----------------------------------------------------------------------------------------

// Two warps hand words to two others through one buffer, round after round: neither may run ahead. BY: arrivals of a
// warp.
template <int BY, class ARRIVE>
DEVICE void hand_words(const Parameters& P, Shared& sm, ARRIVE arrive) {
  constexpr int HALF = GROUP / 2;
  int thread = threadIdx.x;
  if (thread == 0) {
    mbarrier_init(&sm.full, HALF / 32 * BY);
    mbarrier_init(&sm.empty, HALF / 32 * BY);
    mbarrier_init_done();
  }
  __syncthreads();
  for (int round = 0; round < ROUNDS; round++) {
    u32 parity = round & 1;
    if (thread < HALF) {
      mbarrier_wait(&sm.empty, parity ^ 1);
      sm.words[thread] = P.in[round * P.count + thread];
      arrive(&sm.full);
    } else {
      mbarrier_wait(&sm.full, parity);
      P.out[round * HALF + thread - HALF] = sm.words[GROUP - 1 - thread];  // another thread's
      arrive(&sm.empty);
    }
  }
}
KERNEL(GROUP, 1) probe_mbarrier(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  hand_words<32>(P, sm, [](u64* barrier) { mbarrier_arrive(barrier); });
}
KERNEL(GROUP, 1) probe_mbarrier_arrive_warp(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  hand_words<1>(P, sm, [](u64* barrier) { mbarrier_arrive_warp(barrier); });
}

// Each round is one phase of three copies, of 16, 48 and the rest of 4096 bytes.
KERNEL(GROUP, 1) probe_bulk_load(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int thread = threadIdx.x;
  if (thread == 0) {
    mbarrier_init(&sm.full, 1);
    mbarrier_init_done();
  }
  __syncthreads();
  for (int round = 0; round < ROUNDS; round++) {
    const u32* from = P.in + round * WORDS;
    if (thread == 0) {
      mbarrier_arrive_expect(&sm.full, 4 * WORDS);
      bulk_load(sm.words, from, 16, &sm.full);
      bulk_load(sm.words + 4, from + 4, 48, &sm.full);
      bulk_load(sm.words + 16, from + 16, 4 * (WORDS - 16), &sm.full);
    }
    mbarrier_wait(&sm.full, round & 1);
    for (int i = thread; i < WORDS; i += GROUP) P.out[round * WORDS + i] = sm.words[i];
    __syncthreads();  // all have read
  }
}

// ---- clusters ------------------------------------------------------------------------------------------------------

// Each block leaves words and its rank, and takes what the other block of its cluster left, round after round.
CLUSTER_KERNEL(2, GROUP, 1) probe_cluster_sync(PARAMETERS Parameters P) {
  for (int round = 0; round < ROUNDS; round++) {
    int row = round * gridDim.x + blockIdx.x, other = round * gridDim.x + (blockIdx.x ^ 1);
    P.out[row * GROUP + threadIdx.x] = P.in[row * GROUP + threadIdx.x] + blockIdx.x % 2;
    cluster_sync();
    u32 found = P.out[other * GROUP + GROUP - 1 - threadIdx.x];
    cluster_sync();
    P.out[row * GROUP + threadIdx.x] = found;
  }
}

// Each round fills the words of both blocks: 16 bytes come from the other block, 16 by a copy of one's own, and of the
// rest each block copies a half into both, once both have told each other that theirs are free.
CLUSTER_KERNEL(2, GROUP, 1) probe_bulk_load_cluster(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  constexpr int HALF = (WORDS - 8) / 2;
  int thread = threadIdx.x, rank = blockIdx.x % 2;
  if (thread == 0) {
    mbarrier_init(&sm.full, 1);
    mbarrier_init(&sm.empty, 1);
    mbarrier_init_done();
  }
  cluster_sync();
  for (int round = 0; round < ROUNDS; round++) {
    const u32* from = P.in + (round * gridDim.x + blockIdx.x - rank) / 2 * WORDS;
    if (thread == 0) {
      mbarrier_arrive_expect(&sm.full, 4 * WORDS);
      mbarrier_arrive_at(&sm.empty, rank ^ 1);
      mbarrier_wait(&sm.empty, round & 1);
      bulk_load_cluster(sm.words, from + 4 * rank, 16, &sm.full, 2 >> rank);
      bulk_load(sm.words + 4, from, 16, &sm.full);
      int at = 8 + HALF * rank;
      bulk_load_cluster(sm.words + at, from + at, 4 * HALF, &sm.full, 3);
    }
    mbarrier_wait(&sm.full, round & 1);
    for (int i = thread; i < WORDS; i += GROUP) P.out[(round * gridDim.x + blockIdx.x) * WORDS + i] = sm.words[i];
    __syncthreads();  // all have read
  }
  cluster_sync();  // nobody ends while another copies from or to it
}

// ---- warps and blocks ----------------------------------------------------------------------------------------------

// Each of two groups has a barrier of its own, and reads what its last thread wrote first.
KERNEL(2 * GROUP, 1) probe_barrier_sync(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int group = threadIdx.x / GROUP, thread = threadIdx.x % GROUP;
  for (int round = 0; round < ROUNDS; round++) {
    int row = (2 * round + group) * GROUP;
    sm.words[group * GROUP + thread] = P.in[row + thread];
    barrier_sync(1 + group, GROUP);
    P.out[row + thread] = sm.words[group * GROUP + GROUP - 1 - thread];
    barrier_sync(1 + group, GROUP);
  }
}

// Two groups in turns, as the attention kernel's consumers: each changes what the other left.
KERNEL(2 * GROUP, 1) probe_barrier_arrive(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int group = threadIdx.x / GROUP, thread = threadIdx.x % GROUP;
  if (group == 0) sm.words[thread] = 1;
  __syncthreads();
  if (group == 1) barrier_arrive(1, 2 * GROUP);  // the first turn is group 0's
  for (int round = 0; round < ROUNDS; round++) {
    int row = (2 * round + group) * GROUP;
    barrier_sync(1 + group, 2 * GROUP);
    u32 found = sm.words[GROUP - 1 - thread];
    P.out[row + thread] = found;
    barrier_sync(3 + group, GROUP);
    sm.words[thread] = 3 * found + P.in[row + thread];
    barrier_arrive(2 - group, 2 * GROUP);
  }
  if (group == 0) barrier_sync(1, 2 * GROUP);  // the last turn is nobody's
}

KERNEL(GROUP, 1) probe_shuffle_xor(PARAMETERS Parameters P) {
  int thread = threadIdx.x;
  float x = __int_as_float(P.in[thread]);
#pragma unroll
  for (int i = 0; i < 5; i++) P.out[i * GROUP + thread] = __float_as_int(shuffle_xor(x, 1 << i));
}

// Each warp hands words from lane to lane through shared memory, round after round.
KERNEL(GROUP, 1) probe_warp_sync(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int thread = threadIdx.x;
  for (int round = 0; round < ROUNDS; round++) {
    sm.words[thread] = P.in[round * GROUP + thread];
    warp_sync();
    P.out[round * GROUP + thread] = sm.words[thread ^ 31];
    warp_sync();
  }
}

KERNEL(GROUP, 1) probe_warp_uniform(PARAMETERS Parameters P) {
  for (int round = 0; round < ROUNDS; round++) {
    int i = round * GROUP + threadIdx.x;
    P.out[i] = warp_uniform(P.in[i]);
  }
}

KERNEL(GROUP, 1) probe_warp_any(PARAMETERS Parameters P) {
  for (int round = 0; round < ROUNDS; round++) {
    int i = round * GROUP + threadIdx.x;
    P.out[i] = warp_any(P.in[i] != 0);
  }
}

KERNEL(GROUP, 1) probe_warp_ballot(PARAMETERS Parameters P) {
  for (int round = 0; round < ROUNDS; round++) {
    int i = round * GROUP + threadIdx.x;
    P.out[i] = warp_ballot(P.in[i] != 0);
  }
}

KERNEL(GROUP, 1) probe_warp_sum(PARAMETERS Parameters P) {
  for (int round = 0; round < ROUNDS; round++) {
    int i = round * GROUP + threadIdx.x;
    P.out[i] = warp_sum(P.in[i]);
  }
}

// All threads go for the same eight words.
KERNEL(GROUP, 1) probe_atomic_max(PARAMETERS Parameters P) {
  int thread = threadIdx.x;
  if (thread < 8) P.out[thread] = 0;
  __syncthreads();
  for (int round = 0; round < ROUNDS; round++) atomic_max(P.out + thread % 8, P.in[round * GROUP + thread]);
}

// 3 * 128 threads start with 168 registers each; two groups then hold 200 words apiece, which would not fit.
KERNEL(3 * GROUP, 1) probe_registers(PARAMETERS Parameters P) {
  constexpr int HELD = 200;
  int group = threadIdx.x / GROUP, thread = threadIdx.x;
  if (group == 2) {
    registers_shrink<24>();
    P.out[thread - 2 * GROUP] = P.in[thread - 2 * GROUP] + 1;
  } else {
    registers_grow<240>();
    u32 held[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) held[i] = P.in[GROUP + i * 2 * GROUP + thread];
    barrier_sync(1 + group, GROUP);  // loads do not move across
#pragma unroll
    for (int i = 0; i < HELD; i++) P.out[GROUP + i * 2 * GROUP + thread] = held[i] + 3 * held[HELD - 1 - i];
  }
}

// ---- wgmma ---------------------------------------------------------------------------------------------------------

// What is in a descriptor, but for where shared memory begins.
KERNEL(GROUP, 1) probe_swizzled_operand(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int thread = threadIdx.x;
  if (thread >= P.count) return;
  u64 first = swizzled_operand(sm.a), other = swizzled_operand(sm.a + P.in[thread]);
  P.out[3 * thread] = static_cast<u32>(other - first);
  P.out[3 * thread + 1] = static_cast<u32>(other) >> 16;
  P.out[3 * thread + 2] = static_cast<u32>(other >> 32);
}

// Rows of 128 bytes as a tile image, for the tensor cores.
DEVICE void place(u8* image, const u8* rows, int count) {
  for (int i = threadIdx.x; i < count * 128; i += GROUP) image[swizzled(i / 128, i % 128)] = rows[i];
}

// Where a thread's registers lie in `out`: [block][thread][register].
DEVICE u32* own(u32* out, int count) { return out + (blockIdx.x * GROUP + threadIdx.x) * count; }

// What `out` holds before, all ones, is NaN in any format: what must not shine through.
DEVICE void take(u32& x, u32 bits) { x = bits; }
DEVICE void take(int& x, u32 bits) { x = bits; }
DEVICE void take(float& x, u32 bits) { x = __int_as_float(bits); }
template <class NUMBER, int COUNT>
DEVICE void fill(NUMBER (&d)[COUNT], u32* out) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) take(d[i], own(out, COUNT)[i]);
}

DEVICE u32 bits(u32 x) { return x; }
DEVICE u32 bits(int x) { return x; }
DEVICE u32 bits(float x) { return __float_as_int(x); }
template <class NUMBER, int COUNT>
DEVICE void hand_over(u32* out, const NUMBER (&d)[COUNT]) {
#pragma unroll
  for (int i = 0; i < COUNT; i++) own(out, COUNT)[i] = bits(d[i]);
}

// This block's A and B to shared memory: 64 rows, then `b_rows`.
DEVICE const u8* operands(const Parameters& P, Shared& sm, int b_rows) {
  const u8* rows = reinterpret_cast<const u8*>(P.in + blockIdx.x * P.count);
  place(sm.a, rows, A_ROWS);
  place(sm.b, rows + A_BYTES, b_rows);
  fence_async();
  __syncthreads();
  return rows;
}

// Four steps along K. The first must ignore what is in D, which only a run tells it: the compiler would else clear D.
DEVICE bool accumulates(const Parameters& P, int step) { return step > 0 || P.count == 0; }

#define PROBE_SS(WGMMA, NUMBER, COUNT, B_ROWS)                                                                     \
  KERNEL(GROUP, 1) probe_##WGMMA(PARAMETERS Parameters P) {                                                \
    SHARED(Shared, sm);                                                                                    \
    operands(P, sm, B_ROWS);                                                                               \
    u64 a = swizzled_operand(sm.a), b = swizzled_operand(sm.b);                                            \
    NUMBER d[COUNT];                                                                                       \
    fill(d, P.out);                                                                                        \
    wgmma_fence();                                                                                         \
    _Pragma("unroll") for (int i = 0; i < K_STEPS; i++) WGMMA(d, a + 2 * i, b + 2 * i, accumulates(P, i)); \
    wgmma_commit();                                                                                        \
    wgmma_wait<0>();                                                                                       \
    hand_over(P.out, d);                                                                                   \
  }
PROBE_SS(wgmma_n120_f32_e4m3_ss, float, 60, 120)
PROBE_SS(wgmma_n120_f16_e4m3_ss, u32, 30, 120)
PROBE_SS(wgmma_n128_f32_e4m3_ss, float, 64, 128)
PROBE_SS(wgmma_n128_f16_e4m3_ss, u32, 32, 128)
PROBE_SS(wgmma_n128_s32_s8_ss, int, 64, 128)

// A in registers, as wgmma.cuh has it: r[4 step + i].
DEVICE void load_a(u32 (&r)[4 * K_STEPS], const u8* rows) {
  int t = threadIdx.x, row = 16 * (t / 32) + t % 32 / 4;
#pragma unroll
  for (int i = 0; i < 4 * K_STEPS; i++)
    r[i] = *reinterpret_cast<const u32*>(rows + (row + 8 * (i % 2)) * 128 + 16 * (i / 2) + 4 * (t % 4));
}

#define PROBE_RS(WGMMA, B_ROWS)                                                                     \
  KERNEL(GROUP, 1) probe_##WGMMA(PARAMETERS Parameters P) {                                         \
    SHARED(Shared, sm);                                                                             \
    u32 r[4 * K_STEPS];                                                                             \
    load_a(r, operands(P, sm, B_ROWS));                                                             \
    u64 b = swizzled_operand(sm.b);                                                                 \
    float d[B_ROWS / 2];                                                                            \
    fill(d, P.out);                                                                                 \
    wgmma_fence();                                                                                  \
    _Pragma("unroll") for (int i = 0; i < K_STEPS; i++)                                             \
        WGMMA(d, r[4 * i], r[4 * i + 1], r[4 * i + 2], r[4 * i + 3], b + 2 * i, accumulates(P, i)); \
    wgmma_commit();                                                                                 \
    wgmma_wait<0>();                                                                                \
    hand_over(P.out, d);                                                                            \
  }
PROBE_RS(wgmma_n128_f32_e4m3_rs, 128)
PROBE_RS(wgmma_n136_f32_e4m3_rs, 136)

// Two groups under way: the first is read while the second may still run.
KERNEL(GROUP, 1) probe_wgmma_groups(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  operands(P, sm, 128);
  u64 a = swizzled_operand(sm.a), b = swizzled_operand(sm.b);
  u32 first[32];
  float second[64];
  fill(first, P.out);
  fill(second, P.out + GROUP * 32);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < K_STEPS; i++) wgmma_n128_f16_e4m3_ss(first, a + 2 * i, b + 2 * i, accumulates(P, i));
  wgmma_commit();
#pragma unroll
  for (int i = 0; i < K_STEPS; i++) wgmma_n128_f32_e4m3_ss(second, a + 2 * i, b + 2 * i, accumulates(P, i));
  wgmma_commit();
  wgmma_wait<1>();
  hand_over(P.out, first);
  wgmma_wait<0>();
  hand_over(P.out + GROUP * 32, second);
}

// ---- numbers: row by row of `in` an operand, element by element -----------------------------------------------------

struct Operands {
  const u32* at;
  int count;
  DEVICE u32 word(int operand) const { return at[operand * count]; }
  DEVICE float number(int operand) const { return __int_as_float(word(operand)); }
};

template <class FUNCTION>
DEVICE void each(const Parameters& P, FUNCTION function) {
  for (int i = threadIdx.x; i < P.count; i += GROUP) P.out[i] = bits(function(Operands{P.in + i, P.count}));
}

#define PROBE(NAME, RESULT) \
  KERNEL(GROUP, 1) probe_##NAME(PARAMETERS Parameters P) { each(P, [](Operands x) { return RESULT; }); }
PROBE(exp2_approx, exp2_approx(x.number(0)))
PROBE(max_or_nan, max_or_nan(x.number(0), x.number(1)))
PROBE(fma_saturate, fma_saturate(x.number(0), x.number(1), x.number(2)))
PROBE(pack_e4m3, pack_e4m3(x.number(0), x.number(1), x.number(2), x.number(3)))
PROBE(pack_e4m3_pair, pack_e4m3_pair(x.number(0), x.number(1)))
PROBE(pack_bf16, pack_bf16(x.number(0), x.number(1)))
PROBE(half2, half2(x.number(0)))
PROBE(half2_low, half2_low(x.word(0)))
PROBE(half2_high, half2_high(x.word(0)))
PROBE(half2_max, half2_max(x.word(0), x.word(1)))
PROBE(half2_fma, half2_fma(x.word(0), x.word(1), x.word(2)))
PROBE(half2_fma_saturate, half2_fma_saturate(x.word(0), x.word(1), x.word(2)))
