// Plans run as tasks: each once, with scratch memory that no other task that runs meanwhile has. executor_test.cpp has the
// workers.
#include "support.hpp"

#include <atomic>
#include <chrono>
#include <thread>

namespace {

using attn::Index;
using attn::detail::cache_line;
using attn::detail::Scratch;

/// A plan whose tasks count themselves and write all of their scratch memory.
struct CountingPlan {
  Index count;
  Index bytes;
  double multiplications = 1e12;  // worth any number of workers
  mutable std::vector<std::atomic<int>> runs = std::vector<std::atomic<int>>(static_cast<std::size_t>(count));
  mutable std::atomic<bool> disturbed = false, misaligned = false;

  [[nodiscard]] Index tasks() const { return count; }
  [[nodiscard]] double work() const { return multiplications; }
  [[nodiscard]] Index scratch_size() const {
    Scratch measured;
    measured.take<std::byte>(bytes);
    return measured.size();
  }
  void run(Index task, Scratch scratch) const {
    ++runs[static_cast<std::size_t>(task)];
    auto* const mine = scratch.take<std::byte>(bytes);
    if (reinterpret_cast<std::uintptr_t>(mine) % cache_line != 0) misaligned = true;
    const auto mark = static_cast<std::byte>(task % 251 + 1);
    std::fill_n(mine, bytes, mark);
    std::this_thread::yield();
    if (std::count(mine, mine + bytes, mark) != bytes) disturbed = true;
  }
};

TEST(RunTasks, RunsEveryTaskOfAPlanOnce) {
  attn::ThreadPool pool(4);
  const attn::UseExecutor use(pool);
  for (const Index count : {1, 3, 4, 1000}) {
    const CountingPlan plan{.count = count, .bytes = 100};
    attn::detail::run_tasks(plan);
    for (const auto& times : plan.runs) EXPECT_EQ(times.load(), 1);
  }
}

TEST(RunTasks, GivesEachWorkerScratchMemoryOfItsOwn) {
  attn::ThreadPool pool(4);
  const attn::UseExecutor use(pool);
  for (const Index bytes : {1, 64, 65, 5000}) {
    const CountingPlan plan{.count = 500, .bytes = bytes};
    attn::detail::run_tasks(plan);
    EXPECT_FALSE(plan.disturbed) << bytes << " bytes";
    EXPECT_FALSE(plan.misaligned) << bytes << " bytes";
  }
}

TEST(RunTasks, PiecesOfWorkersDoNotOverlap) {
  constexpr Index bytes = 100;  // no multiple of a cache line
  attn::ThreadPool pool(3);
  const attn::UseExecutor use(pool);
  std::array<std::byte*, 3> pieces{};
  std::atomic<int> arrived{0};
  attn::detail::run_tasks(3, 1e12, bytes, [&](Index task, std::byte* memory) {
    pieces[static_cast<std::size_t>(task)] = memory;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    for (++arrived; arrived < 3 && std::chrono::steady_clock::now() < end;) std::this_thread::yield();
  });
  std::sort(pieces.begin(), pieces.end());
  for (const std::byte* piece : pieces) EXPECT_EQ(reinterpret_cast<std::uintptr_t>(piece) % cache_line, 0U);
  for (std::size_t i = 1; i < pieces.size(); ++i) EXPECT_GE(pieces[i] - pieces[i - 1], bytes);
}

TEST(RunTasks, APlanWithoutTasksOrScratchMemoryIsNoError) {
  const CountingPlan nothing{.count = 0, .bytes = 100};
  attn::detail::run_tasks(nothing);
  const CountingPlan no_memory{.count = 3, .bytes = 0};
  attn::detail::run_tasks(no_memory);
  for (const auto& times : no_memory.runs) EXPECT_EQ(times.load(), 1);
}

TEST(RunTasks, LittleWorkStaysOnTheCallersThread) {
  attn::ThreadPool pool(4);
  const attn::UseExecutor use(pool);
  const auto caller = std::this_thread::get_id();
  std::atomic<int> elsewhere{0};
  attn::detail::run_tasks(100, 1e4, 64, [&](Index, std::byte*) {
    if (std::this_thread::get_id() != caller) ++elsewhere;
  });
  EXPECT_EQ(elsewhere.load(), 0);
}

TEST(RunTasks, RefusesScratchMemoryThatNoMemoryHolds) {
  attn::ThreadPool pool(2);
  const attn::UseExecutor use(pool);
  Scratch measured;
  measured.take<double>(std::numeric_limits<Index>::max());
  const Index bytes = measured.size();
  bool ran = false;
  const std::string error =
      attn_test::error_of([&] { attn::detail::run_tasks(4, 1e12, bytes, [&](Index, std::byte*) { ran = true; }); });
  EXPECT_TRUE(
      attn_test::reads(error, {"[attn::run_tasks] scratch memory, expected a size that memory can hold, got [2,"}));
  EXPECT_FALSE(ran);
}

}  // namespace
