// From projected q, k and v to what sm90_attention.cu reads: RMS norm over all heads, RoPE, k smoothing, 8 bits, tile
// images. q, k and v are read once here; what a block cannot know of rows outside its tile comes from two small passes
// before: 1 / rms of each row of q and k (fps_row_rms: a norm goes over all heads), and sums over all tokens
// (fps_channel_sums, fps_channel_totals: the largest |v| of each channel, and the mean of k).
//
// One block is one tile of one head. 16 neighbouring threads share a row of 128 channels, 8 each: 16 bytes of bfloat16.
#include <hopper.cuh>
#include <tile.cuh>

#ifndef QK_INT8  // the format of q and k: INT8, or E4M3
#define QK_INT8 0
#endif
#ifndef QK_LARGEST  // the number that scales of q and k aim at
#define QK_LARGEST 448
#endif
#ifndef SMOOTH_K  // take the mean over tokens from k
#define SMOOTH_K 1
#endif
#ifndef V_ONES  // rows of ones below v^T, which make the tensor cores sum P: 8 or 0
#define V_ONES 0
#endif

constexpr int THREADS = 256, ROW_THREADS = 16, CHANNELS = HEAD_DIM / ROW_THREADS;
constexpr int ROWS_AT_ONCE = THREADS / ROW_THREADS, TOGETHER = 2;  // rows of a thread whose loads overlap
constexpr int V_BYTES = (HEAD_DIM + V_ONES) * SLOTS;
constexpr float E4M3_LARGEST = 448.f, LEAST_NORMAL = 1.17549435e-38f, LARGEST_FINITE = 3.402823466e38f;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr u32 E4M3_ONE = 0x38;

// "stream" is batch entry * heads + head; tensors of the model are [batch][token][head][channel], rows in tile order.
struct Parameters {
  const u16 *q, *k, *v;           // bfloat16
  const float *norm_q, *norm_k;   // [head][channel]
  const float* rope;              // [token][channel / 2][2]: cosine, sine
  const int* offsets;             // [tile + 1]: first row of each tile
  float *q_rms, *k_rms;           // [batch][token]: 1 / rms
  float *k_partial, *v_partial;   // [stream][tile][channel]: sums of k, largest |v|
  float *k_mean, *v_scale;        // [stream][channel]
  u8 *q_image, *k_image, *v_image;  // [stream][tile]
  Trailer* trailers;              // [stream][tile]
  float* q_scale;                 // [stream][tile][128]: times log2(e) / sqrt(head_dim)
  float *q_pooled, *k_pooled;     // [stream][tile][channel]: mean over the tile's tokens
  int batch, heads, tiles, tokens;
  float eps;
};

struct Shared {
  float warps[THREADS / 32][HEAD_DIM];
  float largest[THREADS / 32];
  float v_inverse[HEAD_DIM];          // 1 / scale
  u32 v[SLOTS][HEAD_DIM / 2];  // as it came, pairs of channels in the order of pair_at
};

struct alignas(16) Bytes16 {
  u32 word[4];
};

DEVICE float bf16_low(u32 pair) { return __int_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __int_as_float(pair & 0xffff0000u); }

// One tile of one head, and this thread's place in its rows. Heads go fastest: blocks that run at the same time share
// rows of the RoPE table, and what they read of q, k and v lies side by side.
struct Place {
  int stream, tile, head, first, valid, row, channel;
  u64 item;       // among [stream][tile]
  u64 batch_row;  // of the tile's first token, among all rows of the batch
  DEVICE Place(const Parameters& P, int index) {
    int streams = P.batch * P.heads;
    stream = index % streams, tile = index / streams, head = stream % P.heads;
    item = static_cast<u64>(stream) * P.tiles + tile;
    first = P.offsets[tile], valid = P.offsets[tile + 1] - first;
    row = threadIdx.x / ROW_THREADS, channel = threadIdx.x % ROW_THREADS * CHANNELS;
    batch_row = static_cast<u64>(stream / P.heads) * P.tokens + first;
  }
  DEVICE u64 element(const Parameters& P, int in_tile) const {
    return ((batch_row + in_tile) * P.heads + head) * HEAD_DIM + channel;
  }
};

DEVICE void load(float (&x)[CHANNELS], const u16* from) {
  Bytes16 raw = *reinterpret_cast<const Bytes16*>(from);
#pragma unroll
  for (int i = 0; i < CHANNELS; i += 2) x[i] = bf16_low(raw.word[i / 2]), x[i + 1] = bf16_high(raw.word[i / 2]);
}

