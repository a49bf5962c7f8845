// Key tiles chosen by their content, and the addends of a summary: from each tile's mean of q and of k, which the
// prologue leaves, to the lists that sm90_attention.cu walks over.
//
// The score of a pair of tiles is mean(q) . mean(k), summed in float32 from the first channel to the last, so that tiles
// that are alike score alike. A query tile has the `counts` key tiles with the largest scores; of equal ones those of
// lower number. NaN is the largest of all: damage is chosen, and shows.
//
// A block has QUERIES query tiles of one stream. All mean keys of the stream go through its shared memory, KEYS tiles and
// half of their channels at once. A lane computes whole scores of its own key tiles, for all EACH query tiles of its warp
// at once; then a warp chooses for one query tile after the other, all scores of which it holds in registers.
#include <hopper.cuh>
#include <tile.cuh>

#ifndef TILES  // there is room for so many, a multiple of KEYS
#define TILES 640
#endif

constexpr int WARPS = 4, THREADS = 32 * WARPS, QUERIES = 16, EACH = QUERIES / WARPS;
constexpr int KEYS = 64, OF_LANE = KEYS / 32, PART = HEAD_DIM / 2;
constexpr int ROW_THREADS = PART / 4, AT_ONCE = THREADS / ROW_THREADS, LOADS = KEYS / AT_ONCE;
constexpr int ROUNDS = TILES / 32;  // key tiles of a lane
constexpr u32 NEVER = 0xff800000;   // bits of minus infinity
static_assert(TILES % KEYS == 0, "lanes have whole rounds");

// "stream" is batch entry * heads + head.
struct Parameters {
  const float *q_pooled, *k_pooled;           // [stream][tile][channel]: mean over the tile's tokens
  const float* log_valid;                     // [tile]: log2 of its tokens
  const int *row_ptr, *cols, *list_of;        // lists of windows, as the attention kernel has them
  const int *counts, *summaries, *chosen_of;  // [head], [head], [stream], as the attention kernel has them
  int* chosen;                                // lists of the streams that choose, ascending
  float* addends;                             // [stream][tile][summaries * 128]
  int streams, heads, tiles;
};

struct alignas(16) Four {
  float x[4];
};

struct Shared {
  float k[KEYS][PART + 4];  // four more, so that eight lanes read from all banks
  float q[QUERIES][HEAD_DIM];
  u32 scores[QUERIES][TILES];  // as `ordered`
};

// What the compiler builds and the host launches with.
static_assert(sizeof(Shared) == SHARED_BYTES, "the host twin has another size");

DEVICE Four four_at(const float* from) { return *reinterpret_cast<const Four*>(from); }

// A score as an integer of the same order, above 0; zeros are equal, whatever their sign, and so is NaN.
DEVICE u32 ordered(float score) {
  if (score != score) return 0xffffffff;
  u32 bits = __float_as_int(score + 0.f);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}

// ---- scores ---------------------------------------------------------------------------------------------------------

// One half of the channels of KEYS mean keys, on its way to shared memory.
struct Fetched {
  Four part[LOADS];
  DEVICE void load(const float* k_pooled, int tiles, int step) {
    int row = threadIdx.x / ROW_THREADS, channel = step % 2 * PART + threadIdx.x % ROW_THREADS * 4;
#pragma unroll
    for (int i = 0; i < LOADS; i++)
      part[i] = four_at(k_pooled + (min(step / 2 * KEYS + row + i * AT_ONCE, tiles - 1) * HEAD_DIM + channel));
  }
  DEVICE void store(Shared& sm) const {
    int row = threadIdx.x / ROW_THREADS, channel = threadIdx.x % ROW_THREADS * 4;
#pragma unroll
    for (int i = 0; i < LOADS; i++) *reinterpret_cast<Four*>(sm.k[row + i * AT_ONCE] + channel) = part[i];
  }
};

