// Floor 3. Where threads come from.
//
// Every attn function runs on the calling thread's current executor: the shared pool, unless a `UseExecutor` in scope
// says otherwise. Results do not depend on it by a bit: work is cut into tasks by shape alone, and every task is
// computed in the same order whoever runs it.
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "error.hpp"
#include "float_environment.hpp"
#include "waitable_word.hpp"

namespace Eigen {
class ThreadPoolInterface;  // whoever has a pool has included it; all others need not
}

namespace attn {

/// A reference to a callable, to be called while the callable lives. Copying it allocates nothing.
template <class... Args>
class FunctionRef {
 public:
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, FunctionRef>)
      FunctionRef(const F& function)  // NOLINT: lambdas convert to it
      : object_(&function),
        call_([](const void* object, Args... args) { (*static_cast<const F*>(object))(args...); }) {}

  void operator()(Args... args) const { call_(object_, args...); }

 private:
  const void* object_;
  void (*call_)(const void*, Args...);
};

/// What an executor runs: lane(i) for every i below a count.
using LaneFunction = FunctionRef<int>;

/// A source of threads. A user's own derives from it: the constructor says how many lanes are worth having (at least
/// 1), `parallel_for` runs lane(0) ... lane(count - 1), at the same time or not, and returns when all have ended.
/// Conventions: every lane runs, also after one has thrown; the first exception then reaches the caller. No lane may run
/// any more, or begin, once parallel_for has returned or thrown: lanes refer to the caller's variables.
/// The lanes of attn's own calls do not throw, so that a user's own executor need not catch.
class Executor {
 public:
  explicit Executor(int concurrency) : concurrency_(std::max(1, concurrency)) {}
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor() = default;

  virtual void parallel_for(int count, LaneFunction lane) = 0;
  [[nodiscard]] int concurrency() const { return concurrency_; }

 protected:
  /// For a constructor that learns only in its body how many lanes are worth having.
  void set_concurrency(int concurrency) { concurrency_ = std::max(1, concurrency); }

 private:
  int concurrency_;
};

namespace detail {

/// Keeps the first exception of several lanes, until all have ended.
class FirstError {
 public:
  /// Calls the function and says whether it returned; keeps what it throws, unless another one was first.
  template <class Function>
  bool guard(const Function& function) noexcept {
    try {
      function();
      return true;
    } catch (...) {
      if (!failed_.test_and_set()) error_ = std::current_exception();
      return false;
    }
  }
  /// Throws what was kept, if anything. All lanes must have ended.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic_flag failed_;
  std::exception_ptr error_;
};

/// Runs all lanes on the calling thread.
inline void run_in_order(int count, LaneFunction lane) {
  FirstError error;
  for (int i = 0; i < count; ++i) error.guard([&] { lane(i); });
  error.rethrow();
}

}  // namespace detail

/// Runs everything on the calling thread.
class SerialExecutor final : public Executor {
 public:
  SerialExecutor() : Executor(1) {}
  void parallel_for(int count, LaneFunction lane) override { detail::run_in_order(count, lane); }
};

/// A pool of threads - 1 threads beside the calling one, or as many as the system grants: `concurrency` says how many.
/// Threads that wait spin for a short while first, since layers follow each other within microseconds. Calls from several
/// threads at once, or from within a lane, are safe: those that find the pool busy run on their own thread. So do those of
/// a forked child, which has none of the pool's threads.
class ThreadPool final : public Executor {
 public:
  /// Errors: fewer than one thread.
  [[gnu::cold]] explicit ThreadPool(int threads) : Executor(1) {
    detail::require(threads >= 1, "ThreadPool", "threads, expected at least 1, got ", threads);
    try {
      while (concurrency() < threads) {
        threads_.emplace_back([this] { work(); });
        set_concurrency(concurrency() + 1);
      }
    } catch (...) {  // The system refuses one more: these will do.
    }
  }
  ~ThreadPool() override { stop(); }

  void parallel_for(int count, LaneFunction lane) override {
    if (count <= 1 || concurrency() == 1 || taken_.test_and_set(std::memory_order_acquire)) {
      detail::run_in_order(count, lane);
      return;
    }
    detail::FirstError error;
    const Job job{lane, error};
    job_ = &job;
    left_ = static_cast<std::uint64_t>(count);
    ticket_ = ticket(static_cast<std::uint32_t>(ticket_.load() >> 32) + 1, static_cast<std::uint32_t>(count));
    ticket_.notify_all();
    while (run_one_lane()) {
    }
    for (std::uint64_t left = left_.load(); left != 0; left = left_.load())
      if (!spin([&] { return left_.load(std::memory_order_relaxed) == 0; })) left_.wait(left);
    taken_.clear(std::memory_order_release);
    error.rethrow();
  }

 private:
  friend Executor& default_executor();

  // Ends the threads once they have finished their lanes; from then on, calls run on their own thread.
  [[gnu::cold]] void stop() {
    stop_.test_and_set();
    ticket_ += ticket(1, 0);  // a job that another thread has under way keeps its lanes
    ticket_.notify_all();
    for (std::thread& thread : threads_) {
      if (!in_own_process())
        ::new (static_cast<void*>(&thread)) std::thread;  // forgets an id that a thread of the child may have by now
      else if (thread.get_id() == std::this_thread::get_id())
        thread.detach();  // its lane has called exit()
      else
        thread.join();
    }
    std::vector<std::thread>().swap(threads_);
  }

