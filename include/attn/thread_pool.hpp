// Floor 1. attn's own threads: a pool, and the one that all calls share unless told otherwise.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <forward_list>
#include <new>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "error.hpp"
#include "executor.hpp"
#include "waitable_word.hpp"

namespace attn {

/// A pool of threads - 1 threads beside the calling one, or as many as the system grants: `concurrency` says how many.
/// Threads that wait spin for a short while first, since layers follow each other within microseconds. Calls from several
/// threads at once, or from within a worker, are safe: those that find the pool busy run on their own thread. So do those of
/// a forked child, which has none of the pool's threads.
class ThreadPool final : public Executor {
 public:
  /// Errors: fewer than one thread.
  [[gnu::cold]] explicit ThreadPool(int threads) : Executor(1) {
    detail::require(threads >= 1, "ThreadPool", "threads, expected at least 1, got ", threads);
    try {
      while (concurrency() < threads) {
        threads_.emplace_front([this] { work(); });
        set_concurrency(concurrency() + 1);
      }
    } catch (...) {  // The system refuses one more: these will do.
    }
  }
  ~ThreadPool() override { stop(); }

  void parallel_for(int count, WorkerFunction worker) override {
    if (count <= 1 || concurrency() == 1 || taken_.test_and_set(std::memory_order_acquire)) {
      detail::run_in_order(count, worker);
      return;
    }
    detail::FirstError error;
    const Job job{worker, error};
    job_ = &job;
    left_ = static_cast<std::uint64_t>(count);
    ticket_ = ticket(static_cast<std::uint32_t>(ticket_.load() >> 32) + 1, static_cast<std::uint32_t>(count));
    ticket_.notify_all();
    while (run_one_worker()) {
    }
    for (std::uint64_t left = left_.load(); left != 0; left = left_.load())
      if (!spin([&] { return left_.load(std::memory_order_relaxed) == 0; })) left_.wait(left);
    taken_.clear(std::memory_order_release);
    error.rethrow();
  }

 private:
  friend Executor& default_executor();

  // Ends the threads once they have finished their workers; from then on, calls run on their own thread.
  [[gnu::cold]] void stop() {
    stop_.test_and_set();
    ticket_ += ticket(1, 0);  // a job that another thread has under way keeps its workers
    ticket_.notify_all();
    for (std::thread& thread : threads_) {
      if (!in_own_process())
        ::new (static_cast<void*>(&thread)) std::thread;  // forgets an id that a thread of the child may have by now
      else if (thread.get_id() == std::this_thread::get_id())
        thread.detach();  // its worker has called exit()
      else
        thread.join();
    }
    threads_.clear();
  }

  struct Job {
    WorkerFunction worker;
    detail::FirstError& error;
  };

  // A ticket is one atomic word: the job's number (high half) and how many of its workers are not yet taken (low half). A
  // successful decrement claims a worker of a job that is still waiting; a late thread sees zero and leaves.
  static std::uint64_t ticket(std::uint32_t job, std::uint32_t workers) { return std::uint64_t{job} << 32 | workers; }

  bool run_one_worker() {
    std::uint64_t now = ticket_.load();
    do {
      if (static_cast<std::uint32_t>(now) == 0) return false;
    } while (!ticket_.compare_exchange_weak(now, now - 1));
    job_->error.guard([&] { job_->worker(static_cast<int>(static_cast<std::uint32_t>(now)) - 1); });
    if (left_.fetch_sub(1) == 1) left_.notify_all();
    return true;
  }
  void work() {
    while (!stop_.test()) {
      if (run_one_worker()) continue;
      const std::uint64_t now = ticket_.load();
      if (static_cast<std::uint32_t>(now) != 0 || stop_.test()) continue;
      if (!spin([&] { return ticket_.load(std::memory_order_relaxed) != now; })) ticket_.wait(now);
    }
  }
  template <class Done>
  static bool spin(Done done) {  // some 20 us on current machines
    for (int i = 0; i < 500; ++i) {
      if (done()) return true;
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#endif
    }
    return false;
  }

#if defined(__unix__) || defined(__APPLE__)
  // A child that was forked has the pool, but none of its threads.
  [[nodiscard]] bool in_own_process() const { return process_ == ::getpid(); }
  const decltype(::getpid()) process_ = ::getpid();
#else
  [[nodiscard]] static bool in_own_process() { return true; }
#endif

  std::forward_list<std::thread> threads_;
  std::atomic_flag taken_;  // not a mutex: a call from within a worker may find it taken by its own thread
  const Job* job_ = nullptr;
  detail::WaitableWord ticket_{0};
  detail::WaitableWord left_{0};  // as wide as the ticket, so that waiting is compiled once
  std::atomic_flag stop_;
};

namespace detail {
/// How many threads ATTN_NUM_THREADS asks for, or as many as the machine has.
[[gnu::cold]] inline int default_threads() {
  const char* text = std::getenv("ATTN_NUM_THREADS");
  if (text == nullptr || *text == '\0') return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  require(*text >= '0' && *text <= '9' && *end == '\0' && threads >= 1 && threads <= 0x7FFFFFFF, "default_executor",
          "ATTN_NUM_THREADS, expected a positive number, got ", text);
  return static_cast<int>(threads);
}
}  // namespace detail

/// The shared pool, started at first use with as many threads as ATTN_NUM_THREADS says, or as the machine has.
/// It is there for as long as the program runs. Its threads end while static objects are destroyed; destructors that
/// come later compute on their own thread.
/// Errors: ATTN_NUM_THREADS set to something that is not a positive number.
[[gnu::noinline]] inline Executor& default_executor() {
  struct Stop {  // when static objects are destroyed; the pool itself never is
    ThreadPool* pool;
    ~Stop() { pool->stop(); }
  };
  alignas(ThreadPool) static std::byte room[sizeof(ThreadPool)];
  static const Stop stop{::new (static_cast<void*>(room)) ThreadPool(detail::default_threads())};
  return *stop.pool;
}

}  // namespace attn
