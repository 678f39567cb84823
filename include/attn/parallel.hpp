// Floor 1. Work cut into tasks, and the threads that run them.
//
// Every attn function runs on the calling thread's current executor: the shared pool, unless a `UseExecutor` in scope
// says otherwise. Results do not depend on it by a bit: work is cut into tasks by shape alone, and every task is
// computed in the same order on every thread.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

#include "error.hpp"
#include "executor.hpp"
#include "float_environment.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"

namespace attn {

namespace detail {
inline Executor*& chosen_executor() {
  thread_local Executor* chosen = nullptr;
  return chosen;
}
}  // namespace detail

/// The executor that attn calls of this thread run on.
[[gnu::noinline]] inline Executor& current_executor() {
  Executor* chosen = detail::chosen_executor();
  return chosen != nullptr ? *chosen : default_executor();
}

/// While it lives, attn calls of this thread run on the given executor.
class UseExecutor {
 public:
  explicit UseExecutor(Executor& executor) : before_(std::exchange(detail::chosen_executor(), &executor)) {}
  UseExecutor(const UseExecutor&) = delete;
  UseExecutor& operator=(const UseExecutor&) = delete;
  ~UseExecutor() { detail::chosen_executor() = before_; }

 private:
  Executor* before_;
};

namespace detail {

/// How many workers `tasks` tasks of `work` multiplications in all are worth. A worker pays from some 10^5 of them on: a
/// few microseconds, against about one to wake a thread.
inline int worth_workers(Index tasks, double work) {
  const Index worth = static_cast<Index>(std::min(work / 1e5, 1e6)) + 1;
  return static_cast<int>(std::min({tasks, worth, Index{current_executor().concurrency()}}));
}

/// Runs task(i, worker) for every i below `tasks`, worker < workers. A worker runs one task after another, so it may own
/// scratch memory. Workers take tasks from one counter, in order: put the costly ones first. All compute in the caller's
/// floating-point environment. An exception of a task reaches the caller after all workers have stopped.
inline void for_each_task(Index tasks, int workers, FunctionRef<Index, int> task) {
  if (workers <= 1) {
    for (Index i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  // A worker takes some tasks in a row: neighbours, heads of one token, share cache lines and pages, and two cores that write
  // them at once wait for each other (8 x 128 tokens, 8 heads of 32: 18 % of an attention). Few enough that the last ones do
  // not keep one worker busy alone.
  constexpr Index runs_of_a_worker = 4, longest_run = 8;
  const Index run = std::clamp<Index>(tasks / (runs_of_a_worker * workers), 1, longest_run);
  std::atomic<Index> next{0};
  FirstError error;
  const FloatEnvironment environment = FloatEnvironment::current();
  const auto work = [&](int worker) {
    const UseFloatEnvironment use(environment);
    const bool done = error.guard([&] {
      for (Index first = next.fetch_add(run); first < tasks; first = next.fetch_add(run))
        for (Index i = first; i < std::min(first + run, tasks); ++i) task(i, worker);
    });
    if (!done) next = tasks;
  };
  current_executor().parallel_for(workers, work);
  error.rethrow();
}

/// Runs task(i, scratch) for every i below `tasks`, on as many workers as `work` multiplications in all are worth, each
/// with `scratch` bytes of its own.
inline void run_tasks(Index tasks, double work, Index scratch, FunctionRef<Index, std::byte*> task) {
  const int workers = worth_workers(tasks, work);
  const Workspace::Frame frame;
  const Index room = round_up(scratch, cache_line);
  auto* const memory = frame.take<std::byte>(
      checked_size<std::byte>("run_tasks", "scratch memory", as_shape(std::array<Index, 2>{workers, room})));
  for_each_task(tasks, workers, [&](Index i, int worker) { task(i, memory + worker * room); });
}

/// A plan cuts work into tasks: how many there are, how many multiplications all of them take, what scratch memory one
/// lays out, and one task.
template <class Plan>
void run_tasks(const Plan& plan) {
  run_tasks(plan.tasks(), plan.work(), plan.scratch_size(),
            [&](Index task, std::byte* memory) { plan.run(task, Scratch(memory)); });
}

}  // namespace detail

}  // namespace attn
