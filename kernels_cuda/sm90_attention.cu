// Tile-sparse attention in 8 bits for Hopper: o = softmax(q k^T) v over the key tiles of each query tile's list.
//
// The prologue leaves q, k and v^T as tile images (tile.cuh); a tile of fewer than 128 tokens has empty slots behind them.
// Keys in empty slots repeat the last token, so they are never a row's only maximum, and their v is zero: where the sum
// of P is a product with v's rows of ones, which are zero there too, they cost nothing and need no mask.
//
// A head may have a summary of the key tiles that are not in a list: further key tiles after the list, whose keys and
// values are the means of whole tiles, 128 of them in each. To each of their scores is added how many tokens the mean
// stands for (log2), or minus infinity, where the tile is in the list or there is none.
//
// A persistent block of three warpgroups per SM walks over (head, query tile). One thread of the third, the producer,
// streams tiles into rings of shared memory. The first two, the consumers, own 64 query rows each and take turns
// (ping-pong): while one has the tensor cores, the other computes exponentials. In its turn j a consumer issues
// S_j = Q K_j^T and O += P_{j-1} V_{j-1}; its softmax of S_j begins when S_j is there, beside P V and the other's turn:
//
//   time           |               |               |               |               |
//   tensor cores   | g0: S1, P0 V0 | g1: S1, P0 V0 | g0: S2, P1 V1 | g1: S2, P1 V1 |
//   consumer g0            | softmax of S1, P1     |       | softmax of S2, P2     |
//   consumer g1                            | softmax of S1, P1     |       | softmax of S2 …
//
// The last P V of a query tile has its turn together with the first S of the next one, so that tensor cores have work
// while a consumer writes its rows. Only the very first S is outside turns.
//
// Blocks may come in clusters of two, which take neighbouring query tiles. Where these have one list, each block copies
// half of every key tile into both, and the L2 cache delivers it once.
//
// The rounding of every step is that of fpsgen/attention/emulator.py, which explains it.
#include <hopper.cuh>
#include <tile.cuh>

// ---- compile-time parameters, the fields of fpsgen.kernels.sm90_attention.AttentionKernel, and SHARED_BYTES ---------------

#define FP32 0
#define FP16 1
#define INT32 2

#ifndef SCORES  // what holds q k^T: FP32 or FP16 for E4M3 operands, INT32 for INT8 ones
#define SCORES FP32
#endif
#ifndef PROMOTE  // key tiles whose P V are summed in the tensor cores' own, short format
#define PROMOTE 1
#endif
#ifndef KEYS  // columns of scores: 128, or 120 where no tile has more tokens
#define KEYS 128
#endif
#ifndef STAGES  // key tiles in flight
#define STAGES 4
#endif
#ifndef CLUSTER  // blocks that take neighbouring query tiles, 1 or 2
#define CLUSTER 2
#endif

// With FP32 scores every exponential is computed, and P is summed before its rounding. With the others P is computed as
// E4M3 codes, without the exponential unit, and tensor cores sum the codes: v^T has 8 more rows, of ones.
constexpr bool SUM_CODES = SCORES != FP32;
constexpr int V_ROWS = SUM_CODES ? HEAD_DIM + 8 : HEAD_DIM;  // 8 is the least by which a wgmma can grow
constexpr int V_BYTES = V_ROWS * SLOTS;
constexpr bool IN_PAIRS = CLUSTER == 2;
constexpr int OUT_PITCH = 2 * HEAD_DIM + 16;  // bytes of a staged output row: 16 more, so that 8 rows hit all banks
constexpr int CONSUMERS = 2, GROUP = 128, THREADS = (CONSUMERS + 1) * GROUP;
constexpr int CONSUMER_WARPS = CONSUMERS * GROUP / 32;  // each arrives once at a barrier of free buffers
constexpr int GROUP_ROWS = SLOTS / CONSUMERS;
constexpr int K_BYTES = KEYS * HEAD_DIM;  // rows of k's image that are read
constexpr int K_STEPS = HEAD_DIM / 32;  // a wgmma takes 32 bytes along K

