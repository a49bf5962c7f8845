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

// All but `bits` bits behind the leading one are cut off.
inline float cut(double x) {
  int bits = machine.accumulator_bits, exponent;
  if (!bits || x == 0) return static_cast<float>(x);
  double mantissa = std::frexp(x, &exponent);
  return static_cast<float>(std::ldexp(std::trunc(std::ldexp(mantissa, bits + 1)), exponent - bits - 1));
}

// A byte of an operand: where the descriptor begins, plus row and byte along K, swizzled by address as the hardware does.
inline u8 operand_byte(u64 descriptor, int row, int byte) {
  u32 start = static_cast<u32>(descriptor & 0x3FFF) << 4, stride = static_cast<u32>(descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 != 1) fail("a descriptor without the 128-byte swizzle: only that is modelled");
  u32 address = start + row / 8 * stride + row % 8 * 128 + byte;
  address ^= (address >> 7 & 7) << 4;
  if (address >= machine.shared_bytes) fail("wgmma reads beyond shared memory");
  return machine.shared[address];
}

// This thread's part of instruction `index` of the oldest group. Threads of a warp have issued the same ones.
inline void execute(const Fiber& own, size_t index) {
  const Wgmma& w = own.groups.front()[index];
  const Fiber* warp = &machine.fibers[own.thread.x & ~31];
  static float e4m3[256];
  if (e4m3[8] == 0)
    for (int i = 0; i < 256; i++) e4m3[i] = from_e4m3(i);
  auto number = [&](u8 code) { return w.kind == Wgmma::S32_S8 ? static_cast<float>(static_cast<signed char>(code)) : e4m3[code]; };
  int t = own.thread.x % 128, lane = t % 32, quad = lane % 4;
  for (int h = 0; h < 2; h++) {
    int row = 16 * (t / 32) + lane / 4 + 8 * h;
    float a[32];
    for (int k = 0; k < 32; k++) {
      if (w.a_registers[0]) {  // of the thread that holds row and byte
        const Fiber& holder = warp[lane / 4 * 4 + k % 16 / 4];
        a[k] = number(*holder.groups.front()[index].a_registers[h + 2 * (k / 16)] >> 8 * (k % 4) & 255);
      } else {
        a[k] = number(operand_byte(w.a, row, k));
      }
    }
    for (int column = 2 * quad; column < w.n; column += column % 2 ? 7 : 1) {
      double sum = 0;
      for (int k = 0; k < 32; k++) sum += static_cast<double>(a[k]) * number(operand_byte(w.b, column, k));
      int j = column / 8, b = column % 2;
      if (w.kind == Wgmma::S32_S8) {
        int& d = static_cast<int*>(w.d)[4 * j + 2 * h + b];
        d = (w.accumulate ? d : 0) + static_cast<int>(sum);
      } else if (w.kind == Wgmma::F16_E4M3) {
        u16& d = static_cast<u16*>(w.d)[2 * (2 * j + h) + b];
        d = to_half((w.accumulate ? from_half(d) : 0.f) + static_cast<float>(sum));
      } else {
        float& d = static_cast<float*>(w.d)[4 * j + 2 * h + b];
        d = cut((w.accumulate ? d : 0.0) + sum);
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
