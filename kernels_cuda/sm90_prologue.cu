// From projected q, k and v to what sm90_attention.cu reads: RMS norm over all heads, RoPE, k smoothing, 8 bits, tile
// images. Memory is what this takes, so q and v are read once, and k twice. Four launches, or five:
//
//   fps_rows      whole rows of q and k, since a norm goes over all heads. q is finished here: its scales are by token.
//                 k is not, since its scales are by tile and its mean over all tokens: it leaves each row's factor, and
//                 each tile's mean.
//   fps_channels  the mean of k, from its tiles' means; a scale for each channel of v, from the first row of each tile.
//   fps_tiles     tiles of k and v. Notes where v goes beyond what its scale can hold.
//   fps_v_again   tiles of v once more where it did. As a rule there are none.
//   fps_summary   tiles of mean keys and mean values, one for 128 tiles; where the plan has a summary.
//
// A thread has 8 channels of a row: 16 bytes of bfloat16. 16 neighbouring threads share a row of one head.
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
#ifndef SUMMARY  // leave each tile's mean of v, and make tiles of the means of k and v
#define SUMMARY 0
#endif

constexpr int THREADS = 256, ROW_THREADS = 16, CHANNELS = HEAD_DIM / ROW_THREADS;
constexpr int AT_ONCE = THREADS / ROW_THREADS;  // rows of one head, or heads of one row
constexpr int TOGETHER = 2;                     // rows of a thread whose loads overlap
constexpr int ROUNDS = 3;                       // for all heads of a row: 48 at most. More would spill registers
constexpr int V_BYTES = (HEAD_DIM + V_ONES) * SLOTS;
// The largest |v| of a sample becomes 28, of E4M3's 448: any other may be 16 times as large. To a floating-point format
// this costs nothing but the last bits of what is less than 1 / 1800 of the sample's largest.
constexpr float V_LARGEST = 28.f;
constexpr float E4M3_LARGEST = 448.f, LEAST_NORMAL = 1.17549435e-38f, LARGEST_FINITE = 3.402823466e38f;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr u32 E4M3_ONE = 0x38;

// "stream" is batch entry * heads + head; tensors of the model are [batch][token][head][channel], rows in tile order.
struct Parameters {
  const u16 *q, *k, *v;           // bfloat16
  const float *norm_q, *norm_k;   // [head][channel]
  const float* rope;              // [token][channel / 2][2]: cosine, sine
  const int* offsets;             // [tile + 1]: first row of each tile
  float* k_rms;                   // [batch][token]: 1 / rms
  float *k_mean, *v_scale;        // [stream][channel]
  u32* v_beyond;                  // [stream][channel]: bits of the largest |v|, where that is too large; else 0
  u8 *q_image, *k_image, *v_image;  // [stream][tile]
  Trailer* trailers;              // [stream][tile]
  float* q_scale;                 // [stream][tile][128]: times log2(e) / sqrt(head_dim)
  float *q_pooled, *k_pooled;     // [stream][tile][channel]: mean over the tile's tokens
  float* v_means;                 // as q_pooled; this and the rest where there is a SUMMARY
  u8 *summary_k, *summary_v;      // [stream][summary tile], images whose tokens are 128 tiles; those of k smoothed
  Trailer* summary_trailers;      // [stream][summary tile]
  int batch, heads, tiles, tokens;
  float eps;
};

struct Shared {
  float warps[THREADS / 32][HEAD_DIM];
  float squares[2][TOGETHER][THREADS / 32];
  float largest[THREADS / 32];
  float v_inverse[HEAD_DIM];   // 1 / scale
  u32 v[SLOTS][HEAD_DIM / 2];  // as it came, pairs of channels in the order of pair_at
};

struct alignas(16) Bytes16 {
  u32 word[4];
};

DEVICE float bf16_low(u32 pair) { return __int_as_float(pair << 16); }
DEVICE float bf16_high(u32 pair) { return __int_as_float(pair & 0xffff0000u); }