// All pointers are to device memory. "stream" is batch entry * heads + head.
struct Parameters {
  const u8 *q, *k, *v;        // tile images [stream][tile]
  const Trailer* trailers;    // [stream][tile], of k
  const float* q_scale;       // [stream][tile][128]: the token's scale * log2(e) / sqrt(head_dim)
  const float* v_scale;       // [stream][channel]
  const u8 *summary_k, *summary_v;  // tile images [stream][summary tile]
  const Trailer* summary_trailers;
  const float* addends;       // [stream][tile][summary tile][128], in log2 units
  const int* order;           // [head]: the heads, those with most key tiles first
  const int* counts;          // [head]: key tiles in each list of it
  const int* summaries;       // [head]: its summary tiles, 0 for none
  const int* list_of;         // [head][tile]: which list of a window a query tile has, -1 for all tiles
  const int *row_ptr, *cols;  // list i of all windows begins at cols[row_ptr[i]]
  const int* chosen_of;       // [stream]: where its own lists begin, one for each query tile; -1 for none
  const int* chosen;
  const int* offsets;         // [tile + 1]: first row of each tile
  u16* out;                   // bfloat16 [batch][token][head][channel]
  int streams, heads, tiles, tokens;
};

// What consumers know of a query tile: the producer looks it up, while they are still at the one before.
struct Work {
  int stream, first, valid;  // first row in its batch entry, and rows
  int count, all;            // key tiles, and those with the summary's
  int unused[3];
};

struct Shared {  // the swizzle counts from multiples of 1024
  alignas(1024) u8 q[2][TILE_BYTES];
  alignas(1024) u8 k[STAGES][TILE_BYTES];
  alignas(1024) u8 v[STAGES][(V_BYTES + 1023) / 1024 * 1024];
  u8 out[SLOTS * OUT_PITCH];
  alignas(16) float addends[STAGES][SLOTS];  // of summary tiles
  float q_scale[2][SLOTS];
  alignas(16) float v_scale[2][HEAD_DIM];
  Work work[2];
  Trailer trailer[STAGES];
  u64 q_full[2], q_empty[2];
  u64 k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES];
  u64 k_other, v_other;  // the cluster's other block has an empty buffer, too
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the host asks for as much shared memory as the kernel has");

// Where one stands in a ring of buffers, and the parity of the pass through it.
template <int SIZE>
struct Ring {
  int at = 0;
  u32 parity = 0;
  DEVICE void next() {
    if (++at == SIZE) at = 0, parity ^= 1;
  }
};

// What a cluster walks over: CLUSTER neighbouring query tiles of a stream at a time, one for each of its blocks. The last
// one of an odd number is computed by both, and both store the same rows.
struct Items {
  int groups, all;  // of a stream, of all
  DEVICE explicit Items(const Parameters& P) : groups((P.tiles + CLUSTER - 1) / CLUSTER), all(P.streams * groups) {}
  DEVICE static int first() { return blockIdx.x / CLUSTER; }
  DEVICE static int step() { return gridDim.x / CLUSTER; }
};

// The key tiles of one query tile.
struct List {
  const int* cols;  // null: all of them
  int count;
  DEVICE List(const Parameters& P, int stream, int head, int tile) : cols(nullptr), count(P.counts[head]) {
    int chosen = P.chosen_of[stream], list = P.list_of[head * P.tiles + tile];
    if (list >= 0) cols = P.cols + P.row_ptr[list];
    if (chosen >= 0) cols = P.chosen + chosen + tile * count;
  }
  DEVICE int operator[](int i) const { return cols ? cols[i] : i; }
};

// ---- the producer --------------------------------------------------------------------------------------------------

DEVICE int rank() { return blockIdx.x % CLUSTER; }

// Both blocks of a cluster tell each other that they have come here. They meet at k_other and v_other in turn: no block
// can be so far ahead that it completes a phase which the other still waits for.
DEVICE void meet(u64* other, u32 parity) {
  mbarrier_arrive_at(other, rank() ^ 1);
  mbarrier_wait(other, parity);
}
// Into a buffer that is empty. Of what both blocks want, each copies half into both, once both buffers are.
DEVICE void load(u8* to, const u8* from, u32 bytes, u64* full, bool is_shared, u64* other, u32 parity) {
  if (is_shared) {
    u32 half = bytes / 2, at = rank() * half;
    meet(other, parity);
    bulk_load_cluster(to + at, from + at, half, full, 3);
  } else {
    bulk_load(to, from, bytes, full);
  }
}