struct alignas(16) Four {
  float x[4];
};
DEVICE void load(float (&x)[CHANNELS], const float* from) {
#pragma unroll
  for (int i = 0; i < CHANNELS; i += 4) {
    Four four = *reinterpret_cast<const Four*>(from + i);  // copied whole: its numbers one by one would be four loads
#pragma unroll
    for (int n = 0; n < 4; n++) x[i + n] = four.x[n];
  }
}

// A row of q or k: RMS norm over all heads, whose row factor is known, and RoPE of the interleaved pairs.
DEVICE void norm_and_rotate(float (&x)[CHANNELS], const u16* from, const Parameters& P, const Place& at, int in_tile,
                            const float (&norm)[CHANNELS], const float* rms) {
  float factor = rms[at.batch_row + in_tile], turn[CHANNELS];
  load(turn, P.rope + (static_cast<u64>(at.first + in_tile) * HEAD_DIM + at.channel));
  load(x, from + at.element(P, in_tile));
#pragma unroll
  for (int i = 0; i < CHANNELS; i += 2) {
    float even = x[i] * factor * norm[i], odd = x[i + 1] * factor * norm[i + 1];
    x[i] = even * turn[i] - odd * turn[i + 1];
    x[i + 1] = even * turn[i + 1] + odd * turn[i];
  }
}

// Never 0, and never so small that its inverse is infinite. NaN where a number was none, or infinite: codes could not say
// so, INT8 least of all, and damage must not look like a video.
DEVICE float scale_for(float largest, float aim) {
  if (!(largest <= LARGEST_FINITE)) return __int_as_float(0x7fffffff);
  return largest > 0 ? fmaxf(largest / aim, LEAST_NORMAL) : 1.f;
}

// ---- before: 1 / rms of each row -----------------------------------------------------------------------------------

// A warp for each row of q and of k: grid of at least 2 * batch * tokens / 8 blocks of 256 threads.
KERNEL(THREADS) fps_row_rms(PARAMETERS Parameters P) {
  u64 rows = static_cast<u64>(P.batch) * P.tokens, row = static_cast<u64>(blockIdx.x) * (THREADS / 32) + threadIdx.x / 32;
  if (row >= 2 * rows) return;
  bool of_k = row >= rows;
  if (of_k) row -= rows;
  int width = P.heads * HEAD_DIM;
  const u16* from = (of_k ? P.k : P.q) + row * width;
  float sum = 0;
  for (int i = threadIdx.x % 32 * CHANNELS; i < width; i += 32 * CHANNELS) {
    float x[CHANNELS];
    load(x, from + i);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) sum += x[c] * x[c];
  }
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (threadIdx.x % 32 == 0) (of_k ? P.k_rms : P.q_rms)[row] = 1.f / sqrtf(sum / width + P.eps);
}

// ---- before: sums over all tokens ----------------------------------------------------------------------------------

// Of each thread's 8 channels, over the block's rows: summed, or the largest. In a fixed order, hence the same bits
// every time. The result is for channel threadIdx.x where that is one.
template <bool LARGEST>
DEVICE float over_rows(const float (&own)[CHANNELS], Shared& sm) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < CHANNELS; i++) {
    float other = shuffle_xor(own[i], 16);  // a warp has two rows
    if (lane < 16) sm.warps[warp][lane * CHANNELS + i] = LARGEST ? max_or_nan(own[i], other) : own[i] + other;
  }
  __syncthreads();
  float all = 0;
  if (threadIdx.x < HEAD_DIM)
    for (int w = 0; w < THREADS / 32; w++)
      all = LARGEST ? max_or_nan(all, sm.warps[w][threadIdx.x]) : all + sm.warps[w][threadIdx.x];
  __syncthreads();
  return all;
}

// One block for each tile of each head.
KERNEL(THREADS) fps_channel_sums(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  Place at(P, blockIdx.x);
  float k_sum[CHANNELS] = {}, v_largest[CHANNELS] = {}, norm[CHANNELS];
  load(norm, P.norm_k + at.head * HEAD_DIM + at.channel);
  for (int row = at.row; row < at.valid; row += ROWS_AT_ONCE) {
    float x[CHANNELS];
    if (SMOOTH_K) {
      norm_and_rotate(x, P.k, P, at, row, norm, P.k_rms);
#pragma unroll
      for (int i = 0; i < CHANNELS; i++) k_sum[i] += x[i];
    }
    load(x, P.v + at.element(P, row));
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) v_largest[i] = max_or_nan(v_largest[i], fabsf(x[i]));
  }
  u64 to = at.item * HEAD_DIM + threadIdx.x;
  float sum = over_rows<false>(k_sum, sm), largest = over_rows<true>(v_largest, sm);
  if (threadIdx.x < HEAD_DIM) P.k_partial[to] = sum, P.v_partial[to] = largest;
}

