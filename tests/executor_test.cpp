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

#if __has_include(<sys/wait.h>) && __has_include(<unistd.h>)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#define ATTN_TEST_CAN_FORK 1
#endif

namespace {

using attn::Executor;
using attn::Index;
using attn::LaneFunction;
using attn::SerialExecutor;
using attn::Tensor;
using attn::ThreadPool;
using attn::UseExecutor;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;

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
void expect_every_lane_once(Executor& executor) {
  for (const int count : {0, 1, 2, 3, 4, 7, 64, 1000}) {
    std::vector<std::atomic<int>> times(static_cast<std::size_t>(count));
    const auto lane = [&](int i) { ++times[static_cast<std::size_t>(i)]; };
    executor.parallel_for(count, lane);
    for (const auto& n : times) ASSERT_EQ(n.load(), 1) << count << " lanes";
  }
}

// ---- The default pool. First in this file: the children must find it not yet started. ----

#ifdef ATTN_TEST_CAN_FORK
/// The text that `speak` returns, or the text of the error it throws, in a process of its own. Empty if that process crashes.
template <class Speak>
std::string in_a_child(const Speak& speak) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    std::string text;
    try {
      text = speak();
    } catch (const attn::Error& error) {
      text = error.what();
    }
    const auto written = write(ends[1], text.data(), text.size());
    _exit(written == static_cast<ssize_t>(text.size()) ? 0 : 1);
  }
  close(ends[1]);
  std::string text(1000, '\0');
  const auto length = read(ends[0], text.data(), text.size());
  close(ends[0]);
  waitpid(child, nullptr, 0);
  text.resize(static_cast<std::size_t>(std::max<ssize_t>(length, 0)));
  return text;
}

/// What default_executor() makes of ATTN_NUM_THREADS in a fresh process: its concurrency, or the error.
std::string default_executor_with(const char* value) {
  return in_a_child([&] {
    value != nullptr ? setenv("ATTN_NUM_THREADS", value, 1) : unsetenv("ATTN_NUM_THREADS");
    return std::to_string(attn::default_executor().concurrency());
  });
}

TEST(DefaultExecutor, HasAsManyThreadsAsTheEnvironmentSays) {
  EXPECT_EQ(default_executor_with("1"), "1");
  EXPECT_EQ(default_executor_with("3"), "3");
  const std::string all = std::to_string(std::max(1U, std::thread::hardware_concurrency()));
  EXPECT_EQ(default_executor_with(nullptr), all);
  EXPECT_EQ(default_executor_with(""), all);
}

TEST(DefaultExecutor, RefusesAThreadCountThatIsNotPositive) {
  for (const char* value : {"0", "-2", "two", "3x", " 3", "2.5", "99999999999999999999"})
    EXPECT_TRUE(attn_test::reads(default_executor_with(value),
                                 {"[attn::default_executor] ATTN_NUM_THREADS", "positive", "got ", value}));
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool can_limit_memory = false;  // sanitizers reserve terabytes
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool can_limit_memory = false;
#else
constexpr bool can_limit_memory = true;
#endif
#else
constexpr bool can_limit_memory = true;
#endif

/// Leaves 100 MB of addresses to this process: enough for a dozen stacks of threads.
bool limit_memory() {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  if (!can_limit_memory || !(statm >> pages)) return false;
  const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + 100'000'000;
  const rlimit limit{bytes, bytes};
  return setrlimit(RLIMIT_AS, &limit) == 0;
}

/// How many of 200 threads executor() has in a process where the system refuses most, once all lanes have run on it.
template <class GetExecutor>
int concurrency_where_threads_are_refused(const GetExecutor& executor) {
  const std::string text = in_a_child([&]() -> std::string {
    if (!limit_memory()) return "no limit";
    Executor& limited = executor();
    expect_every_lane_once(limited);
    return std::to_string(testing::Test::HasFailure() ? -1 : limited.concurrency());
  });
  return text == "no limit" ? 0 : text.empty() ? -2 : std::stoi(text);
}

TEST(ThreadPool, KeepsTheThreadsThatTheSystemGrants) {
  const int threads = concurrency_where_threads_are_refused([]() -> Executor& {
    static ThreadPool pool(200);
    return pool;
  });
  if (threads == 0) GTEST_SKIP() << "memory cannot be limited here";
  EXPECT_GE(threads, 2);
  EXPECT_LT(threads, 200);
}

TEST(DefaultExecutor, KeepsTheThreadsThatTheSystemGrants) {
  const int threads = concurrency_where_threads_are_refused([]() -> Executor& {
    setenv("ATTN_NUM_THREADS", "200", 1);
    return attn::default_executor();
  });
  if (threads == 0) GTEST_SKIP() << "memory cannot be limited here";
  EXPECT_GE(threads, 2);
  EXPECT_LT(threads, 200);
}

/// What a process of its own gives to exit() in `run`; 0 if run returns, -1 if it crashes or takes a minute.
template <class Run>
int exit_code_of(const Run& run) {
  std::fflush(stdout);  // or the child would print it once more
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    run();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(DefaultExecutor, AnyLaneMayExitTheProcess) {
  for (const int bad : {0, 1, 2, 3}) {
    const auto run = [&] {
      setenv("ATTN_NUM_THREADS", "4", 1);
      const attn::Workspace::Frame frame;
      char* const scratch = frame.take<char>(4000);
      std::atomic<int> inside{0};
      const auto lane = [&](int i) {
        for (++inside; inside < 4;) std::this_thread::yield();  // all four threads are in a lane
        if (i == bad) std::exit(42);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        std::memset(scratch + 1000 * i, i, 1000);  // the caller's memory is still there
      };
      attn::default_executor().parallel_for(4, lane);
    };
    EXPECT_EQ(exit_code_of(run), 42);
  }
}

TEST(DefaultExecutor, AForkedProcessComputesAndExits) {
  expect_every_lane_once(attn::default_executor());  // its threads run, but not in the child
  const auto run = [] {
    expect_every_lane_once(attn::default_executor());
    std::exit(testing::Test::HasFailure() ? 1 : 42);
  };
  EXPECT_EQ(exit_code_of(run), 42);
}
#endif

TEST(DefaultExecutor, IsOneForAll) {
  EXPECT_EQ(&attn::default_executor(), &attn::default_executor());
  EXPECT_EQ(&attn::current_executor(), &attn::default_executor());
  expect_every_lane_once(attn::default_executor());
}

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

// ---- Tasks ----

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