DEVICE void produce(const Parameters& P, Shared& sm) {
  const Items items(P);
  Ring<2> q;
  Ring<STAGES> kv;
  u32 meetings = 0;  // their parity
  for (int item = items.first(); item < items.all; item += items.step()) {
    const int tile = min(item % items.groups * CLUSTER + rank(), P.tiles - 1), place = item / items.groups;
    const int batch = P.streams / P.heads, head = P.order[place / batch], stream = place % batch * P.heads + head;
    const u64 own = (u64)stream * P.tiles + tile;
    const int first = P.offsets[tile], valid = P.offsets[tile + 1] - first, summaries = P.summaries[head];
    const List list(P, stream, head, tile);
    // All lists of a head are equally long: the rings of both blocks are at the same place, whether they share or not.
    const bool one_list = IN_PAIRS && list.cols == List(P, stream, head, min(tile ^ 1, P.tiles - 1)).cols;
    mbarrier_wait(&sm.q_empty[q.at], q.parity ^ 1);
    sm.work[q.at] = {stream, first, valid, list.count, list.count + summaries};  // visible by the arrival that follows
    mbarrier_arrive_expect(&sm.q_full[q.at], TILE_BYTES + 4 * (SLOTS + HEAD_DIM));
    bulk_load(sm.q[q.at], P.q + own * TILE_BYTES, TILE_BYTES, &sm.q_full[q.at]);
    bulk_load(sm.q_scale[q.at], P.q_scale + own * SLOTS, 4 * SLOTS, &sm.q_full[q.at]);
    bulk_load(sm.v_scale[q.at], P.v_scale + stream * HEAD_DIM, 4 * HEAD_DIM, &sm.q_full[q.at]);
    q.next();
    for (int j = 0; j < list.count + summaries; j++, kv.next()) {
      const int mean = j - list.count;  // which summary tile it is; below 0, of the list
      const bool is_mean = mean >= 0, is_shared = one_list | (IN_PAIRS & is_mean);
      const u64 key = is_mean ? (u64)stream * summaries + mean : (u64)stream * P.tiles + list[j];
      const u32 k_bytes = is_mean ? TILE_BYTES : K_BYTES;
      const Trailer* trailers = is_mean ? P.summary_trailers : P.trailers;
      mbarrier_wait(&sm.k_empty[kv.at], kv.parity ^ 1);
      mbarrier_arrive_expect(&sm.k_full[kv.at], k_bytes + sizeof(Trailer) + (is_mean ? 4 * SLOTS : 0));
      load(sm.k[kv.at], (is_mean ? P.summary_k : P.k) + key * TILE_BYTES, k_bytes, &sm.k_full[kv.at], is_shared,
           &sm.k_other, meetings);
      bulk_load(&sm.trailer[kv.at], trailers + key, sizeof(Trailer), &sm.k_full[kv.at]);
      if (is_mean)
        bulk_load(sm.addends[kv.at], P.addends + (own * summaries + mean) * SLOTS, 4 * SLOTS, &sm.k_full[kv.at]);
      mbarrier_wait(&sm.v_empty[kv.at], kv.parity ^ 1);
      mbarrier_arrive_expect(&sm.v_full[kv.at], V_BYTES);
      load(sm.v[kv.at], (is_mean ? P.summary_v : P.v) + key * V_BYTES, V_BYTES, &sm.v_full[kv.at], is_shared,
           &sm.v_other, meetings);
      meetings ^= is_shared;
    }
  }
  if (IN_PAIRS) {  // a block stays until all has been read that it copied into the other
    for (int i = 0; i < STAGES; i++, kv.next()) mbarrier_wait(&sm.v_empty[kv.at], kv.parity ^ 1);
    meet(&sm.k_other, meetings);
  }
}

// ---- scores and their exponentials, a consumer's 64 rows by the 128 keys of a tile -----------------------------------
//
// A thread holds two rows, h = 0 and h = 1 (8 further down), and of each the keys 8 j + 2 quad + {0, 1}, where
// quad = thread % 4: the accumulator layout of wgmma (wgmma.cuh). Everything below is in log2 units: a score s of the
// tensor cores stands for s * factor[h], and P = 2^(s * factor[h] - m[h] + 7), m[h] an integer.

