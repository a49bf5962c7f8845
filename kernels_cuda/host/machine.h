// A Hopper block on a CPU, as far as our kernels can tell: one fiber per CUDA thread, asynchronous work really late.
//
// What the hardware may do late is done late, so that a missing wait shows in the numbers: bulk copies land at random
// times, wgmmas read and write at the wait. An adversarial machine is as late as can be with either kind (Late), and
// quick with the other. Shared memory starts as NaN. Threads that wait for each other for ever are a deadlock, and
// reported. What it cannot know: fences between proxies, register hazards, speed.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <random>
#include <vector>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

namespace host {

struct Dimension {
  int x;
};

// A wgmma that was issued: pointers, because operands are read when it is executed, at the wait.
struct Wgmma {
  enum Kind { F32_E4M3, F16_E4M3, S32_S8 } kind;
  int n;
  void* d;
  const u32* a_registers[4];  // null: A is in shared memory
  u64 a, b;
  bool accumulate;
};

struct Fiber {
  ucontext_t context;
  std::vector<u8> stack;
  Dimension thread;
  bool done = false;
  u32 exchange[2] = {0, 0};  // what it brought to the last two warp exchanges
  u64 exchanges = 0;
  std::vector<Wgmma> open;               // issued, not committed
  std::deque<std::vector<Wgmma>> groups;  // committed, oldest first
};

struct Mbarrier {
  int expected = 0, pending = 0;
  long bytes = 0;  // in flight; may be negative until they are announced
  u32 phase = 0;
  void try_complete() {
    if (pending == 0 && bytes == 0) phase ^= 1, pending = expected;
  }
};

struct NamedBarrier {
  int arrived = 0;
  u64 generation = 0;
};

struct Copy {
  void* to;
  const void* from;
  u32 bytes;
  u64* barrier;
};

// What happens only when no thread can move. With COPIES a missing wait for data shows, with WGMMAS a missing wait for
// those who still read.
enum Late { NOTHING, COPIES, WGMMAS };

struct Machine {
  std::vector<u8> memory;
  u8* shared = nullptr;
  size_t shared_bytes = 0;
  Dimension block{0}, grid{0};
  std::vector<Fiber> fibers;
  Fiber* current = nullptr;
  ucontext_t scheduler;
  std::map<const void*, Mbarrier> mbarriers;
  NamedBarrier barriers[16];
  std::vector<Copy> copies;
  std::mt19937 random;
  u64 progress = 0;          // grows whenever something happened
  Late late = NOTHING;
  u64 lulls = 0;          // moments at which no other thread could move: late wgmmas are executed
  int wait_for_lull = 0;  // threads
  int accumulator_bits = 13;  // that FP8 summands and sums keep behind the leading one; 0 for exact sums
  char fault[200] = "";
};

inline Machine machine;

inline void yield() { swapcontext(&machine.current->context, &machine.scheduler); }

// Ends the run; the scheduler does not come back to a machine with a fault.
inline void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  if (!machine.fault[0]) vsnprintf(machine.fault, sizeof machine.fault, format, arguments);
  va_end(arguments);
  while (true) yield();
}

template <class Condition>
void wait_until(Condition condition) {
  while (!condition()) yield();
  machine.progress++;
}

inline u32 shared_offset(const void* p) {
  u64 offset = static_cast<const u8*>(p) - machine.shared;
  if (offset >= machine.shared_bytes) fail("an address outside shared memory where one inside is wanted");
  return static_cast<u32>(offset);
}

// All 32 threads of a warp bring a value and see all of them.
inline void warp_exchange(u32 value, u32 (&all)[32]) {
  Fiber* own = machine.current;
  Fiber* warp = &machine.fibers[own->thread.x & ~31];
  own->exchange[own->exchanges & 1] = value;
  u64 count = ++own->exchanges;
  wait_until([=] { return std::all_of(warp, warp + 32, [=](const Fiber& f) { return f.exchanges >= count; }); });
  for (int i = 0; i < 32; i++) all[i] = warp[i].exchange[(count - 1) & 1];
}
inline void warp_sync() {
  u32 all[32];
  warp_exchange(0, all);
}

inline void land(size_t i) {
  Copy copy = machine.copies[i];
  machine.copies.erase(machine.copies.begin() + i);
  memcpy(copy.to, copy.from, copy.bytes);
  Mbarrier& barrier = machine.mbarriers[copy.barrier];
  barrier.bytes -= copy.bytes;
  barrier.try_complete();
  machine.progress++;
}

template <class Kernel>
void run_block(const Kernel& kernel, int threads) {
  Machine& m = machine;
  std::fill(m.memory.begin(), m.memory.end(), 0xff);  // NaN in float, FP16 and E4M3
  m.mbarriers.clear(), m.copies.clear(), m.wait_for_lull = 0;
  for (NamedBarrier& barrier : m.barriers) barrier = NamedBarrier();
  m.fibers.assign(threads, Fiber());
  static const Kernel* entry;
  entry = &kernel;
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = m.fibers[i];
    fiber.thread.x = i;
    fiber.stack.resize(1 << 16);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &m.scheduler;
    auto body = [] {
      (*entry)();
      machine.current->done = true;
      machine.progress++;
    };
    makecontext(&fiber.context, static_cast<void (*)()>(body), 0);
  }
  std::vector<int> order(threads);
  for (int i = 0; i < threads; i++) order[i] = i;
  for (int alive = threads; alive;) {
    u64 before = m.progress;
    std::shuffle(order.begin(), order.end(), m.random);
    alive = 0;
    for (int i : order) {
      m.current = &m.fibers[i];
      if (m.current->done) continue;
      swapcontext(&m.scheduler, &m.current->context);
      if (m.fault[0]) return;
      alive += !m.current->done;
    }
    bool stuck = m.progress == before;
    if (m.late == COPIES && stuck && !m.copies.empty()) {
      land(m.random() % 2 ? m.copies.size() - 1 : 0);  // the newest or the oldest: either may overtake
    } else if (m.late != COPIES) {
      for (size_t i = 0; i < m.copies.size();) m.late == WGMMAS || m.random() % 3 == 0 ? land(i) : void(i++);
    }
    if (stuck && m.copies.empty() && m.wait_for_lull) m.lulls++, m.progress++, m.wait_for_lull = 0;
    if (alive && m.progress == before && m.copies.empty()) {
      snprintf(m.fault, sizeof m.fault, "deadlock: block %d, %d threads wait for ever", m.block.x, alive);
      return;
    }
  }
  if (!m.copies.empty()) snprintf(m.fault, sizeof m.fault, "block %d ended with copies in flight", m.block.x);
}

// Every block of a grid, one after the other. Null, or what went wrong.
template <class Kernel>
const char* launch(const Kernel& kernel, int grid, int threads, size_t shared_bytes, int seed, Late late,
                   int accumulator_bits) {
  Machine& m = machine;
  m.fault[0] = 0;
  m.random.seed(seed);
  m.grid.x = grid;
  m.late = late;
  m.accumulator_bits = accumulator_bits;
  m.memory.assign(shared_bytes + 1024, 0);
  m.shared = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(m.memory.data()) + 1023) & ~uintptr_t(1023));
  m.shared_bytes = shared_bytes;
  for (m.block.x = 0; m.block.x < grid && !m.fault[0]; m.block.x++) run_block(kernel, threads);
  return m.fault[0] ? m.fault : nullptr;
}

}  // namespace host
