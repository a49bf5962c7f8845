// The tile, unit of everything: of a key list, of a scale, of a copy. What prologue and attention agree on.
//
// A *tile image* in device memory is, byte for byte, what shared memory shall hold: 128 rows of 128 bytes, in the order
// in which the tensor cores read without bank conflicts (the "128-byte swizzle"): chunk c of 16 bytes in row r lies at
// r * 128 + ((c ^ (r & 7)) << 4). One bulk copy fetches a tile, and nothing moves data around afterwards.
//
//   row 0   | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
//   row 1   | 1 | 0 | 3 | 2 | 5 | 4 | 7 | 6 |      which chunk lies where
//   row 2   | 2 | 3 | 0 | 1 | 6 | 7 | 4 | 5 |
//   …
//
// q and k: a row is a token, a byte a channel. v is transposed: a row is a channel, a byte a token, see token_at. Behind
// the tokens of a tile come empty slots: zeros in v, the last token again in q and k.
#pragma once
#include <hopper.cuh>

constexpr int SLOTS = 128, HEAD_DIM = 128, TILE_BYTES = SLOTS * HEAD_DIM;

// What a tile of k has besides its image; copied with it.
struct Trailer {
  float scale;
  int valid;  // tokens in the tile
  int unused[2];
};

// The byte of a tile image that holds byte `column` of row `row`.
DEVICE int swizzled(int row, int column) { return row * 128 + ((column / 16 ^ (row & 7)) << 4) + column % 16; }

// The token at a position along a row of v's image. The accumulator of q k^T leaves a thread the keys 8 j + 2 quad and
// the next one (quad = thread % 4); as operand of P V it must bring four neighbours, 4 quad to 4 quad + 3 of each 16.
// Instead of P between threads, v's tokens are moved, inside each 32:
//
//     position   0  1  2  3 |  4  5  6  7 |  8  9 10 11 | 12 13 14 15 | 16 …
//     token      0  1  8  9 |  2  3 10 11 |  4  5 12 13 |  6  7 14 15 | 16 …
//     quad       0          |  1          |  2          |  3          |  0
DEVICE int token_at(int position) {
  int inner = position % 32;
  return position - inner + 8 * (2 * (inner / 16) + inner % 4 / 2) + 2 * (inner % 16 / 4) + inner % 2;
}