constexpr float P_LOG2 = 7.f;      // P is 2^7 at the reference
constexpr float HEADROOM = 1.75f;  // how far above the reference scores may lie: E4M3 ends at 448 = 2^8.8
constexpr float FIRST_M = -1e30f;  // below any score
// A synthesised E4M3 code is 126 y, y = (8 / 126) (log2 P + 7) cut to [0, 1]; 126 is the code of 448. Its mantissa is
// linear, up to 6 % too large, which the sum of P is, too.
constexpr float CODES = 126.f, PER_CODE = 8.f / CODES;
constexpr float WHOLE = 12582912.f;  // 1.5 * 2^23 leaves no bit for a fraction: a sum's lowest byte is the whole code
DEVICE float code_offset(float m) { return (P_LOG2 + 7.f - m) * PER_CODE; }

template <int COLUMNS>
struct ScoresFp32 {
  static constexpr int COUNT = COLUMNS / 2;
  float s[COUNT];  // s[4 j + 2 h + b]

  DEVICE void issue(const u8* q, const u8* k) {
    u64 a = swizzled_operand(q), b = swizzled_operand(k);
#pragma unroll
    for (int i = 0; i < K_STEPS; i++) {
      if constexpr (COLUMNS == 120) wgmma_n120_f32_e4m3_ss(s, a + 2 * i, b + 2 * i, i > 0);
      if constexpr (COLUMNS == 128) wgmma_n128_f32_e4m3_ss(s, a + 2 * i, b + 2 * i, i > 0);
    }
  }
  DEVICE float low(int i) const { return s[i]; }
  DEVICE float high(int i) const { return s[i + 1]; }
  // Empty slots must not be in the sum of P.
  DEVICE void mask(int valid, int quad) {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (8 * (i / 4) + 2 * quad + (i & 1) >= valid) s[i] = -1e30f;
  }
  DEVICE void maxima(float (&top)[2]) const {
    top[0] = s[0], top[1] = s[2];
#pragma unroll
    for (int i = 0; i < COUNT; i++) top[i >> 1 & 1] = fmaxf(top[i >> 1 & 1], s[i]);
  }
  // Where two pairs have their codes, as __byte_perm takes them.
  static constexpr int CODES_AT = 0x5410;
  DEVICE void exponentials(u32 (&pairs)[32], float (&sum)[2], const float (&factor)[2], const float (&m)[2]) const {
    float bias[2] = {P_LOG2 - m[0], P_LOG2 - m[1]};
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      int h = i >> 1 & 1;
      float low = exp2_approx(fmaf(s[i], factor[h], bias[h])), high = exp2_approx(fmaf(s[i + 1], factor[h], bias[h]));
      sum[h] += low, sum[h] += high;
      pairs[i / 2] = pack_e4m3_pair(low, high);
    }
  }
};

template <int COLUMNS>
struct ScoresInt32 {
  static constexpr int COUNT = 64;
  static_assert(COLUMNS == 128, "there is no INT8 wgmma of 120 columns");
  int s[COUNT];  // as above; after exponentials their lowest bytes are the codes

  DEVICE void issue(const u8* q, const u8* k) {
    u64 a = swizzled_operand(q), b = swizzled_operand(k);
#pragma unroll
    for (int i = 0; i < K_STEPS; i++) wgmma_n128_s32_s8_ss(s, a + 2 * i, b + 2 * i, i > 0);
  }
  DEVICE void maxima(float (&top)[2]) const {
    int most[2] = {s[0], s[2]};
#pragma unroll
    for (int i = 0; i < COUNT; i++) most[i >> 1 & 1] = max(most[i >> 1 & 1], s[i]);
    top[0] = (float)most[0], top[1] = (float)most[1];
  }
  DEVICE float low(int i) const { return (float)s[i]; }
  DEVICE float high(int i) const { return (float)s[i + 1]; }
  static constexpr int CODES_AT = 0x5410;
  DEVICE void exponentials(u32 (&pairs)[32], float (&)[2], const float (&factor)[2], const float (&m)[2]) const {
    float slope[2] = {factor[0] * PER_CODE, factor[1] * PER_CODE}, offset[2] = {code_offset(m[0]), code_offset(m[1])};
#pragma unroll
    for (int i = 0; i < COUNT; i += 2) {
      int h = i >> 1 & 1;
      float low = fmaf(fma_saturate((float)s[i], slope[h], offset[h]), CODES, WHOLE);
      float high = fmaf(fma_saturate((float)s[i + 1], slope[h], offset[h]), CODES, WHOLE);
      pairs[i / 2] = __byte_perm(__float_as_int(low), __float_as_int(high), 0x0040);
    }
  }
};