// One block for each head; half of its threads take the even tiles, half the odd ones.
KERNEL(THREADS) fps_channel_totals(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int stream = blockIdx.x, channel = threadIdx.x % HEAD_DIM, half = threadIdx.x / HEAD_DIM;
  float sum = 0, largest = 0;
#pragma unroll 8
  for (int tile = half; tile < P.tiles; tile += THREADS / HEAD_DIM) {
    u64 from = (static_cast<u64>(stream) * P.tiles + tile) * HEAD_DIM + channel;
    sum += P.k_partial[from];
    largest = max_or_nan(largest, P.v_partial[from]);
  }
  if (half) sm.warps[0][channel] = sum, sm.warps[1][channel] = largest;
  __syncthreads();
  if (half) return;
  sum += sm.warps[0][channel], largest = max_or_nan(largest, sm.warps[1][channel]);
  P.k_mean[stream * HEAD_DIM + channel] = SMOOTH_K ? sum / P.tokens : 0.f;
  P.v_scale[stream * HEAD_DIM + channel] = scale_for(largest, E4M3_LARGEST);
}

// ---- the pass itself -----------------------------------------------------------------------------------------------

DEVICE u32 four_codes(float a, float b, float c, float d) {
#if QK_INT8
  // 1.5 * 2^23 leaves no bit for a fraction: the sum is rounded to an integer, which is its lowest byte. No scale lets
  // one be more than 127.
  constexpr float WHOLE = 12582912.f;
  u32 low = __byte_perm(__float_as_int(a + WHOLE), __float_as_int(b + WHOLE), 0x0040);
  return __byte_perm(low, __byte_perm(__float_as_int(c + WHOLE), __float_as_int(d + WHOLE), 0x0040), 0x5410);
#else
  return pack_e4m3(a, b, c, d);
#endif
}

// 8 codes of a row into its tile image: half of a chunk of 16 bytes, wherever the swizzle has put that. A product with
// 1 / scale, since a division is many instructions.
DEVICE void write_codes(u8* image, int row, int channel, const float (&x)[CHANNELS], float inverse) {
  u32 low = four_codes(x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse);
  u32 high = four_codes(x[4] * inverse, x[5] * inverse, x[6] * inverse, x[7] * inverse);
  *reinterpret_cast<u64*>(image + swizzled(row, channel)) = low | static_cast<u64>(high) << 32;
}

DEVICE float largest_of(const float (&x)[CHANNELS]) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < CHANNELS; i++) largest = max_or_nan(largest, fabsf(x[i]));
  return largest;
}

// The mean of a tile's tokens, from each thread's sums.
DEVICE void pool(const float (&sums)[CHANNELS], const Place& at, Shared& sm, float* to) {
  float sum = over_rows<false>(sums, sm);
  if (threadIdx.x < HEAD_DIM) to[at.item * HEAD_DIM + threadIdx.x] = sum / at.valid;
}

// q: one scale for each token. Empty slots of q and k repeat the last token.
DEVICE void quantize_q(const Parameters& P, const Place& at, Shared& sm) {
  float norm[CHANNELS], sums[CHANNELS] = {};
  load(norm, P.norm_q + at.head * HEAD_DIM + at.channel);
  for (int first = at.row; first < SLOTS; first += TOGETHER * ROWS_AT_ONCE) {
    float x[TOGETHER][CHANNELS];  // no load goes before a store that may be to the same place
#pragma unroll
    for (int n = 0; n < TOGETHER; n++)
      norm_and_rotate(x[n], P.q, P, at, min(first + n * ROWS_AT_ONCE, at.valid - 1), norm, P.q_rms);
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) {
      int slot = first + n * ROWS_AT_ONCE;
      float largest = largest_of(x[n]);
#pragma unroll
      for (int lanes = ROW_THREADS / 2; lanes; lanes /= 2) largest = max_or_nan(largest, shuffle_xor(largest, lanes));
      float scale = scale_for(largest, QK_LARGEST);
      write_codes(P.q_image + at.item * TILE_BYTES, slot, at.channel, x[n], 1.f / scale);
      if (at.channel == 0) P.q_scale[at.item * SLOTS + slot] = scale * (LOG2_E / sqrtf(HEAD_DIM));
      if (slot >= at.valid) continue;
#pragma unroll
      for (int i = 0; i < CHANNELS; i++) sums[i] += x[n][i];
    }
  }
  pool(sums, at, sm, P.q_pooled);
}

