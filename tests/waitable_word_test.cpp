// The words that threads wait on, as they are where the standard library has no futex. The other kind runs in every test.
#define ATTN_WAIT_ON_CONDITION
#include <attn/thread_pool.hpp>

#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#if __has_include(<Eigen/ThreadPool>)  // Eigen 5
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

namespace {

using attn::ThreadPool;
using attn::detail::WaitableWord;

static_assert(!std::is_same_v<WaitableWord, std::atomic<std::uint64_t>>, "this program tries the other kind");

TEST(WaitableWord, WaitsUntilItHasAnotherValue) {
  WaitableWord word(3);
  word.wait(4);  // at once
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    word = 4;
    word.notify_all();
  });
  word.wait(3);
  EXPECT_EQ(word.load(), 4U);
  other.join();
}

TEST(WaitableWord, WakesAllWaitingThreads) {
  WaitableWord word(0), arrived(0);
  std::vector<std::thread> waiting;
  for (int i = 0; i < 5; ++i)
    waiting.emplace_back([&] {
      ++arrived;
      word.wait(0);
    });
  while (arrived.load() < 5) std::this_thread::yield();
  word = 1;
  word.notify_all();
  for (std::thread& thread : waiting) thread.join();
}

TEST(WaitableWord, MayBeDestroyedOnceNoThreadWaits) {
  for (int round = 0; round < 2000; ++round) {
    auto word = std::make_unique<WaitableWord>(0);
    std::thread other([&there = *word] {
      there = 1;
      there.notify_all();
    });
    while (word->load() == 0) word->wait(0);
    word.reset();  // the other thread may still be notifying
    other.join();
  }
}

TEST(WaitableWord, LetsTwoThreadsTakeTurns) {
  WaitableWord word(0);
  const auto play = [&](std::uint64_t mine) {
    for (std::uint64_t turn = mine; turn < 5000; turn += 2) {
      for (std::uint64_t now = word.load(); now != turn; now = word.load()) word.wait(now);
      word = turn + 1;
      word.notify_all();
    }
  };
  std::thread other(play, 1);
  play(0);
  other.join();
  EXPECT_EQ(word.load(), 5000U);
}

TEST(WaitableWord, WakesAPoolAfterRests) {
  ThreadPool pool(4);
  std::atomic<int> sum{0};
  const auto lane = [&](int i) { sum += i; };
  for (int rest = 0; rest < 200; ++rest) {
    for (int job = 0; job < 20; ++job) pool.parallel_for(6, lane);
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  EXPECT_EQ(sum, 200 * 20 * 15);
}

TEST(WaitableWord, LetsAnEigenExecutorWaitForAllLanes) {
  Eigen::ThreadPool threads(3);
  attn::EigenExecutor executor(threads);
  for (int job = 0; job < 2000; ++job) {
    std::atomic<int> sum{0};
    const auto lane = [&](int i) { sum += i; };
    executor.parallel_for(6, lane);
    ASSERT_EQ(sum, 15);
  }
}

}  // namespace
