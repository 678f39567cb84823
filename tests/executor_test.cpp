// Executors of each kind, lanes that throw, which executor a call runs on, and that threads do not change a bit.
#include "executor_support.hpp"

namespace {

using attn::Executor;
using attn::Index;
using attn::LaneFunction;
using attn::SerialExecutor;
using attn::ThreadPool;
using attn::UseExecutor;
using attn_test::Backwards;
using attn_test::expect_error;
using attn_test::expect_every_lane_once;
using attn_test::NewThreads;
using attn_test::random_tensor;
using attn_test::same_bits;

// ---- Each kind ----

TEST(SerialExecutor, RunsInOrderOnTheCallingThread) {
  SerialExecutor serial;
  EXPECT_EQ(serial.concurrency(), 1);
  std::vector<int> order;
  const auto lane = [&](int i) { order.push_back(i); };
  serial.parallel_for(3, lane);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2}));
}

TEST(ThreadPool, RunsEveryLaneOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.concurrency(), threads);
    expect_every_lane_once(pool);
  }
}

TEST(ThreadPool, RunsLanesOnSeveralThreadsAtOnce) {
  ThreadPool pool(3);
  std::atomic<int> inside{0};
  const auto lane = [&](int) {  // returns only when all three lanes are in it, or after ten seconds
    ++inside;
    for (int i = 0; i < 10000 && inside < 3; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_EQ(inside, 3);
  };
  pool.parallel_for(3, lane);
}

/// Whether a job of three lanes runs on three threads at once: each lane waits for the others, ten seconds at most.
bool runs_on_three_threads(ThreadPool& pool) {
  std::atomic<int> inside{0};
  std::atomic<bool> late{false};
  const auto lane = [&](int) {
    ++inside;
    for (int i = 0; i < 10000 && inside < 3 && !late; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (inside < 3) late = true;
  };
  pool.parallel_for(3, lane);
  return !late;
}

TEST(ThreadPool, UsesAllThreadsInOneJobAfterAnother) {
  ThreadPool pool(3);
  for (int job = 0; job < 5; ++job) ASSERT_TRUE(runs_on_three_threads(pool)) << "job " << job;
}

TEST(ThreadPool, UsesAllThreadsAfterNestedCallsAndErrors) {
  ThreadPool pool(3);
  const UseExecutor use(pool);
  const auto inner = [](int) {};
  const auto outer = [&](int) { pool.parallel_for(5, inner); };
  pool.parallel_for(7, outer);
  ASSERT_TRUE(runs_on_three_threads(pool));
  const auto throws = [](Index, int) { throw std::runtime_error("each"); };
  EXPECT_THROW(attn::detail::for_each_task(9, 3, throws), std::runtime_error);
  ASSERT_TRUE(runs_on_three_threads(pool));
}

TEST(ThreadPool, RunsManyShortJobsInARow) {
  ThreadPool pool(4);
  std::atomic<int> sum{0};
  const auto lane = [&](int i) { sum += i; };
  for (int job = 0; job < 3000; ++job) pool.parallel_for(4, lane);
  EXPECT_EQ(sum, 3000 * 6);
}

TEST(ThreadPool, WakesAfterARest) {
  ThreadPool pool(2);
  for (int job = 0; job < 5; ++job) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    expect_every_lane_once(pool);
  }
}

TEST(ThreadPool, MayBeCalledFromWithinALane) {
  ThreadPool pool(3);
  std::atomic<int> count{0};
  const auto inner = [&](int) { ++count; };
  const auto outer = [&](int) { pool.parallel_for(5, inner); };
  pool.parallel_for(7, outer);
  EXPECT_EQ(count, 35);
}

TEST(ThreadPool, MayBeCalledFromSeveralThreadsAtOnce) {
  ThreadPool pool(3);
  std::atomic<int> count{0};
  const auto lane = [&](int) { ++count; };
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&] {
      for (int job = 0; job < 200; ++job) pool.parallel_for(6, lane);
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(count, 4 * 200 * 6);
}

TEST(ThreadPool, RefusesFewerThanOneThread) {
  expect_error([] { ThreadPool pool(0); }, {"[attn::ThreadPool]", "at least 1", "got 0"});
  expect_error([] { ThreadPool pool(-3); }, {"[attn::ThreadPool]", "got -3"});
}

TEST(EigenExecutor, RunsEveryLaneOnceOnACallersPool) {
  Eigen::ThreadPool threads(3);
  attn::EigenExecutor executor(threads);
  EXPECT_EQ(executor.concurrency(), 3);
  expect_every_lane_once(executor);
}

TEST(EigenExecutor, MayBeCalledFromWithinThePool) {
  Eigen::ThreadPool threads(2);
  attn::EigenExecutor executor(threads);
  std::atomic<int> count{0};
  const auto inner = [&](int) { ++count; };
  const auto outer = [&](int) { executor.parallel_for(5, inner); };
  executor.parallel_for(7, outer);
  EXPECT_EQ(count, 35);
}

TEST(UsersExecutor, RunsEveryLaneOnce) {
  Backwards backwards;
  NewThreads fresh;
  EXPECT_EQ(backwards.concurrency(), 3);
  for (const int count : {0, 1, 5}) {
    std::atomic<int> ran{0};
    const auto lane = [&](int) { ++ran; };
    fresh.parallel_for(count, lane);
    EXPECT_EQ(ran, count);
  }
  expect_every_lane_once(backwards);
}

// ---- Lanes that throw ----

/// Eigen's pool, but every second call of Schedule throws, as where memory has run out.
class RefusingPool final : public Eigen::ThreadPoolInterface {
 public:
  void Schedule(std::function<void()> task) override {
    if (++calls_ % 2 == 0) throw std::bad_alloc();
    pool_.Schedule(std::move(task));
  }
  [[nodiscard]] int NumThreads() const override { return pool_.NumThreads(); }
  [[nodiscard]] int CurrentThreadId() const override { return pool_.CurrentThreadId(); }

 private:
  Eigen::ThreadPool pool_{3};
  std::atomic<int> calls_{0};
};

/// Calls check(executor) for each kind that attn has.
template <class Check>
void on_each_kind(const Check& check) {
  SerialExecutor serial;
  ThreadPool one(1), three(3);
  Eigen::ThreadPool threads(3);
  attn::EigenExecutor eigen(threads);
  RefusingPool refusing_threads;
  attn::EigenExecutor refusing(refusing_threads);
  const std::pair<const char*, Executor*> kinds[] = {{"SerialExecutor", &serial},
                                                     {"ThreadPool of one", &one},
                                                     {"ThreadPool of three", &three},
                                                     {"EigenExecutor", &eigen},
                                                     {"EigenExecutor whose pool refuses", &refusing},
                                                     {"default_executor", &attn::default_executor()}};
  for (const auto& [name, executor] : kinds) {
    SCOPED_TRACE(name);
    check(*executor);
  }
}

/// Every lane of `count` runs, though those throw that `throws` names, and one of their exceptions arrives.
template <class Throws>
void expect_all_run_and_one_arrives(Executor& executor, int count, const Throws& throws) {
  std::vector<std::atomic<int>> times(static_cast<std::size_t>(count));
  const auto lane = [&](int i) {
    ++times[static_cast<std::size_t>(i)];
    if (throws(i)) throw std::runtime_error(std::to_string(i));
  };
  try {
    executor.parallel_for(count, lane);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_TRUE(throws(std::stoi(error.what())));
  }
  for (const auto& n : times) EXPECT_EQ(n.load(), 1);
}

TEST(EachExecutor, ThrowsOnceAllLanesHaveRun) {
  on_each_kind([](Executor& executor) {
    for (const int count : {1, 2, 3, 4, 50})
      for (const int bad : {0, count / 2, count - 1}) {
        expect_all_run_and_one_arrives(executor, count, [=](int i) { return i == bad; });
        expect_every_lane_once(executor);  // it works as before
      }
  });
}

TEST(EachExecutor, PassesOnOneOfManyExceptions) {
  on_each_kind([](Executor& executor) {
    for (int repeat = 0; repeat < 20; ++repeat)
      expect_all_run_and_one_arrives(executor, 50, [](int i) { return i % 3 == 1; });
    expect_all_run_and_one_arrives(executor, 50, [](int) { return true; });
  });
}

TEST(EachExecutor, PassesExceptionsThroughNestedCalls) {
  on_each_kind([](Executor& executor) {
    std::atomic<int> ran{0};
    const auto inner = [&](int i) {
      ++ran;
      if (i == 2) throw std::logic_error("inner");
    };
    const auto outer = [&](int) { executor.parallel_for(5, inner); };
    EXPECT_THROW(executor.parallel_for(7, outer), std::logic_error);
    EXPECT_EQ(ran, 35);
    expect_every_lane_once(executor);
  });
}

TEST(EachExecutor, PassesExceptionsToTheirOwnCallers) {
  on_each_kind([](Executor& executor) {
    std::atomic<int> strangers{0};
    std::vector<std::thread> callers;
    for (int self = 0; self < 4; ++self)
      callers.emplace_back([&, self] {
        const auto lane = [&](int i) {
          if (i == 3) throw self;
        };
        for (int job = 0; job < 50; ++job) {
          try {
            executor.parallel_for(6, lane);
            ++strangers;
          } catch (int caller) {
            strangers += caller == self ? 0 : 1;
          }
        }
      });
    for (std::thread& caller : callers) caller.join();
    EXPECT_EQ(strangers, 0);
  });
}

/// Whether `count` lanes of the executor are all on their way at once, within ten seconds.
bool runs_at_once(Executor& executor, int count) {
  std::atomic<int> inside{0};
  const auto lane = [&](int) {
    ++inside;
    for (int i = 0; i < 10000 && inside < count; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  const auto start = std::chrono::steady_clock::now();
  executor.parallel_for(count, lane);
  return std::chrono::steady_clock::now() - start < std::chrono::seconds(9);
}

TEST(ThreadPool, StaysParallelAfterALaneHasThrown) {
  ThreadPool pool(3);
  for (const int bad : {0, 1, 2}) {
    expect_all_run_and_one_arrives(pool, 3, [=](int i) { return i == bad; });
    EXPECT_TRUE(runs_at_once(pool, 3));
  }
}

TEST(EigenExecutor, RunsOnTheCallerWhatScheduleRefuses) {
  RefusingPool threads;
  attn::EigenExecutor executor(threads);
  expect_every_lane_once(executor);
  const auto module = attn::Softmax<float>();
  const auto x = random_tensor<float, 2>({512, 512}, 1);
  SerialExecutor serial;
  const auto on = [&](Executor& chosen) {
    const UseExecutor use(chosen);
    return module(x);
  };
  EXPECT_TRUE(same_bits(on(executor), on(serial)));
}

// ---- Which executor a call runs on ----

TEST(UseExecutor, HoldsForItsScopeAndNests) {
  SerialExecutor a, b;
  Executor& before = attn::current_executor();
  {
    const UseExecutor use_a(a);
    EXPECT_EQ(&attn::current_executor(), &a);
    {
      const UseExecutor use_b(b);
      EXPECT_EQ(&attn::current_executor(), &b);
    }
    EXPECT_EQ(&attn::current_executor(), &a);
  }
  EXPECT_EQ(&attn::current_executor(), &before);
}

TEST(UseExecutor, HoldsForItsThreadAlone) {
  SerialExecutor serial;
  const UseExecutor use(serial);
  Executor* elsewhere = nullptr;
  std::thread([&] { elsewhere = &attn::current_executor(); }).join();
  EXPECT_EQ(elsewhere, &attn::default_executor());
}

TEST(UseExecutor, RunsTheThreadsCalls) {
  struct Counting final : Executor {
    Counting() : Executor(2) {}
    void parallel_for(int count, LaneFunction lane) override {
      ++calls;
      for (int i = 0; i < count; ++i) lane(i);
    }
    int calls = 0;
  } counting;
  const UseExecutor use(counting);
  (void)attn::Softmax<float>()(random_tensor<float, 2>({512, 512}, 1));
  EXPECT_GE(counting.calls, 1);
}

// ---- The convention: the number of threads does not change a bit ----

/// result(executor) is the same on every kind of executor.
template <class Result>
void expect_same_on_all(const Result& result) {
  const auto on = [&](Executor& executor) {
    const UseExecutor use(executor);
    return result();
  };
  SerialExecutor serial;
  ThreadPool two(2), three(3), seven(7);
  Eigen::ThreadPool threads(3);
  attn::EigenExecutor eigen(threads);
  Backwards backwards;
  NewThreads fresh;
  const auto expected = on(serial);
  for (Executor* executor : std::initializer_list<Executor*>{&two, &three, &seven, &eigen, &backwards, &fresh})
    EXPECT_TRUE(same_bits(on(*executor), expected)) << executor->concurrency() << " lanes";
}

attn::LlamaAttention<float> training_module() {  // with both dropouts
  return attn::LlamaAttention<float>(attn::LlamaAttentionConfig{.hidden_size = 96,
                                                                .num_attention_heads = 6,
                                                                .num_key_value_heads = 2,
                                                                .attention_dropout = 0.2,
                                                                .projection_dropout = 0.2,
                                                                .rotary = attn::RotaryConfig{},
                                                                .seed = 1});
}

TEST(ThreadCount, DoesNotChangeABitOfAModule) {
  const auto module = training_module();
  const auto x = random_tensor<float, 3>({2, 277, 96}, 1);
  expect_same_on_all(
      [&] { return attn::LlamaAttention<float>(module).forward(x, attn::Causal{}); });  // each its first call
}

// With few heads and many keys, threads share the keys of a head.
TEST(ThreadCount, DoesNotChangeABitOfDecoding) {
  const auto module = training_module();
  auto cache = module.make_cache(1, 5001);
  cache.append(random_tensor<float, 4>({1, 2, 5000, 16}, 1), random_tensor<float, 4>({1, 2, 5000, 16}, 2));
  const auto token = random_tensor<float, 3>({1, 1, 96}, 3);
  expect_same_on_all([&] {
    auto own = cache;
    return attn::LlamaAttention<float>(module).forward(token, attn::Causal{}, own);
  });
}

}  // namespace