// The scores of all query tiles of the block, from `first` on, with all key tiles.
DEVICE void score(const Parameters& P, int stream, int first, Shared& sm) {
  int lane = threadIdx.x % 32, own = threadIdx.x / 32 * EACH;
  for (int i = threadIdx.x * 4; i < QUERIES * HEAD_DIM; i += THREADS * 4) {
    u64 tile = static_cast<u64>(stream) * P.tiles + min(first + i / HEAD_DIM, P.tiles - 1);
    *reinterpret_cast<Four*>(&sm.q[0][0] + i) = four_at(P.q_pooled + (tile * HEAD_DIM + i % HEAD_DIM));
  }
  const float* k_pooled = P.k_pooled + static_cast<u64>(stream) * P.tiles * HEAD_DIM;
  Fetched next;
  next.load(k_pooled, P.tiles, 0);
  int steps = (P.tiles + KEYS - 1) / KEYS * 2;
  float sum[EACH][OF_LANE] = {};
  for (int step = 0; step < steps; step++) {
    next.store(sm);
    __syncthreads();
    if (step + 1 < steps) next.load(k_pooled, P.tiles, step + 1);
#pragma unroll 4
    for (int channel = 0; channel < PART; channel += 4) {
      Four k[OF_LANE];
#pragma unroll
      for (int m = 0; m < OF_LANE; m++) k[m] = four_at(sm.k[lane + 32 * m] + channel);
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        Four q = four_at(sm.q[own + i] + step % 2 * PART + channel);
#pragma unroll
        for (int m = 0; m < OF_LANE; m++)
#pragma unroll
          for (int n = 0; n < 4; n++) sum[i][m] = fmaf(q.x[n], k[m].x[n], sum[i][m]);
      }
    }
    __syncthreads();  // all have read
    if (step % 2 == 0) continue;
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
      for (int m = 0; m < OF_LANE; m++) {
        sm.scores[own + i][step / 2 * KEYS + 32 * m + lane] = ordered(sum[i][m]);  // which the same lane reads
        sum[i][m] = 0;
      }
  }
}

// ---- lists ----------------------------------------------------------------------------------------------------------

// A warp's: the tiles with the `wanted` largest scores, ascending.
DEVICE void choose(const Parameters& P, const u32* scores, int wanted, int* list) {
  int lane = threadIdx.x % 32;
  u32 own[ROUNDS];
#pragma unroll
  for (int n = 0; n < ROUNDS; n++) own[n] = 32 * n + lane < P.tiles ? scores[32 * n + lane] : 0;
  // Bit by bit, the largest number that at least `wanted` scores reach. above: how many reach the last number that fewer
  // reached; after all bits that is least + 1. The search may end before where exactly as many as are wanted reach `least`:
  // all of these are taken, since those that equal it are no more than wanted - above.
  u32 least = 0;
  int above = 0;
  for (u32 bit = 1u << 31; bit; bit /= 2) {
    int many = 0;
#pragma unroll
    for (int n = 0; n < ROUNDS; n++) many += own[n] >= (least | bit);
    many = warp_sum(many);
    if (many >= wanted) least |= bit;
    else above = many;
    if (many == wanted) break;
  }
  int equal = wanted - above, before = 0;  // of those that are equal to `least`, so many at most
  u32 lower = (1u << lane) - 1;            // the lanes
#pragma unroll
  for (int n = 0; n < ROUNDS; n++) {
    if (32 * n >= P.tiles) break;
    u32 ties = warp_ballot(own[n] == least);
    bool taken = own[n] > least || (own[n] == least && __popc(ties & lower) < equal);
    equal -= __popc(ties);
    u32 all = warp_ballot(taken);
    if (taken) list[before + __popc(all & lower)] = 32 * n + lane;
    before += __popc(all);
  }
}

// A warp's: log2 of how many tokens stand behind each mean key; minus infinity where the query tile sees the tile itself,
// and behind the last one.
DEVICE void write_addends(const Parameters& P, float* row, int slots, const int* list, int count) {
  int lane = threadIdx.x % 32;
  for (int tile = lane; tile < slots; tile += 32)
    row[tile] = tile < P.tiles ? P.log_valid[tile] : __int_as_float(NEVER);
  warp_sync();  // also of what lanes wrote to the list
  for (int i = lane; i < count; i += 32) row[list[i]] = __int_as_float(NEVER);
}

KERNEL(THREADS, TILES <= 640 ? 3 : 1) fps_select(PARAMETERS Parameters P) {
  LARGE_SHARED(Shared, sm);
  int blocks = (P.tiles + QUERIES - 1) / QUERIES, stream = blockIdx.x / blocks, first = blockIdx.x % blocks * QUERIES;
  int head = stream % P.heads, count = P.counts[head], slots = P.summaries[head] * SLOTS, begin = P.chosen_of[stream];
  if (begin < 0 && slots == 0) return;
  if (begin >= 0) score(P, stream, first, sm);
  for (int query = threadIdx.x / 32 * EACH; query < threadIdx.x / 32 * EACH + EACH; query++) {
    int tile = first + query;
    if (tile >= P.tiles) return;
    int* list = P.chosen + begin + static_cast<u64>(tile) * count;
    if (begin >= 0) choose(P, sm.scores[query], count, list);
    const int* seen = begin >= 0 ? list : P.cols + P.row_ptr[P.list_of[head * P.tiles + tile]];
    if (slots) write_addends(P, P.addends + (static_cast<u64>(stream) * P.tiles + tile) * slots, slots, seen, count);
  }
}
