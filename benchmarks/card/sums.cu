// FP8 wgmmas as the card does them, one at a time: d = a b, or d = c + a b, of 32 products each.
//
// A block is a warpgroup with four wgmmas, one for each 32 bytes along K of its operands. c and d are in the layout of
// accumulators (wgmma.cuh).
#include <hopper.cuh>

constexpr int THREADS = 128, A_ROWS = 64, B_ROWS = 128, ROW_BYTES = 128, STEPS = 4;

struct Parameters {
  const u8* a;   // E4M3 [block][64][128]
  const u8* b;   // E4M3 [block][128][128]
  const u32* c;  // [block][step][thread][words]; null for none
  u32* d;        // as c
};

struct Shared {
  alignas(1024) u8 a[A_ROWS * ROW_BYTES], b[B_ROWS * ROW_BYTES];
};

DEVICE void load(u8* shared, const u8* global, int rows) {
  for (int i = threadIdx.x; i < rows * ROW_BYTES; i += THREADS) {
    int row = i / ROW_BYTES, column = i % ROW_BYTES;
    shared[row * ROW_BYTES + (column ^ (row & 7) << 4)] = global[i];
  }
}

DEVICE void multiply(float (&d)[64], u64 a, u64 b, bool accumulate) { wgmma_n128_f32_e4m3_ss(d, a, b, accumulate); }
DEVICE void multiply(u32 (&d)[32], u64 a, u64 b, bool accumulate) { wgmma_n128_f16_e4m3_ss(d, a, b, accumulate); }
DEVICE float from_word(u32 x, float) { return __int_as_float(static_cast<int>(x)); }
DEVICE u32 from_word(u32 x, u32) { return x; }
DEVICE u32 to_word(float x) { return static_cast<u32>(__float_as_int(x)); }
DEVICE u32 to_word(u32 x) { return x; }

template <class NUMBER, int WORDS>
DEVICE void products(const Parameters& P, Shared& sm) {
  load(sm.a, P.a + (u64)blockIdx.x * A_ROWS * ROW_BYTES, A_ROWS);
  load(sm.b, P.b + (u64)blockIdx.x * B_ROWS * ROW_BYTES, B_ROWS);
  fence_async();
  __syncthreads();
  u64 a = swizzled_operand(sm.a), b = swizzled_operand(sm.b);
  for (int step = 0; step < STEPS; step++) {
    u64 first = ((u64)(blockIdx.x * STEPS + step) * THREADS + threadIdx.x) * WORDS;
    NUMBER d[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) d[i] = P.c ? from_word(P.c[first + i], NUMBER()) : NUMBER();
    wgmma_fence();
    multiply(d, a + 2 * step, b + 2 * step, P.c != nullptr);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < WORDS; i++) P.d[first + i] = to_word(d[i]);
  }
}

KERNEL(THREADS, 1) sums_f32(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  products<float, 64>(P, sm);
}

KERNEL(THREADS, 1) sums_f16(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  products<u32, 32>(P, sm);
}