// k: one scale for the tile, so its rows are gone through twice, the second time from the cache. Pooled before smoothing.
DEVICE void quantize_k(const Parameters& P, const Place& at, Shared& sm) {
  float norm[CHANNELS], mean[CHANNELS] = {}, sums[CHANNELS] = {}, largest = 0;
  load(norm, P.norm_k + at.head * HEAD_DIM + at.channel);
  if (SMOOTH_K) load(mean, P.k_mean + at.stream * HEAD_DIM + at.channel);
#pragma unroll TOGETHER
  for (int row = at.row; row < at.valid; row += ROWS_AT_ONCE) {
    float x[CHANNELS];
    norm_and_rotate(x, P.k, P, at, row, norm, P.k_rms);
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) sums[i] += x[i], x[i] -= mean[i];
    largest = max_or_nan(largest, largest_of(x));
  }
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) largest = max_or_nan(largest, shuffle_xor(largest, lanes));
  if (threadIdx.x % 32 == 0) sm.largest[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int warp = 0; warp < THREADS / 32; warp++) largest = max_or_nan(largest, sm.largest[warp]);
  float scale = scale_for(largest, QK_LARGEST), inverse = 1.f / scale;
#pragma unroll TOGETHER
  for (int slot = at.row; slot < SLOTS; slot += ROWS_AT_ONCE) {
    float x[CHANNELS];
    norm_and_rotate(x, P.k, P, at, min(slot, at.valid - 1), norm, P.k_rms);
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) x[i] -= mean[i];
    write_codes(P.k_image + at.item * TILE_BYTES, slot, at.channel, x, inverse);
  }
  if (threadIdx.x == 0) P.trailers[at.item] = {scale, at.valid, {0, 0}};
  pool(sums, at, sm, P.k_pooled);
}

DEVICE void write_row(u8* image, int row, int position, u32 codes) {
  *reinterpret_cast<u32*>(image + swizzled(row, position)) = codes;
}

// Where a token's pair of channels lies in sm.v. The 32 threads of a warp read one pair of tokens 2 a + 16 b, a < 4 and
// b < 8, plus 0, 1, 8 or 9 for all of them (token_at): a and b choose the bank. Two rows that a warp writes differ in
// the lowest bit.
DEVICE int pair_at(int token, int pair) { return pair ^ ((token >> 1 & 3) ^ (token & 1) | (token >> 4) << 2); }

// v, transposed by way of shared memory: a warp writes two channels' 128 tokens, 4 of each per thread.
DEVICE void quantize_v(const Parameters& P, const Place& at, Shared& sm) {
  for (int row = at.row; row < SLOTS; row += ROWS_AT_ONCE) {
    Bytes16 raw = {};
    if (row < at.valid) raw = *reinterpret_cast<const Bytes16*>(P.v + at.element(P, row));
#pragma unroll
    for (int i = 0; i < 4; i++) sm.v[row][pair_at(row, at.channel / 2 + i)] = raw.word[i];
  }
  if (threadIdx.x < HEAD_DIM) sm.v_inverse[threadIdx.x] = 1.f / P.v_scale[at.stream * HEAD_DIM + threadIdx.x];
  __syncthreads();
  u8* image = P.v_image + at.item * V_BYTES;
  int position = threadIdx.x % 32 * 4;
  for (int channel = threadIdx.x / 32 * 2; channel < HEAD_DIM; channel += THREADS / 32 * 2) {
    float even[4], odd[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int token = token_at(position + i);
      u32 pair = sm.v[token][pair_at(token, channel / 2)];
      even[i] = bf16_low(pair) * sm.v_inverse[channel], odd[i] = bf16_high(pair) * sm.v_inverse[channel + 1];
    }
    write_row(image, channel, position, pack_e4m3(even[0], even[1], even[2], even[3]));
    write_row(image, channel + 1, position, pack_e4m3(odd[0], odd[1], odd[2], odd[3]));
  }
  u32 ones = 0;
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (token_at(position + i) < at.valid) ones |= E4M3_ONE << 8 * i;
  for (int row = HEAD_DIM + threadIdx.x / 32; row < HEAD_DIM + V_ONES; row += THREADS / 32)
    write_row(image, row, position, ones);
}

// One block for q, one for k and one for v of each tile of each head: together they would need twice the registers.
KERNEL(THREADS, 3) fps_prologue(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  Place at(P, blockIdx.x / 3);
  if (blockIdx.x % 3 == 0) quantize_q(P, at, sm);
  if (blockIdx.x % 3 == 1) quantize_k(P, at, sm);
  if (blockIdx.x % 3 == 2) quantize_v(P, at, sm);
}
