// What a block of the transformer does between its products, in one pass over rows of channels. Memory is what this
// takes, so each number is read once and written once, and a row waits in shared memory for what all of it decides: mean,
// variance, the scale of 8 bits.
//
//   fps_norm      x + gate y, its LayerNorm, times a factor, plus an addend: the input of the next product, in FORMAT.
//   fps_residual  x + gate y; without 8 bits.
//   fps_round     rows of bfloat16 in 8 bits.
//   fps_gelu      the same, after GELU.
//
// Every product and every sum of the residual stream and of factor and addend is rounded by itself, as PyTorch's separate
// operations do: hence __fmul_rn, which is never merged with a sum.
#include <hopper.cuh>

#ifndef FORMAT  // of rows that are products' input: 0 bfloat16, 1 E4M3, 2 INT8
#define FORMAT 0
#endif

constexpr int THREADS = 256, WARPS = THREADS / 32, BLOCKS = 5;
constexpr int TOGETHER = 2;           // rows that are normed by a block: they share factor, addend and gate
constexpr int MOST_CHANNELS = 5120;   // of a row that is normed. One that is rounded may have four times as many
constexpr float LARGEST = FORMAT == 2 ? 127.f : 448.f;  // that a scale aims at
constexpr float LEAST_NORMAL = 1.17549435e-38f, LARGEST_FINITE = 3.402823466e38f;

// A row is a token of a batch entry, of `channels` channels: a multiple of 8.
struct Parameters {
  const float* x;                // [row][channel]: the residual stream
  const u16* y;                  // [row][channel], bfloat16: what is added to it, or null; what is rounded
  const float* gate;             // [entry][channel]: y's factor, or null
  const float *factor, *addend;  // [entry][channel]
  float* sum;                    // [row][channel]: x + gate y
  u8* out;                       // [row][channel], in FORMAT
  float* scale;                  // [row]: of 8 bits
  int tokens, channels;          // tokens: rows of a batch entry
  int gate_stride, factor_stride, addend_stride;  // from a batch entry to the next; 0 where one serves all
  float base;                    // is added to factor: 1 where that is a modulation's scale, else 0
  float eps;
};

struct alignas(16) Four {
  float x[4];
};
struct alignas(8) Bytes8 {
  u32 word[2];
};
struct alignas(16) Bytes16 {
  u32 word[4];
};

struct Shared {
  union {
    Four row[TOGETHER][MOST_CHANNELS / 4];
    Bytes16 rounded[TOGETHER * MOST_CHANNELS / 4];
  };
  float warps[3][TOGETHER][WARPS];
};

DEVICE float bf16_low(u32 pair) { return __int_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __int_as_float(pair & 0xffff0000u); }
DEVICE Four widened(u32 low, u32 high) { return {bf16_low(low), bf16_high(low), bf16_low(high), bf16_high(high)}; }
template <class TYPE>
DEVICE TYPE at(const void* from) {
  return *reinterpret_cast<const TYPE*>(from);
}
template <class TYPE>
DEVICE void put(void* to, const TYPE& x) {
  *reinterpret_cast<TYPE*>(to) = x;
}

// Of what each thread has of N rows, over all threads: summed, or the largest. In a fixed order, hence the same bits every
// time. Each `turn` has a place of its own, so that nobody waits until all have read.
template <bool IS_SUM, int N>
DEVICE void over_block(float (&own)[N], int turn, Shared& sm) {
#pragma unroll
  for (int n = 0; n < N; n++) {
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) {
      float other = shuffle_xor(own[n], lanes);
      own[n] = IS_SUM ? own[n] + other : max_or_nan(own[n], other);
    }
    if (threadIdx.x % 32 == 0) sm.warps[turn][n][threadIdx.x / 32] = own[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; n++) {
    own[n] = 0;
    for (int warp = 0; warp < WARPS; warp++) {
      float other = sm.warps[turn][n][warp];
      own[n] = IS_SUM ? own[n] + other : max_or_nan(own[n], other);
    }
  }
}

// ---- rows of the residual stream ------------------------------------------------------------------------------------

