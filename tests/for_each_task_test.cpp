// Tasks on threads: how many threads work is worth, each task once, errors.
#include "executor_support.hpp"

namespace {

using attn::Executor;
using attn::Index;
using attn::LaneFunction;
using attn::SerialExecutor;
using attn::ThreadPool;
using attn::UseExecutor;
using attn_test::Backwards;
using attn_test::expect_every_lane_once;

/// Much work: all lanes that there are.
template <class Task>
void for_each_task(Index tasks, const Task& task) {
  attn::detail::for_each_task(tasks, attn::detail::worth_workers(tasks, 1e12), task);
}

TEST(Lanes, AreAsManyAsTheWorkIsWorth) {
  ThreadPool pool(3);
  const UseExecutor use(pool);
  EXPECT_EQ(attn::detail::worth_workers(100, 1e12), 3);
  EXPECT_EQ(attn::detail::worth_workers(2, 1e12), 2);
  EXPECT_EQ(attn::detail::worth_workers(100, 0.0), 1);
}

TEST(Lanes, AreBoundedByTheWorkOnAVastExecutor) {
  struct Vast final : Executor {
    Vast() : Executor(std::numeric_limits<int>::max()) {}
    void parallel_for(int count, LaneFunction lane) override {
      for (int i = 0; i < count; ++i) lane(i);
    }
  } vast;
  const UseExecutor use(vast);
  EXPECT_EQ(attn::detail::worth_workers(100, 1e300), 100);
  EXPECT_EQ(attn::detail::worth_workers(Index{1} << 40, 3e5), 4);
  EXPECT_LE(attn::detail::worth_workers(Index{1} << 40, 1e300), 1 << 20);
}

TEST(ForEachTask, RunsEveryTaskOnceOnALaneOfItsOwn) {
  ThreadPool pool(3);
  const UseExecutor use(pool);
  for (const Index tasks : {0, 1, 2, 5, 1000}) {
    std::vector<std::atomic<int>> times(static_cast<std::size_t>(tasks));
    std::array<std::atomic<int>, 3> busy{};
    for_each_task(tasks, [&](Index task, int lane) {
      ASSERT_TRUE(lane >= 0 && lane < 3);
      EXPECT_EQ(++busy[static_cast<std::size_t>(lane)], 1) << "two tasks at once on one lane";
      ++times[static_cast<std::size_t>(task)];
      --busy[static_cast<std::size_t>(lane)];
    });
    for (const auto& n : times) EXPECT_EQ(n.load(), 1);
  }
}

TEST(ForEachTask, PassesAnExceptionToTheCaller) {
  ThreadPool pool(3);
  Eigen::ThreadPool threads(2);
  attn::EigenExecutor eigen(threads);
  SerialExecutor serial;
  Backwards backwards;
  for (Executor* executor : {static_cast<Executor*>(&pool), static_cast<Executor*>(&eigen),
                             static_cast<Executor*>(&serial), static_cast<Executor*>(&backwards)}) {
    const UseExecutor use(*executor);
    for (const Index bad : {0, 17, 99}) {
      try {
        for_each_task(100, [&](Index task, int) {
          if (task == bad) throw std::runtime_error("task " + std::to_string(task));
        });
        ADD_FAILURE() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(error.what(), "task " + std::to_string(bad));
      }
    }
    expect_every_lane_once(*executor);
  }
}

TEST(ForEachTask, StartsNoTaskAfterAnException) {
  Backwards
      one_after_the_other;  // three lanes: the first to run meets the exception, the others must find nothing left
  SerialExecutor serial;
  for (Executor* executor : {static_cast<Executor*>(&one_after_the_other), static_cast<Executor*>(&serial)}) {
    const UseExecutor use(*executor);
    int ran = 0;
    const auto throws_at_five = [&](Index task, int) {
      ++ran;
      if (task == 5) throw std::runtime_error("five");
    };
    EXPECT_THROW(for_each_task(1000, throws_at_five), std::runtime_error);
    EXPECT_EQ(ran, 6) << executor->concurrency() << " lanes";
  }
}

TEST(ForEachTask, StopsOtherLanesAfterAnException) {
  ThreadPool pool(2);
  const UseExecutor use(pool);
  std::atomic<bool> thrown{false};
  std::atomic<int> after{0};
  const auto task = [&](Index i, int) {
    if (i == 0) {
      thrown = true;
      throw std::runtime_error("first");
    }
    while (!thrown) std::this_thread::yield();
    ++after;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  EXPECT_THROW(for_each_task(2000, task), std::runtime_error);
  EXPECT_LT(after, 1000);
}

TEST(ForEachTask, PassesOnOneExceptionIfAllTasksThrow) {
  ThreadPool pool(4);
  const UseExecutor use(pool);
  EXPECT_THROW(for_each_task(100, [](Index, int) { throw std::runtime_error("each"); }), std::runtime_error);
}

TEST(ForEachTask, RunsAllTasksWhenNested) {
  ThreadPool pool(3);
  const UseExecutor use(pool);
  std::atomic<int> count{0};
  for_each_task(9, [&](Index, int) { for_each_task(11, [&](Index, int) { ++count; }); });
  EXPECT_EQ(count, 99);
}

TEST(ForEachTask, PassesANestedExceptionToTheOuterCaller) {
  ThreadPool pool(3);
  const UseExecutor use(pool);
  const auto outer = [](Index i, int) {
    for_each_task(11, [&](Index j, int) {
      if (i == 4 && j == 5) throw std::logic_error("inner");
    });
  };
  EXPECT_THROW(for_each_task(9, outer), std::logic_error);
}

}  // namespace