// One tile of one head, and this thread's place in its rows.
struct Place {
  int stream, tile, head, first, valid, row, channel;
  u64 item;       // among [stream][tile]
  u64 batch_row;  // of the tile's first token, among all rows of the batch
  DEVICE Place(const Parameters& P, int stream, int tile) : stream(stream), tile(tile), head(stream % P.heads) {
    item = static_cast<u64>(stream) * P.tiles + tile;
    first = P.offsets[tile], valid = P.offsets[tile + 1] - first;
    row = threadIdx.x / ROW_THREADS, channel = threadIdx.x % ROW_THREADS * CHANNELS;
    batch_row = static_cast<u64>(stream / P.heads) * P.tokens + first;
  }
  DEVICE u64 item_of(const Parameters& P, int heads_on) const { return item + static_cast<u64>(heads_on) * P.tiles; }
  DEVICE u64 element(const Parameters& P, int in_tile) const {
    return ((batch_row + in_tile) * P.heads + head) * HEAD_DIM + channel;
  }
};

// Heads go fastest: blocks that run at the same time share rows of the RoPE table, and what they read of k and v lies
// side by side.
DEVICE Place tile_of(const Parameters& P, int index) {
  int streams = P.batch * P.heads;
  return Place(P, index % streams, index / streams);
}

