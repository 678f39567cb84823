#pragma once
// What the tests of executors share: two of a user's own.
#include "module_support.hpp"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <set>
#include <thread>

#if __has_include(<Eigen/ThreadPool>)  // Eigen 5
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

namespace attn_test {

using attn::Executor;
using attn::LaneFunction;

/// What the README promises: a user's own executor in five lines.
class Backwards final : public Executor {
 public:
  Backwards() : Executor(3) {}
  void parallel_for(int count, LaneFunction lane) override {
    for (int i = count; i-- > 0;) lane(i);
  }
};

/// A user's own with real threads.
class NewThreads final : public Executor {
 public:
  NewThreads() : Executor(4) {}
  void parallel_for(int count, LaneFunction lane) override {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i) threads.emplace_back([=] { lane(i); });
    for (std::thread& thread : threads) thread.join();
  }
};

/// Whether parallel_for ran every lane from 0 to count - 1 exactly once, for several counts.
inline void expect_every_lane_once(Executor& executor) {
  for (const int count : {0, 1, 2, 3, 4, 7, 64, 1000}) {
    std::vector<std::atomic<int>> times(static_cast<std::size_t>(count));
    const auto lane = [&](int i) { ++times[static_cast<std::size_t>(i)]; };
    executor.parallel_for(count, lane);
    for (const auto& n : times) ASSERT_EQ(n.load(), 1) << count << " lanes";
  }
}
}  // namespace attn_test