template <int COLUMNS>
struct ScoresFp16 {
  static constexpr int COUNT = COLUMNS / 4;
  u32 s[COUNT];  // pairs: s[2 j + h]; half the registers, and two numbers per instruction

  DEVICE void issue(const u8* q, const u8* k) {
    u64 a = swizzled_operand(q), b = swizzled_operand(k);
#pragma unroll
    for (int i = 0; i < K_STEPS; i++) {
      if constexpr (COLUMNS == 120) wgmma_n120_f16_e4m3_ss(s, a + 2 * i, b + 2 * i, i > 0);
      if constexpr (COLUMNS == 128) wgmma_n128_f16_e4m3_ss(s, a + 2 * i, b + 2 * i, i > 0);
    }
  }
  DEVICE void maxima(float (&top)[2]) const {
    u32 most[2] = {s[0], s[1]};
#pragma unroll
    for (int i = 2; i < COUNT; i++) most[i & 1] = half2_max(most[i & 1], s[i]);
    top[0] = fmaxf(half2_low(most[0]), half2_high(most[0]));
    top[1] = fmaxf(half2_low(most[1]), half2_high(most[1]));
  }
  DEVICE float low(int i) const { return half2_low(s[i / 2]); }
  DEVICE float high(int i) const { return half2_high(s[i / 2]); }
  static constexpr int CODES_AT = 0x6420;
  DEVICE void exponentials(u32 (&pairs)[32], float (&)[2], const float (&factor)[2], const float (&m)[2]) const {
    u32 slope[2] = {half2(factor[0] * PER_CODE), half2(factor[1] * PER_CODE)};
    u32 offset[2] = {half2(code_offset(m[0])), half2(code_offset(m[1]))};
    u32 codes = half2(CODES), whole = half2(1024.f);  // from 1024 on FP16 has no fractions: the code is the lowest byte
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      pairs[i] = half2_fma(half2_fma_saturate(s[i], slope[i & 1], offset[i & 1]), codes, whole);
  }
};

template <int KIND, int COLUMNS> struct ScoresOf { using Type = ScoresFp32<COLUMNS>; };
template <int COLUMNS> struct ScoresOf<FP16, COLUMNS> { using Type = ScoresFp16<COLUMNS>; };
template <int COLUMNS> struct ScoresOf<INT32, COLUMNS> { using Type = ScoresInt32<COLUMNS>; };
using Scores = ScoresOf<SCORES, KEYS>::Type;
using SummaryScores = ScoresOf<SCORES, SLOTS>::Type;

struct alignas(8) Pair {
  float low, high;
};

// Scores of a summary tile, finished in float32 whatever holds q k^T: in log2 units, with what is added to them.
struct FinishedScores {
  float x[64];  // x[4 j + 2 h + b]

  DEVICE FinishedScores(const SummaryScores& scores, const float (&factor)[2], const float* addends, int quad) {
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      const Pair added = *reinterpret_cast<const Pair*>(addends + 8 * (i / 4) + 2 * quad);
      x[i] = fmaf(scores.low(i), factor[i >> 1 & 1], added.low);
      x[i + 1] = fmaf(scores.high(i), factor[i >> 1 & 1], added.high);
    }
  }
  DEVICE void maxima(float (&top)[2]) const {
    top[0] = x[0], top[1] = x[2];
#pragma unroll
    for (int i = 0; i < 64; i++) top[i >> 1 & 1] = fmaxf(top[i >> 1 & 1], x[i]);
  }
  DEVICE void exponentials(u32 (&pairs)[32], float (&sum)[2], const float (&m)[2]) const {
#pragma unroll
    for (int i = 0; i < 64; i += 2) {
      int h = i >> 1 & 1;
#if SCORES == FP32
      float low = exp2_approx(x[i] + (P_LOG2 - m[h])), high = exp2_approx(x[i + 1] + (P_LOG2 - m[h]));
      sum[h] += low, sum[h] += high;
      pairs[i / 2] = pack_e4m3_pair(low, high);
#else
      float low = fmaf(fma_saturate(x[i], PER_CODE, code_offset(m[h])), CODES, WHOLE);
      float high = fmaf(fma_saturate(x[i + 1], PER_CODE, code_offset(m[h])), CODES, WHOLE);
      pairs[i / 2] = __byte_perm(__float_as_int(low), __float_as_int(high), SCORES == FP16 ? 0x0400 : 0x0040);
#endif
    }
  }
};