DEVICE Bytes16 bytes_at(const void* from) { return *reinterpret_cast<const Bytes16*>(from); }
DEVICE void unpack(float (&x)[CHANNELS], const Bytes16& raw) {
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

DEVICE void store(float* to, const float (&x)[CHANNELS]) {
#pragma unroll
  for (int i = 0; i < CHANNELS; i += 4) *reinterpret_cast<Four*>(to + i) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
}

// A row of q or k: RMS norm over all heads, whose row factor is known, and RoPE of the interleaved pairs.
DEVICE void norm_and_rotate(float (&x)[CHANNELS], const Bytes16& raw, float factor, const float (&norm)[CHANNELS],
                            const float (&turn)[CHANNELS]) {
  unpack(x, raw);
#pragma unroll
  for (int i = 0; i < CHANNELS; i += 2) {
    float even = x[i] * factor * norm[i], odd = x[i + 1] * factor * norm[i + 1];
    x[i] = even * turn[i] - odd * turn[i + 1];
    x[i + 1] = even * turn[i + 1] + odd * turn[i];
  }
}
DEVICE const float* turn_of(const Parameters& P, const Place& at, int in_tile) {
  return P.rope + (static_cast<u64>(at.first + in_tile) * HEAD_DIM + at.channel);
}

// Never 0, and never so small that its inverse is infinite. NaN where a number was none, or infinite: codes could not say
// so, INT8 least of all, and damage must not look like a video.
DEVICE float scale_for(float largest, float aim) {
  if (!(largest <= LARGEST_FINITE)) return __int_as_float(0x7fffffff);
  return largest > 0 ? fmaxf(largest / aim, LEAST_NORMAL) : 1.f;
}

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

// ---- whole rows -----------------------------------------------------------------------------------------------------

// 1 / rms of TOGETHER rows, from each thread's sums of squares. `turn` alternates: the next call's sums may be there
// before all threads have read these.
DEVICE void row_factors(float (&factor)[TOGETHER], float (&squares)[TOGETHER], const Parameters& P, int turn, Shared& sm) {
#pragma unroll
  for (int n = 0; n < TOGETHER; n++) {
#pragma unroll
    for (int lanes = 16; lanes; lanes /= 2) squares[n] += shuffle_xor(squares[n], lanes);
    if (threadIdx.x % 32 == 0) sm.squares[turn][n][threadIdx.x / 32] = squares[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < TOGETHER; n++) {
    float sum = 0;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += sm.squares[turn][n][warp];
    factor[n] = 1.f / sqrtf(sum / (P.heads * HEAD_DIM) + P.eps);
  }
}

// q: one scale for each token of a head, whose row 16 threads have.
DEVICE void quantize_q(const Parameters& P, u64 item, int slot, int channel, const float (&x)[CHANNELS]) {
  float largest = largest_of(x);
#pragma unroll
  for (int lanes = ROW_THREADS / 2; lanes; lanes /= 2) largest = max_or_nan(largest, shuffle_xor(largest, lanes));
  float scale = scale_for(largest, QK_LARGEST);
  write_codes(P.q_image + item * TILE_BYTES, slot, channel, x, 1.f / scale);
  if (channel == 0) P.q_scale[item * SLOTS + slot] = scale * (LOG2_E / sqrtf(HEAD_DIM));
}

// The heads of a row that a thread has, a round for each: every AT_ONCE-th one. A warp has two heads at once, or none: a
// second one that is not there is the last head once more.
struct Heads {
  int all;
  DEVICE bool any(int round) const { return round * AT_ONCE + threadIdx.x / 32 * 2 < all; }
  DEVICE bool own(int round) const { return round * AT_ONCE + threadIdx.x / ROW_THREADS < all; }
  DEVICE int at(int round) const { return min(round * AT_ONCE + static_cast<int>(threadIdx.x) / ROW_THREADS, all - 1); }
};

// The rows of one tile in all heads, TOGETHER at once. `tile` is that of a batch entry's first head. Empty slots of q
// repeat the last token. Pooled before smoothing.
template <bool OF_K>
DEVICE void take_rows(const Parameters& P, const Place& tile, Shared& sm) {
  Heads heads{P.heads};
  float sums[ROUNDS][CHANNELS] = {};
  for (int first = 0; first < (OF_K ? tile.valid : SLOTS); first += TOGETHER) {
    Bytes16 raw[ROUNDS][TOGETHER];
    float turn[TOGETHER][CHANNELS], squares[TOGETHER] = {}, factor[TOGETHER];
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
      if (!heads.any(round)) continue;
#pragma unroll
      for (int n = 0; n < TOGETHER; n++) {
        u64 from = tile.element(P, min(first + n, tile.valid - 1)) + heads.at(round) * HEAD_DIM;
        raw[round][n] = bytes_at((OF_K ? P.k : P.q) + from);
      }
    }
#pragma unroll
    for (int n = 0; n < TOGETHER; n++) load(turn[n], turn_of(P, tile, min(first + n, tile.valid - 1)));
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
      if (!heads.own(round)) continue;
#pragma unroll
      for (int n = 0; n < TOGETHER; n++) {
        float x[CHANNELS];
        unpack(x, raw[round][n]);
#pragma unroll
        for (int i = 0; i < CHANNELS; i++) squares[n] += x[i] * x[i];
      }
    }
    row_factors(factor, squares, P, first / TOGETHER & 1, sm);
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
      if (!heads.any(round)) continue;
      float norm[CHANNELS];
      load(norm, (OF_K ? P.norm_k : P.norm_q) + heads.at(round) * HEAD_DIM + tile.channel);
#pragma unroll
      for (int n = 0; n < TOGETHER; n++) {
        float x[CHANNELS];
        norm_and_rotate(x, raw[round][n], factor[n], norm, turn[n]);
        if (!OF_K) quantize_q(P, tile.item_of(P, heads.at(round)), first + n, tile.channel, x);
        if (first + n >= tile.valid) continue;
#pragma unroll
        for (int i = 0; i < CHANNELS; i++) sums[round][i] += x[i];
      }
    }
#pragma unroll
    for (int n = 0; n < TOGETHER; n++)
      if (OF_K && threadIdx.x == 0 && first + n < tile.valid) P.k_rms[tile.batch_row + first + n] = factor[n];
  }
  float share = 1.f / tile.valid;
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    if (!heads.own(round)) continue;
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) sums[round][i] *= share;
    store((OF_K ? P.k_pooled : P.q_pooled) + tile.item_of(P, heads.at(round)) * HEAD_DIM + tile.channel, sums[round]);
  }
}

