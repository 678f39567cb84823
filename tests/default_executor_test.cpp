// The shared pool: the environment, systems that grant few threads, processes that exit or fork. The children must find it
// not yet started.
#include "child_process.hpp"
#include "executor_support.hpp"

#if defined(ATTN_TEST_CAN_FORK)
#include <sys/mman.h>
#include <sys/resource.h>
#endif

namespace {

using attn::Executor;
using attn::ThreadPool;
using attn_test::expect_every_lane_once;

#if defined(ATTN_TEST_CAN_FORK)
using attn_test::in_a_child;

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

/// Leaves 100 MB of addresses to this process: enough for a dozen stacks of threads. Returns whether the limit holds, which
/// emulators do not enforce.
bool limit_memory() {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  if (!can_limit_memory || !(statm >> pages)) return false;
  const rlim_t bytes = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + 100'000'000;
  const rlimit limit{bytes, bytes};
  if (setrlimit(RLIMIT_AS, &limit) != 0) return false;
  constexpr std::size_t too_much = 200'000'000;
  void* const memory = mmap(nullptr, too_much, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return true;
  munmap(memory, too_much);
  return false;
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

}  // namespace