// P as the A operand of P V: each thread's own numbers, because v^T's tokens are in the order of token_at (tile.cuh).
// Register i = 4 step + r is of the step's 32 keys; r & 1 is h, r / 2 the half of them. Its four bytes are two
// neighbours of each of two groups of 8 columns, which token_at has made neighbours in v. pairs[2 j + h] are the codes
// of columns 8 j + 2 quad + {0, 1}.
DEVICE void pack(u32 (&p)[16], const u32 (&pairs)[32]) {
#pragma unroll
  for (int i = 0; i < 16; i++) {
    int a = 4 * (i / 2) + (i & 1);
    p[i] = __byte_perm(pairs[a], pairs[a + 2], Scores::CODES_AT);
  }
}
// ---- sums of P V ---------------------------------------------------------------------------------------------------

// Two levels, because FP8 wgmmas keep 13 bits of a sum: `short_sum` inside the tensor cores over PROMOTE tiles, `total`
// in float32. Elements are 4 j + 2 h + b, as scores; with SUM_CODES columns 128 to 135 are the row's sum of P.
struct Sums {
  static constexpr int COUNT = V_ROWS / 2;
  float total[COUNT], short_sum[COUNT];

  DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < COUNT; i++) total[i] = short_sum[i] = 0;
  }
  DEVICE void issue(const u32 (&p)[16], const u8* v, bool accumulate) {
    u64 b = swizzled_operand(v);
#pragma unroll
    for (int i = 0; i < SLOTS / 32; i++) {
#if SCORES != FP32
      wgmma_n136_f32_e4m3_rs(short_sum, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], b + 2 * i, accumulate || i > 0);
#else
      wgmma_n128_f32_e4m3_rs(short_sum, p[4 * i], p[4 * i + 1], p[4 * i + 2], p[4 * i + 3], b + 2 * i, accumulate || i > 0);
#endif
    }
  }
  DEVICE void promote() {
#pragma unroll
    for (int i = 0; i < COUNT; i++) total[i] += short_sum[i];
  }
  DEVICE void scale_total(const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) total[i] *= by[i >> 1 & 1];
  }
  DEVICE void scale_short(const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) short_sum[i] *= by[i >> 1 & 1];
  }
};

// ---- the consumers -------------------------------------------------------------------------------------------------

// What exponentials are relative to, for each row: an integer, so that sums are rescaled exactly. It rises, to the next
// integer above a score, when one exceeds it by more than HEADROOM.
struct Reference {
  float m[2] = {FIRST_M, FIRST_M};
  float fade[2] = {1, 1};  // what the last raise multiplies earlier sums by

  // Whether a row of this warp's has risen. Most key tiles raise none, and then nothing is exchanged between threads.
  // top: the largest scores that this thread has.
  DEVICE bool raise(float (&top)[2]) {
    bool within = top[0] <= m[0] + HEADROOM & top[1] <= m[1] + HEADROOM;  // NaN is not
    if (!warp_any(!within)) return false;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      top[h] = max_or_nan(top[h], shuffle_xor(top[h], 1));  // the four threads of a row
      top[h] = max_or_nan(top[h], shuffle_xor(top[h], 2));
      float raised = top[h] <= m[h] + HEADROOM ? m[h] : ceilf(top[h]);
      fade[h] = exp2_approx(m[h] - raised);
      m[h] = raised;
    }
    return true;
  }
};

constexpr int TURN = 1;  // named barriers: TURN + group

// Tensor cores go to one consumer at a time: it waits for its turn and hands over once its instructions are issued. The
// barrier of a group fills with its own 128 threads, which wait, and 128 of the other, which pass their turn on. Before
// the loop group 1 passes one on, or nobody could begin; the last one passed is taken by group 0, after it.
DEVICE void take_turn(int group) { barrier_sync(TURN + group, 2 * GROUP); }
DEVICE void pass_turn(int group) { barrier_arrive(TURN + 1 - group, 2 * GROUP); }

// Which of a group's rows a thread holds in accumulators: `row` and row + 8, counted in the tile (wgmma.cuh).
struct Place {
  int thread, quad, row;  // thread: in its group
  DEVICE explicit Place(int group)
      : thread(threadIdx.x % GROUP), quad(thread % 4), row(GROUP_ROWS * group + 16 * (thread / 32) + thread % 32 / 4) {}
};