// A block for q and one for k of each tile, which read the same rows of the RoPE table.
KERNEL(THREADS, 2) fps_rows(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int index = blockIdx.x / 2;
  Place at(P, index / P.tiles * P.heads, index % P.tiles);
  if (blockIdx.x % 2 == 0) take_rows<false>(P, at, sm);
  if (blockIdx.x % 2 == 1) take_rows<true>(P, at, sm);
}

// ---- channels -------------------------------------------------------------------------------------------------------

// Of each thread's 8 channels, over all threads that have them: summed, or the largest. In a fixed order, hence the same
// bits every time. The result is for channel threadIdx.x where that is one.
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

// One block for each head; each of its rows of threads takes every AT_ONCE-th tile.
KERNEL(THREADS) fps_channels(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int stream = blockIdx.x;
  float k_sum[CHANNELS] = {}, v_largest[CHANNELS] = {};
#pragma unroll 4
  for (int tile = threadIdx.x / ROW_THREADS; tile < P.tiles; tile += AT_ONCE) {
    Place at(P, stream, tile);
    float pooled[CHANNELS], x[CHANNELS];
    if (SMOOTH_K) load(pooled, P.k_pooled + at.item * HEAD_DIM + at.channel);
    unpack(x, bytes_at(P.v + at.element(P, 0)));
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) {
      if (SMOOTH_K) k_sum[i] += at.valid * pooled[i];
      v_largest[i] = max_or_nan(v_largest[i], fabsf(x[i]));
    }
  }
  float sum = over_rows<false>(k_sum, sm), largest = over_rows<true>(v_largest, sm);
  if (threadIdx.x >= HEAD_DIM) return;
  int to = stream * HEAD_DIM + threadIdx.x;
  if (SMOOTH_K) P.k_mean[to] = sum / P.tokens;
  P.v_scale[to] = fmaxf(largest / V_LARGEST, LEAST_NORMAL);  // after zeros anything is beyond
  P.v_beyond[to] = 0;
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// k: one scale for the tile, whose rows wait in registers until it is known.
constexpr int ROWS = SLOTS / AT_ONCE;
DEVICE void write_k(u8* image, Trailer* trailer, const float (&x)[ROWS][CHANNELS], int valid, Shared& sm) {
  int row = threadIdx.x / ROW_THREADS, channel = threadIdx.x % ROW_THREADS * CHANNELS;
  float largest = 0;
#pragma unroll
  for (int n = 0; n < ROWS; n++) largest = max_or_nan(largest, largest_of(x[n]));
#pragma unroll
  for (int lanes = 16; lanes; lanes /= 2) largest = max_or_nan(largest, shuffle_xor(largest, lanes));
  if (threadIdx.x % 32 == 0) sm.largest[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int warp = 0; warp < THREADS / 32; warp++) largest = max_or_nan(largest, sm.largest[warp]);
  float scale = scale_for(largest, QK_LARGEST), inverse = 1.f / scale;
#pragma unroll
  for (int n = 0; n < ROWS; n++) write_codes(image, row + n * AT_ONCE, channel, x[n], inverse);
  if (threadIdx.x == 0) *trailer = {scale, valid, {0, 0}};
}

