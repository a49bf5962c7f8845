// A cluster of Hopper blocks, by default of one, on a CPU, as far as our kernels can tell: one fiber per CUDA thread,
// asynchronous work really late.
//
// What the hardware may do late is done late, so that a missing wait shows in the numbers: bulk copies land at random
// times, in each block of a cluster at another, wgmmas read and write at the wait. An adversarial machine is as late as
// can be with either kind (Late), and quick with the other; one block of its clusters lags as far behind as it can.
// Shared memory starts as NaN. Threads that wait for each other for ever are a deadlock, and reported. What it cannot
// know: fences between proxies, register hazards, speed.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
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

struct NamedBarrier {
  int arrived = 0;
  u64 generation = 0;
};

struct Block {
  Dimension at{0};  // in the grid
  std::vector<u8> memory;
  u8* shared = nullptr;
  NamedBarrier barriers[16];
  int alive = 0;  // threads
};

constexpr size_t STACK = 1 << 16;  // bytes, of each thread

struct Fiber {
  ucontext_t begin;
  jmp_buf place;  // where it goes on, once it has begun
  bool begun = false;
  std::unique_ptr<u8[]> stack;
  Block* block;
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

struct Copy {
  void* to;
  const void* from;
  u32 bytes;
  u64* barrier;
  const Block *by, *into;
};

// What happens only when no thread can move. With COPIES a missing wait for data shows, with WGMMAS a missing wait for
// those who still read.
enum Late { NOTHING, COPIES, WGMMAS };

struct Machine {
  size_t shared_bytes = 0;
  Dimension grid{0};
  std::vector<Block> blocks;  // of the cluster
  std::vector<Fiber> fibers;  // of all of them, block after block
  Fiber* current = nullptr;
  jmp_buf scheduler;
  std::map<const void*, Mbarrier> mbarriers;
  NamedBarrier cluster;
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

// Not by swapcontext: it asks the operating system twice which signals are blocked, half of a run's time.
inline void yield() {
  if (!_setjmp(machine.current->place)) _longjmp(machine.scheduler, 1);
}
// Until it yields or ends. A function of its own: what a caller of setjmp keeps in registers is gone behind it.
__attribute__((noinline)) inline void resume(Fiber& fiber) {
  machine.current = &fiber;
  if (_setjmp(machine.scheduler)) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.begin);
}

// The first thing that went wrong ends the run.
template <class... ARGUMENTS>
void report(const char* format, ARGUMENTS... arguments) {
  if (!machine.fault[0]) snprintf(machine.fault, sizeof machine.fault, format, arguments...);
}
// The scheduler does not come back to a machine with a fault.
template <class... ARGUMENTS>
void fail(const char* format, ARGUMENTS... arguments) {
  report(format, arguments...);
  while (true) yield();
}

template <class Condition>
void wait_until(Condition condition) {
  while (!condition()) yield();
  machine.progress++;
}

inline Block& own_block() { return *machine.current->block; }

inline u32 shared_offset(const void* p) {
  u64 offset = static_cast<const u8*>(p) - own_block().shared;
  if (offset >= machine.shared_bytes) fail("an address outside shared memory where one inside is wanted");
  return static_cast<u32>(offset);
}

// The block of this rank in the cluster.
inline Block& block_of(u32 rank) {
  if (rank >= machine.blocks.size()) fail("block %u of a cluster of %zu", rank, machine.blocks.size());
  if (!machine.blocks[rank].alive) fail("block %d of the grid is reached after its end", machine.blocks[rank].at.x);
  return machine.blocks[rank];
}
// What lies in a block's shared memory where `p` lies in this one's.
template <class TYPE>
TYPE* in_block(const Block& block, TYPE* p) {
  return reinterpret_cast<TYPE*>(block.shared + shared_offset(p));
}

// All 32 threads of a warp bring a value and see all of them.
inline void warp_exchange(u32 value, u32 (&all)[32]) {
  Fiber* own = machine.current;
  Fiber* warp = own - own->thread.x % 32;
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

// This thread is the block's last: nothing that the block waits for, or has others wait for, is under way any more.
inline void end_of_block(const Block& block) {
  for (const Copy& copy : machine.copies)
    if (copy.by == &block || copy.into == &block) report("block %d ended with copies in flight", block.at.x);
}

template <class Kernel>
void run_cluster(const Kernel& kernel, int threads) {
  Machine& m = machine;
  m.mbarriers.clear(), m.copies.clear(), m.cluster = NamedBarrier(), m.wait_for_lull = 0;
  for (Block& block : m.blocks) {
    std::fill(block.memory.begin(), block.memory.end(), 0xff);  // NaN in float, FP16 and E4M3
    for (NamedBarrier& barrier : block.barriers) barrier = NamedBarrier();
    block.alive = threads;
  }
  const int all = threads * static_cast<int>(m.blocks.size());
  m.fibers.clear();
  m.fibers.resize(all);
  static const Kernel* entry;
  entry = &kernel;
  for (int i = 0; i < all; i++) {
    Fiber& fiber = m.fibers[i];
    fiber.block = &m.blocks[i / threads];
    fiber.thread.x = i % threads;
    fiber.stack.reset(new u8[STACK]);
    getcontext(&fiber.begin);
    fiber.begin.uc_stack.ss_sp = fiber.stack.get();
    fiber.begin.uc_stack.ss_size = STACK;
    auto body = [] {
      (*entry)();
      machine.current->done = true;
      machine.progress++;
      if (--own_block().alive == 0) end_of_block(own_block());
      _longjmp(machine.scheduler, 1);
    };
    makecontext(&fiber.begin, static_cast<void (*)()>(body), 0);
  }
  std::vector<int> order(all);
  for (int i = 0; i < all; i++) order[i] = i;
  // The block that moves only when no other one can.
  const Block* lags = m.blocks.size() > 1 && m.late != NOTHING ? &m.blocks[m.random() % m.blocks.size()] : nullptr;
  bool lags_now = true;
  for (int alive = all; alive;) {
    u64 before = m.progress;
    std::shuffle(order.begin(), order.end(), m.random);
    alive = 0;
    for (int i : order) {
      Fiber& fiber = m.fibers[i];
      if (fiber.done) continue;
      if (fiber.block != lags || !lags_now) resume(fiber);
      if (m.fault[0]) return;
      alive += !fiber.done;
    }
    bool stuck = m.progress == before;
    if (lags && lags_now && stuck) {
      lags_now = false;
      continue;
    }
    lags_now = true;
    if (m.late == COPIES && stuck && !m.copies.empty()) {
      land(m.random() % 2 ? m.copies.size() - 1 : 0);  // the newest or the oldest: either may overtake
    } else if (m.late != COPIES) {
      for (size_t i = 0; i < m.copies.size();) m.late == WGMMAS || m.random() % 3 == 0 ? land(i) : void(i++);
    }
    if (stuck && m.copies.empty() && m.wait_for_lull) m.lulls++, m.progress++, m.wait_for_lull = 0;
    if (alive && m.progress == before && m.copies.empty())
      return report("deadlock: block %d, %d threads wait for ever", m.blocks[0].at.x, alive);
  }
}

// Every cluster of a grid, one after the other. Null, or what went wrong.
template <class Kernel>
const char* launch(const Kernel& kernel, int grid, int cluster, int threads, size_t shared_bytes, int seed, Late late,
                   int accumulator_bits) {
  Machine& m = machine;
  m.fault[0] = 0;
  m.random.seed(seed);
  m.grid.x = grid;
  m.late = late;
  m.accumulator_bits = accumulator_bits;
  m.shared_bytes = shared_bytes;
  if (grid % cluster) report("a grid of %d blocks in clusters of %d", grid, cluster);
  m.blocks.assign(cluster, Block());
  for (Block& block : m.blocks) {
    block.memory.resize(shared_bytes + 1024);
    block.shared = reinterpret_cast<u8*>((reinterpret_cast<uintptr_t>(block.memory.data()) + 1023) & ~uintptr_t(1023));
  }
  for (int first = 0; first < grid && !m.fault[0]; first += cluster) {
    for (int rank = 0; rank < cluster; rank++) m.blocks[rank].at.x = first + rank;
    run_cluster(kernel, threads);
  }
  return m.fault[0] ? m.fault : nullptr;
}

}  // namespace host