  struct Job {
    LaneFunction lane;
    detail::FirstError& error;
  };

  // A ticket is one word, the number of the job and how many of its lanes are not yet taken: a thread that takes a lane
  // knows that its job still waits for it, and one that comes late takes nothing and touches nothing.
  static std::uint64_t ticket(std::uint32_t job, std::uint32_t lanes) { return std::uint64_t{job} << 32 | lanes; }

  bool run_one_lane() {
    std::uint64_t now = ticket_.load();
    do {
      if (static_cast<std::uint32_t>(now) == 0) return false;
    } while (!ticket_.compare_exchange_weak(now, now - 1));
    job_->error.guard([&] { job_->lane(static_cast<int>(static_cast<std::uint32_t>(now)) - 1); });
    if (left_.fetch_sub(1) == 1) left_.notify_all();
    return true;
  }
  void work() {
    while (!stop_.test()) {
      if (run_one_lane()) continue;
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

  std::vector<std::thread> threads_;
  std::atomic_flag taken_;  // not a mutex: a lane's own call may find it taken by its own thread
  const Job* job_ = nullptr;
  detail::WaitableWord ticket_{0};
  detail::WaitableWord left_{0};  // as wide as the ticket, so that waiting is compiled once
  std::atomic_flag stop_;
};

/// Runs on an Eigen thread pool that the caller owns. The calling thread works too, also on what the pool's `Schedule`
/// refuses by throwing.
class EigenExecutor final : public Executor {
 public:
  template <std::derived_from<Eigen::ThreadPoolInterface> Pool>  // a template, so that only its users compile it
  explicit EigenExecutor(Pool& pool) : Executor(pool.NumThreads()), pool_(&pool), run_(&run<Pool>) {}

  void parallel_for(int count, LaneFunction lane) override { run_(*pool_, count, lane); }

 private:
  template <class Pool>
  static void run(Eigen::ThreadPoolInterface& given, int count, LaneFunction lane) {
    auto& pool = static_cast<Pool&>(given);
    if (count <= 1 || pool.CurrentThreadId() >= 0) {  // from within the pool, waiting for it could wait forever
      detail::run_in_order(count, lane);
      return;
    }
    detail::FirstError error;
    detail::WaitableWord left(static_cast<std::uint64_t>(count));
    const auto run_lane = [&error, &left, lane](int i) {
      error.guard([&] { lane(i); });
      if (left.fetch_sub(1) == 1) left.notify_all();
    };
    for (int i = 1; i < count; ++i) {  // a copy of run_lane each, which outlives this call
      try {
        pool.Schedule([run_lane, i] { run_lane(i); });
      } catch (...) {
        run_lane(i);
      }
    }
    run_lane(0);
    for (std::uint64_t now = left.load(); now != 0; now = left.load()) left.wait(now);
    error.rethrow();
  }

  Eigen::ThreadPoolInterface* pool_;
  void (*run_)(Eigen::ThreadPoolInterface&, int, LaneFunction);
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
inline Executor& default_executor() {
  struct Stop {  // when static objects are destroyed; the pool itself never is
    ThreadPool* pool;
    ~Stop() { pool->stop(); }
  };
  alignas(ThreadPool) static std::byte room[sizeof(ThreadPool)];
  static const Stop stop{::new (static_cast<void*>(room)) ThreadPool(detail::default_threads())};
  return *stop.pool;
}

namespace detail {
inline Executor*& chosen_executor() {
  thread_local Executor* chosen = nullptr;
  return chosen;
}
}  // namespace detail

/// The executor that attn calls of this thread run on.
inline Executor& current_executor() {
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

/// How many lanes `tasks` tasks of `work` multiplications in all are worth. A lane pays from some 10^5 of them on: a few
/// microseconds, against about one to reach a thread that waits.
inline int lanes(Index tasks, double work) {
  const Index worth = static_cast<Index>(std::min(work / 1e5, 1e6)) + 1;
  return static_cast<int>(std::min(std::min(tasks, worth), Index{current_executor().concurrency()}));
}

/// Runs task(i, lane) for every i below `tasks`, lane < lanes: a lane runs one task after the other, so it may own
/// scratch memory. Lanes take tasks from one counter, in order: put the costly ones first. All compute in the caller's
/// floating-point environment. An exception of a task reaches the caller after all lanes have stopped.
inline void for_each_task(Index tasks, int lanes, FunctionRef<Index, int> task) {
  if (lanes <= 1) {
    for (Index i = 0; i < tasks; ++i) task(i, 0);
    return;
  }
  std::atomic<Index> next{0};
  FirstError error;
  const FloatEnvironment environment = FloatEnvironment::current();
  const auto lane = [&](int self) {
    const UseFloatEnvironment use(environment);
    const bool done = error.guard([&] {
      for (Index i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) task(i, self);
    });
    if (!done) next = tasks;
  };
  current_executor().parallel_for(lanes, lane);
  error.rethrow();
}

}  // namespace detail

}  // namespace attn
