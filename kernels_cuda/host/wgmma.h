// wgmma as the PTX ISA describes it [9.7.14]: fragment layouts, descriptors, the 128-byte swizzle, number formats.
#pragma once
#include <cmath>

#include "machine.h"

namespace host {

inline float from_e4m3(u8 code) {
  int exponent = code >> 3 & 15, mantissa = code & 7;
  float x = exponent ? std::ldexp(1 + mantissa / 8.f, exponent - 7) : std::ldexp(mantissa / 8.f, -6);
  if ((code & 127) == 127) x = NAN;
  return code & 128 ? -x : x;
}

// To nearest even, saturating; NaN stays.
inline u8 to_e4m3(float x) {
  u8 sign = std::signbit(x) ? 128 : 0;
  float a = std::fabs(x);
  if (a != a) return sign | 127;
  if (a >= 448) return sign | 126;
  int exponent;
  std::frexp(a, &exponent);
  exponent = a == 0 ? -6 : std::max(exponent - 1, -6);
  int code = static_cast<int>(std::nearbyint(std::ldexp(a, 3 - exponent)));
  if (code == 16) code = 8, exponent++;
  return sign | static_cast<u8>(code < 8 ? code : (exponent + 7) << 3 | (code - 8));
}

inline float from_half(u16 bits) {
  _Float16 x;
  memcpy(&x, &bits, 2);
  return static_cast<float>(x);
}
inline u16 to_half(double x) {
  _Float16 rounded = static_cast<_Float16>(x);
  u16 bits;
  memcpy(&bits, &rounded, 2);
  return bits;
}

// What all codes of a format are. The exponent of E4M3's subnormal numbers, and of zero, is the least, -6.
struct Codes {
  float numbers[256];
  short exponents[256];
  explicit Codes(bool integers) {
    for (int i = 0; i < 256; i++) {
      numbers[i] = integers ? static_cast<signed char>(i) : from_e4m3(i);
      exponents[i] = std::max(i >> 3 & 15, 1) - 7;
    }
  }
};
inline const Codes e4m3(false), int8(true);

// 32 bytes of a row of an operand along K, and what they are as numbers.
struct Row {
  u8 bytes[32];
  float numbers[32];
  short exponents[32];
  void decode(const Codes& codes) {
    for (int k = 0; k < 32; k++) numbers[k] = codes.numbers[bytes[k]], exponents[k] = codes.exponents[bytes[k]];
  }
  bool has_nan() const {  // of E4M3
    u8 found = 0;
    for (int k = 0; k < 32; k++) found |= (bytes[k] & 127) == 127;
    return found;
  }
};

// Where the descriptor begins, plus row, swizzled by address as the hardware does; 16 bytes stay together.
inline void read_operand(Row& row, u64 descriptor, int number) {
  u32 start = static_cast<u32>(descriptor & 0x3FFF) << 4, stride = static_cast<u32>(descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 != 1) fail("a descriptor without the 128-byte swizzle: only that is modelled");
  for (int chunk = 0; chunk < 2; chunk++) {
    u32 address = start + number / 8 * stride + number % 8 * 128 + 16 * chunk;
    address ^= (address >> 7 & 7) << 4;
    if (address + 16 > machine.shared_bytes) fail("wgmma reads beyond shared memory");
    memcpy(row.bytes + 16 * chunk, own_block().shared + address, 16);
  }
}

// 2^exponent, of a float32 that is neither subnormal nor infinite.
inline float power_of_2(int exponent) {
  u32 bits = static_cast<u32>(exponent + 127) << 23;
  float power;
  memcpy(&power, &bits, 4);
  return power;
}
// Rounded down: log2 |x|. Below float32's normal numbers -127.
inline int exponent_of(float x) {
  u32 bits;
  memcpy(&bits, &x, 4);
  return static_cast<int>(bits >> 23 & 255) - 127;
}

// All but `bits` bits behind the leading one are cut off, towards zero.
inline double cut(double x, int bits) {
  u64 word;
  memcpy(&word, &x, 8);
  word &= ~u64(0) << (52 - bits);
  memcpy(&x, &word, 8);
  return x;
}

// 32 FP8 products and what was there before, as Hopper adds them (fpsgen/attention/sums.py): each is cut towards zero
// behind accumulator_bits of the largest exponent. A machine with 0 of them adds exactly.
inline double sum_of_products(const Row& a, const Row& b, float before) {
  int bits = machine.accumulator_bits, sum = 0;
  if (a.has_nan() || b.has_nan() || before != before) return NAN;
  if (!bits) {
    double exact = before;
    for (int k = 0; k < 32; k++) exact += static_cast<double>(a.numbers[k]) * b.numbers[k];
    return exact;
  }
  short highest = exponent_of(before);
  for (int k = 0; k < 32; k++) highest = std::max<short>(highest, a.exponents[k] + b.exponents[k]);
  float units = power_of_2(bits - highest);
  for (int k = 0; k < 32; k++) sum += static_cast<int>(a.numbers[k] * b.numbers[k] * units);
  return (sum + static_cast<int>(before * units)) * static_cast<double>(power_of_2(highest - bits));
}

// This thread's part of instruction `index` of the oldest group. Threads of a warp have issued the same ones.
inline void execute(const Fiber& own, size_t index) {
  const Wgmma& w = own.groups.front()[index];
  const Fiber* warp = &own - own.thread.x % 32;
  int t = own.thread.x % 128, lane = t % 32, quad = lane % 4;
  bool integers = w.kind == Wgmma::S32_S8;
  const Codes& codes = integers ? int8 : e4m3;
  Row rows[2], column;
  for (int h = 0; h < 2; h++) {
    if (w.a_registers[0]) {  // of the thread that holds row and byte
      for (int k = 0; k < 32; k++) {
        const Fiber& holder = warp[lane / 4 * 4 + k % 16 / 4];
        rows[h].bytes[k] = *holder.groups.front()[index].a_registers[h + 2 * (k / 16)] >> 8 * (k % 4) & 255;
      }
    } else {
      read_operand(rows[h], w.a, 16 * (t / 32) + lane / 4 + 8 * h);
    }
    rows[h].decode(codes);
  }
  for (int number = 2 * quad; number < w.n; number += number % 2 ? 7 : 1) {
    read_operand(column, w.b, number);
    column.decode(codes);
    for (int h = 0; h < 2; h++) {
      int j = number / 8, b = number % 2;
      if (integers) {
        int& d = static_cast<int*>(w.d)[4 * j + 2 * h + b];
        if (!w.accumulate) d = 0;
        for (int k = 0; k < 32; k++) d += static_cast<int>(rows[h].numbers[k] * column.numbers[k]);
      } else if (w.kind == Wgmma::F16_E4M3) {
        u16& d = static_cast<u16*>(w.d)[2 * (2 * j + h) + b];
        d = to_half(sum_of_products(rows[h], column, w.accumulate ? from_half(d) : 0.f));
      } else {
        float& d = static_cast<float*>(w.d)[4 * j + 2 * h + b];
        double sum = sum_of_products(rows[h], column, w.accumulate ? d : 0.f);
        d = static_cast<float>(machine.accumulator_bits ? cut(sum, machine.accumulator_bits) : sum);
      }
    }
  }
}

// Until at most `pending` groups are under way. A warp executes together: nobody changes registers in between.
inline void wait_for_groups(size_t pending) {
  Fiber& own = *machine.current;
  warp_sync();
  if (machine.late == WGMMAS && own.groups.size() > pending) {
    u64 lull = machine.lulls;
    machine.wait_for_lull++;
    wait_until([=] { return machine.lulls != lull; });
  }
  while (own.groups.size() > pending) {
    for (size_t i = 0; i < own.groups.front().size(); i++) execute(own, i);
    warp_sync();
    own.groups.pop_front();
    warp_sync();
  }
}

}  // namespace host