// A block's rows, of one batch entry; behind its last one that one again.
struct Rows {
  int entry;
  u64 row[TOGETHER];
  DEVICE explicit Rows(const Parameters& P) {
    int blocks = (P.tokens + TOGETHER - 1) / TOGETHER, first = blockIdx.x % blocks * TOGETHER;
    entry = blockIdx.x / blocks;
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) row[n] = static_cast<u64>(entry) * P.tokens + min(first + n, P.tokens - 1);
  }
};

// x + gate y, where there is a y; it is written then.
DEVICE Four added(const Parameters& P, u64 from, const Four& gate) {
  Four x = at<Four>(P.x + from);
  if (!P.y) return x;
  Bytes8 raw = at<Bytes8>(P.y + from);
  Four y = widened(raw.word[0], raw.word[1]);
#pragma unroll
  for (int i = 0; i < 4; i++) x.x[i] += __fmul_rn(gate.x[i], y.x[i]);
  put(P.sum + from, x);
  return x;
}
DEVICE Four gate_at(const Parameters& P, int entry, int channel) {
  return P.gate ? at<Four>(P.gate + entry * P.gate_stride + channel) : Four{1.f, 1.f, 1.f, 1.f};
}

#if FORMAT == 0
KERNEL(THREADS, BLOCKS) fps_residual(PARAMETERS Parameters P) {
  Rows rows(P);
#pragma unroll 2
  for (int channel = threadIdx.x * 4; channel < P.channels; channel += THREADS * 4) {
    Four gate = gate_at(P, rows.entry, channel);
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) added(P, rows.row[n] * P.channels + channel, gate);
  }
}
#endif

// ---- 8 bits ---------------------------------------------------------------------------------------------------------

#if FORMAT
// 1 for zeros, and never so small that its inverse is infinite. NaN where a number was none, or infinite: INT8 could not
// say so, and damage must not look like a video.
DEVICE float scale_for(float largest) {
  if (!(largest <= LARGEST_FINITE)) return __int_as_float(0x7fffffff);
  return largest > 0 ? fmaxf(largest / LARGEST, LEAST_NORMAL) : 1.f;
}

// Products are rounded before they become codes: merged with a sum they would break ties in another way.
DEVICE u32 four_codes(const Four& x, float inverse) {
  float a = __fmul_rn(x.x[0], inverse), b = __fmul_rn(x.x[1], inverse);
  float c = __fmul_rn(x.x[2], inverse), d = __fmul_rn(x.x[3], inverse);
#if FORMAT == 2
  // 1.5 * 2^23 leaves no bit for a fraction: the sum is rounded to an integer, which is its lowest byte. No scale lets
  // one be more than 127.
  constexpr float WHOLE = 12582912.f;
  u32 low = __byte_perm(__float_as_int(a + WHOLE), __float_as_int(b + WHOLE), 0x0040);
  return __byte_perm(low, __byte_perm(__float_as_int(c + WHOLE), __float_as_int(d + WHOLE), 0x0040), 0x5410);
#else
  return pack_e4m3(a, b, c, d);
#endif
}
#endif

// ---- norm -----------------------------------------------------------------------------------------------------------

// Mean, then the mean square of what is left: a row is there twice without being read twice.
KERNEL(THREADS, BLOCKS) fps_norm(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  Rows rows(P);
  float mean[TOGETHER] = {}, rms[TOGETHER] = {};
#pragma unroll 2
  for (int channel = threadIdx.x * 4; channel < P.channels; channel += THREADS * 4) {
    Four gate = gate_at(P, rows.entry, channel);
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) {
      Four x = added(P, rows.row[n] * P.channels + channel, gate);
      sm.row[n][channel / 4] = x;  // which the same thread reads
      mean[n] += (x.x[0] + x.x[1]) + (x.x[2] + x.x[3]);
    }
  }
  over_block<true>(mean, 0, sm);
#pragma unroll
  for (int n = 0; n < TOGETHER; n++) mean[n] /= P.channels;
  for (int channel = threadIdx.x * 4; channel < P.channels; channel += THREADS * 4) {
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) {
      Four x = sm.row[n][channel / 4];
#pragma unroll
      for (int i = 0; i < 4; i++) rms[n] = fmaf(x.x[i] - mean[n], x.x[i] - mean[n], rms[n]);
    }
  }
  over_block<true>(rms, 1, sm);