struct alignas(16) Bytes16 {
  u32 word[4];
};

// Rows of one query tile to memory. Each warp turns its own 16 rows round in shared memory, so that 16 threads write the
// 256 bytes of a row side by side, and no other warp is waited for.
DEVICE void store(const Parameters& P, Shared& sm, const Sums& sums, const float (&denominator)[2], int group,
                  const Work& work, const float* v_scale) {
  const Place at(group);
  const Pair* scale = reinterpret_cast<const Pair*>(v_scale);
  const float inverse[2] = {1.f / denominator[0], 1.f / denominator[1]};
#pragma unroll
  for (int i = 0; i < HEAD_DIM / 2; i += 2) {
    int h = i >> 1 & 1, pair = 4 * (i / 4) + at.quad;
    float low = (sums.total[i] + sums.short_sum[i]) * inverse[h] * scale[pair].low;
    float high = (sums.total[i + 1] + sums.short_sum[i + 1]) * inverse[h] * scale[pair].high;
    *reinterpret_cast<u32*>(sm.out + (at.row + 8 * h) * OUT_PITCH + 4 * pair) = pack_bf16(low, high);
  }
  warp_sync();
  const int first = at.row - at.thread % 32 / 4 + at.thread % 32 / 16, chunk = at.thread % 16 * 16;
  const u64 row_bytes = static_cast<u64>(P.heads) * (2 * HEAD_DIM);
  const u64 row = static_cast<u64>(work.stream / P.heads) * P.tokens + work.first + first;
  u8* to = reinterpret_cast<u8*>(P.out) + row * row_bytes + work.stream % P.heads * (2 * HEAD_DIM) + chunk;
#pragma unroll
  for (int i = 0; i < 8; i++, to += 2 * row_bytes)
    if (first + 2 * i < work.valid)
      *reinterpret_cast<Bytes16*>(to) = *reinterpret_cast<const Bytes16*>(sm.out + (first + 2 * i) * OUT_PITCH + chunk);
  warp_sync();  // before these rows are written again
}