// Empty slots repeat the last token.
DEVICE void quantize_k(const Parameters& P, const Place& at, Shared& sm) {
  float norm[CHANNELS], mean[CHANNELS] = {}, x[ROWS][CHANNELS];
  load(norm, P.norm_k + at.head * HEAD_DIM + at.channel);
  if (SMOOTH_K) load(mean, P.k_mean + at.stream * HEAD_DIM + at.channel);
#pragma unroll
  for (int n = 0; n < ROWS; n++) {
    int row = min(at.row + n * AT_ONCE, at.valid - 1);
    float turn[CHANNELS];
    load(turn, turn_of(P, at, row));
    norm_and_rotate(x[n], bytes_at(P.k + at.element(P, row)), P.k_rms[at.batch_row + row], norm, turn);
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) x[n][i] -= mean[i];
  }
  write_k(P.k_image + at.item * TILE_BYTES, P.trailers + at.item, x, at.valid, sm);
}

DEVICE void write_row(u8* image, int row, int position, u32 codes) {
  *reinterpret_cast<u32*>(image + swizzled(row, position)) = codes;
}

// Of a tile of v whose tokens are `valid`: what makes the tensor cores sum P.
DEVICE void write_ones(u8* image, int position, int valid) {
  u32 ones = 0;
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (token_at(position + i) < valid) ones |= E4M3_ONE << 8 * i;
  for (int row = HEAD_DIM + threadIdx.x / 32; row < HEAD_DIM + V_ONES; row += THREADS / 32)
    write_row(image, row, position, ones);
}

// Where a token's pair of channels lies in sm.v. The 32 threads of a warp read one pair of tokens 2 a + 16 b, a < 4 and
// b < 8, plus 0, 1, 8 or 9 for all of them (token_at): a and b choose the bank. Two rows that a warp writes differ in
// the lowest bit.
DEVICE int pair_at(int token, int pair) { return pair ^ ((token >> 1 & 3) ^ (token & 1) | (token >> 4) << 2); }

// The scale of a channel of v. In the second launch it is of the true largest where that was beyond the first one.
template <bool AGAIN>
DEVICE float scale_of_v(const Parameters& P, const Place& at, int channel) {
  int which = at.stream * HEAD_DIM + channel;
  u32 beyond = AGAIN ? P.v_beyond[which] : 0;
  if (!beyond) return P.v_scale[which];
  float scale = scale_for(__int_as_float(beyond), E4M3_LARGEST);
  if (at.tile == 0) P.v_scale[which] = scale;  // which nobody reads any more
  return scale;
}

// v, transposed by way of shared memory: a warp writes two channels' 128 tokens, 4 of each per thread.
template <bool AGAIN>
DEVICE void quantize_v(const Parameters& P, const Place& at, Shared& sm) {
  constexpr bool MEANS = SUMMARY && !AGAIN;
  float largest[CHANNELS] = {}, sum[CHANNELS] = {};
#pragma unroll 4
  for (int row = at.row; row < SLOTS; row += AT_ONCE) {
    Bytes16 raw = {};
    if (row < at.valid) raw = bytes_at(P.v + at.element(P, row));
#pragma unroll
    for (int i = 0; i < 4; i++) sm.v[row][pair_at(row, at.channel / 2 + i)] = raw.word[i];
    float x[CHANNELS];
    unpack(x, raw);
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) {
      largest[i] = max_or_nan(largest[i], fabsf(x[i]));
      if (MEANS) sum[i] += x[i];
    }
  }
  if (MEANS) {
    float all = over_rows<false>(sum, sm);
    if (threadIdx.x < HEAD_DIM) P.v_means[at.item * HEAD_DIM + threadIdx.x] = all / at.valid;
  }
  if (threadIdx.x < HEAD_DIM) sm.v_inverse[threadIdx.x] = 1.f / scale_of_v<AGAIN>(P, at, threadIdx.x);
  __syncthreads();
  if (!AGAIN) {
    u32* beyond = P.v_beyond + at.stream * HEAD_DIM + at.channel;
#pragma unroll
    for (int i = 0; i < CHANNELS; i++)  // bits of numbers that are not negative have their order, and NaN is the last
      if (!(largest[i] * sm.v_inverse[at.channel + i] <= E4M3_LARGEST)) atomic_max(beyond + i, __float_as_int(largest[i]));
  }
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
  write_ones(image, position, at.valid);
}