#pragma unroll
  for (int n = 0; n < TOGETHER; n++) rms[n] = 1.f / sqrtf(rms[n] / P.channels + P.eps);
  float largest[TOGETHER] = {};
  const float* factors = P.factor + rows.entry * P.factor_stride;
  const float* addends = P.addend + rows.entry * P.addend_stride;
  for (int channel = threadIdx.x * 4; channel < P.channels; channel += THREADS * 4) {
    Four factor = at<Four>(factors + channel), addend = at<Four>(addends + channel);
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) {
      Four x = sm.row[n][channel / 4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        x.x[i] = __fmul_rn((x.x[i] - mean[n]) * rms[n], P.base + factor.x[i]) + addend.x[i];
      Bytes8 rounded = {pack_bf16(x.x[0], x.x[1]), pack_bf16(x.x[2], x.x[3])};
#if FORMAT == 0
      put(P.out + (rows.row[n] * P.channels + channel) * 2, rounded);
#else
      x = widened(rounded.word[0], rounded.word[1]);
      sm.row[n][channel / 4] = x;
#pragma unroll
      for (int i = 0; i < 4; i++) largest[n] = max_or_nan(largest[n], fabsf(x.x[i]));
#endif
    }
  }
#if FORMAT
  over_block<false>(largest, 2, sm);
#pragma unroll
  for (int n = 0; n < TOGETHER; n++) {
    float scale = scale_for(largest[n]), inverse = 1.f / scale;
    for (int channel = threadIdx.x * 4; channel < P.channels; channel += THREADS * 4) {
      put(P.out + rows.row[n] * P.channels + channel, four_codes(sm.row[n][channel / 4], inverse));
    }
    if (threadIdx.x == 0) P.scale[rows.row[n]] = scale;
  }
#endif
}

// ---- rows of bfloat16 -----------------------------------------------------------------------------------------------

#if FORMAT
// 0.5 x (1 + tanh(u)) as x / (1 + exp(-2 u)): one exponential and one division, and where x is far below zero no sum that
// loses what is left.
DEVICE float gelu(float x) {
  constexpr float SQRT_2_PI = 0.7978845608028654f, LOG2_E = 1.4426950408889634f;
  float u = SQRT_2_PI * (x + 0.044715f * (x * x * x));
  return x / (1.f + exp2_approx(-2 * LOG2_E * u));
}

// One row, 8 channels at once.
template <bool GELU>
DEVICE void round_row(const Parameters& P, Shared& sm) {
  u64 first = static_cast<u64>(blockIdx.x) * P.channels;
  float largest[1] = {};
#pragma unroll 2
  for (int channel = threadIdx.x * 8; channel < P.channels; channel += THREADS * 8) {
    Bytes16 raw = at<Bytes16>(P.y + first + channel);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (GELU) raw.word[i] = pack_bf16(gelu(bf16_low(raw.word[i])), gelu(bf16_high(raw.word[i])));
      largest[0] = max_or_nan(largest[0], fabsf(bf16_low(raw.word[i])));
      largest[0] = max_or_nan(largest[0], fabsf(bf16_high(raw.word[i])));
    }
    sm.rounded[channel / 8] = raw;  // which the same thread reads
  }
  over_block<false>(largest, 0, sm);
  float scale = scale_for(largest[0]), inverse = 1.f / scale;
  for (int channel = threadIdx.x * 8; channel < P.channels; channel += THREADS * 8) {
    Bytes16 raw = sm.rounded[channel / 8];
    u32 low = four_codes(widened(raw.word[0], raw.word[1]), inverse);
    put(P.out + first + channel, Bytes8{low, four_codes(widened(raw.word[2], raw.word[3]), inverse)});
  }
  if (threadIdx.x == 0) P.scale[blockIdx.x] = scale;
}

KERNEL(THREADS, BLOCKS) fps_round(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  round_row<false>(P, sm);
}
KERNEL(THREADS, BLOCKS) fps_gelu(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  round_row<true>(P, sm);
}
#endif