DEVICE void consume(const Parameters& P, Shared& sm, int group) {
  const Place at(group);
  const Items items(P);
  Ring<2> q;
  Ring<STAGES> k, v;
  Scores scores;
  Sums sums;
  u32 p[16];

  auto issue_scores = [&]() { scores.issue(sm.q[q.at] + GROUP_ROWS * group * HEAD_DIM, sm.k[k.at]); };
  if (group == 1) pass_turn(group);  // the first turn is group 0's
  if (items.first() < items.all) {
    mbarrier_wait(&sm.q_full[q.at], q.parity);
    mbarrier_wait(&sm.k_full[k.at], k.parity);
    wgmma_fence();
    issue_scores();
    wgmma_commit();
    wgmma_wait<0>();
  }
  for (int item = items.first(); item < items.all; item += items.step()) {
    const int count = sm.work[q.at].count, all = sm.work[q.at].all;
    const float per_score[2] = {sm.q_scale[q.at][at.row], sm.q_scale[q.at][at.row + 8]};
    Reference reference;
    u32 pairs[32] = {};  // those beyond KEYS stay zero
    float sum[2] = {0, 0};
    sums.clear();

    // A key tile takes these steps: its turn, its scores, the P V of the tile before, its softmax.
    auto begin = [&]() {
      mbarrier_wait(&sm.k_full[k.at], k.parity);
      mbarrier_wait(&sm.v_full[v.at], v.parity);
      const float k_scale = sm.trailer[k.at].scale;  // no load is moved up over the wait for the scores
      take_turn(group);
      wgmma_fence();
      return k_scale;
    };
    auto issue_sums = [&](int j) {
      wgmma_commit();
      sums.issue(p, sm.v[v.at], (j - 1) % PROMOTE != 0);
      wgmma_commit();
      pass_turn(group);
      wgmma_wait<1>();  // the scores; P V is still under way
    };
    // Whether a row's reference has risen; k's buffer is free afterwards.
    auto raise = [&](float (&top)[2]) {
      bool rose = reference.raise(top);
      mbarrier_arrive_warp(&sm.k_empty[k.at]);
      k.next();
      if (rose) sum[0] *= reference.fade[0], sum[1] *= reference.fade[1];
      return rose;
    };
    // From scores of a tile, which are complete, to exponentials.
    auto softmax = [&](float k_scale) {
      const float factor[2] = {per_score[0] * k_scale, per_score[1] * k_scale};
      float top[2];
#if SCORES == FP32
      if (sm.trailer[k.at].valid < KEYS) scores.mask(sm.trailer[k.at].valid, at.quad);
#endif
      scores.maxima(top);
      top[0] *= factor[0], top[1] *= factor[1];
      bool rose = raise(top);
      scores.exponentials(pairs, sum, factor, reference.m);
      return rose;
    };
    auto finish = [&](int j, bool rose) {
      if (rose) sums.scale_total(reference.fade);
      wgmma_wait<0>();
      mbarrier_arrive_warp(&sm.v_empty[v.at]);
      v.next();
      if (rose) sums.scale_short(reference.fade);
      if (j % PROMOTE == 0) sums.promote();
      pack(p, pairs);  // not before P V has read the last one: ptxas would serialise (C7513)
    };

    softmax(sm.trailer[k.at].scale);
    pack(p, pairs);
    for (int j = 1; j < count; j++) {
      const float k_scale = begin();
      issue_scores();
      issue_sums(j);
      finish(j, softmax(k_scale));
    }
    for (int j = count; j < all; j++) {
      SummaryScores scores;
      const float k_scale = begin();
      scores.issue(sm.q[q.at] + GROUP_ROWS * group * HEAD_DIM, sm.k[k.at]);
      issue_sums(j);
      const float factor[2] = {per_score[0] * k_scale, per_score[1] * k_scale};
      const FinishedScores finished(scores, factor, sm.addends[k.at], at.quad);
      float top[2];
      finished.maxima(top);
      const bool rose = raise(top);
      finished.exponentials(pairs, sum, reference.m);
      finish(j, rose);
    }

    // The last P V, and with it the next query tile's first scores.
    const Ring<2> before = q;
    q.next();
    if (item + items.step() < items.all) {
      mbarrier_wait(&sm.q_full[q.at], q.parity);
      mbarrier_wait(&sm.k_full[k.at], k.parity);
    }
    mbarrier_wait(&sm.v_full[v.at], v.parity);
    take_turn(group);
    wgmma_fence();
    issue_scores();  // of stale tiles if there is no next one; nobody reads them
    sums.issue(p, sm.v[v.at], (all - 1) % PROMOTE != 0);
    wgmma_commit();
    pass_turn(group);
    wgmma_wait<0>();
    mbarrier_arrive_warp(&sm.v_empty[v.at]);
    v.next();

#if SCORES != FP32
    const float denominator[2] = {sums.total[64] + sums.short_sum[64], sums.total[66] + sums.short_sum[66]};
#else
    float denominator[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      denominator[h] = sum[h] + shuffle_xor(sum[h], 1);
      denominator[h] += shuffle_xor(denominator[h], 2);
    }
#endif
    store(P, sm, sums, denominator, group, sm.work[before.at], sm.v_scale[before.at]);
    mbarrier_arrive_warp(&sm.q_empty[before.at]);
  }
  if (group == 0) take_turn(group);  // the last hand-over
}

CLUSTER_KERNEL(CLUSTER, THREADS, 1) fps_attention(PARAMETERS Parameters P) {
  LARGE_SHARED(Shared, sm);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) {
      mbarrier_init(&sm.q_full[i], 1);
      mbarrier_init(&sm.q_empty[i], CONSUMER_WARPS);
    }
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&sm.k_full[i], 1), mbarrier_init(&sm.k_empty[i], CONSUMER_WARPS);
      mbarrier_init(&sm.v_full[i], 1), mbarrier_init(&sm.v_empty[i], CONSUMER_WARPS);
    }
    mbarrier_init(&sm.k_other, 1), mbarrier_init(&sm.v_other, 1);
    mbarrier_init_done();
  }
  if (IN_PAIRS)
    cluster_sync();
  else
    __syncthreads();
  int group = warp_uniform(threadIdx.x / GROUP);
  if (group == CONSUMERS) {
    registers_shrink<24>();
    if (threadIdx.x == CONSUMERS * GROUP) produce(P, sm);
  } else {
    registers_grow<240>();
    consume(P, sm, group);
  }
}