// A block for k and one for v of each tile of each head: together they would need more registers.
KERNEL(THREADS, 2) fps_tiles(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  Place at = tile_of(P, blockIdx.x / 2);
  if (blockIdx.x % 2 == 0) quantize_k(P, at, sm);
  if (blockIdx.x % 2 == 1) quantize_v<false>(P, at, sm);
}

// A few blocks for each head, which end at once where v was within what its scales can hold.
KERNEL(THREADS) fps_v_again(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  int streams = P.batch * P.heads, stream = blockIdx.x % streams;
  bool beyond = false;
  for (int channel = threadIdx.x % 32; channel < HEAD_DIM; channel += 32)
    beyond |= P.v_beyond[stream * HEAD_DIM + channel] != 0;
  if (!warp_any(beyond)) return;
  for (int tile = blockIdx.x / streams; tile < P.tiles; tile += gridDim.x / streams) {
    quantize_v<true>(P, Place(P, stream, tile), sm);
    __syncthreads();  // all have read
  }
}

// ---- summary --------------------------------------------------------------------------------------------------------

#if SUMMARY
// 128 tiles of a head, whose means are the tokens of one tile more.
struct Summary {
  int stream, first, valid;
  u64 item;      // among [stream][summary tile]
  u64 mean;      // of the first tile, in [stream][tile][channel]
  DEVICE Summary(const Parameters& P, int index) {
    int many = (P.tiles + SLOTS - 1) / SLOTS;
    stream = index / many, first = index % many * SLOTS, valid = min(P.tiles - first, SLOTS), item = index;
    mean = (static_cast<u64>(stream) * P.tiles + first) * HEAD_DIM;
  }
};

// As quantize_k.
DEVICE void summarise_k(const Parameters& P, const Summary& at, Shared& sm) {
  int channel = threadIdx.x % ROW_THREADS * CHANNELS;
  float mean[CHANNELS] = {}, x[ROWS][CHANNELS];
  if (SMOOTH_K) load(mean, P.k_mean + at.stream * HEAD_DIM + channel);
#pragma unroll
  for (int n = 0; n < ROWS; n++) {
    int tile = min(static_cast<int>(threadIdx.x) / ROW_THREADS + n * AT_ONCE, at.valid - 1);
    load(x[n], P.k_pooled + at.mean + tile * HEAD_DIM + channel);
#pragma unroll
    for (int i = 0; i < CHANNELS; i++) x[n][i] -= mean[i];
  }
  write_k(P.summary_k + at.item * TILE_BYTES, P.summary_trailers + at.item, x, at.valid, sm);
}

// A warp reads four means of each thread, here and there: what all heads have of them is little.
DEVICE void summarise_v(const Parameters& P, const Summary& at) {
  u8* image = P.summary_v + at.item * V_BYTES;
  int position = threadIdx.x % 32 * 4;
  for (int channel = threadIdx.x / 32; channel < HEAD_DIM; channel += THREADS / 32) {
    float inverse = 1.f / P.v_scale[at.stream * HEAD_DIM + channel], x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int tile = token_at(position + i);
      x[i] = tile < at.valid ? P.v_means[at.mean + tile * HEAD_DIM + channel] * inverse : 0.f;
    }
    write_row(image, channel, position, pack_e4m3(x[0], x[1], x[2], x[3]));
  }
  write_ones(image, position, at.valid);
}

// A block for k and one for v of each summary tile of each head. v's scales are final by now.
KERNEL(THREADS, 2) fps_summary(PARAMETERS Parameters P) {
  SHARED(Shared, sm);
  Summary at(P, blockIdx.x / 2);
  if (blockIdx.x % 2 == 0) summarise_k(P, at, sm);
  if (blockIdx.x % 2 == 1) summarise_v(P, at);
}
#endif
