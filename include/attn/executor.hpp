// Floor 1. Where threads come from: the interface of executors, and the two that start no thread of their own.
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstdint>
#include <exception>
#include <type_traits>
#include <utility>

#include "error.hpp"
#include "waitable_word.hpp"

namespace Eigen {
class ThreadPoolInterface;  // only programs that have such a pool need its header
}

namespace attn {

namespace detail {

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

}  // namespace detail

/// What an executor runs: worker(i) for every i below a count.
using WorkerFunction = detail::FunctionRef<int>;
using LaneFunction = WorkerFunction;  ///< the older name

/// A source of threads. A user's own derives from it: the constructor says how many workers are worth having (at least
/// 1), `parallel_for` runs worker(0) ... worker(count - 1), at the same time or not, and returns when all have ended.
/// Conventions: every worker runs, also after one has thrown; the first exception then reaches the caller. No worker may run
/// any more, or begin, once parallel_for has returned or thrown: workers refer to the caller's variables.
/// The workers of attn's own calls do not throw, so that a user's own executor need not catch.
class Executor {
 public:
  explicit Executor(int concurrency) : concurrency_(std::max(1, concurrency)) {}
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  virtual ~Executor() = default;

  virtual void parallel_for(int count, WorkerFunction worker) = 0;
  [[nodiscard]] int concurrency() const { return concurrency_; }

 protected:
  /// For a constructor that learns only in its body how many workers are worth having.
  void set_concurrency(int concurrency) { concurrency_ = std::max(1, concurrency); }

 private:
  int concurrency_;
};

namespace detail {

/// Keeps the first exception of several workers, until all have ended.
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
  /// Throws what was kept, if anything. All workers must have ended.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::atomic_flag failed_;
  std::exception_ptr error_;
};

/// Runs all workers on the calling thread.
inline void run_in_order(int count, WorkerFunction worker) {
  FirstError error;
  for (int i = 0; i < count; ++i) error.guard([&] { worker(i); });
  error.rethrow();
}

}  // namespace detail

/// Runs everything on the calling thread.
class SerialExecutor final : public Executor {
 public:
  SerialExecutor() : Executor(1) {}
  void parallel_for(int count, WorkerFunction worker) override { detail::run_in_order(count, worker); }
};

/// Runs on an Eigen thread pool that the caller owns. The calling thread works too, also on what the pool's `Schedule`
/// refuses by throwing.
class EigenExecutor final : public Executor {
 public:
  template <std::derived_from<Eigen::ThreadPoolInterface> Pool>  // a template, so that only its users compile it
  explicit EigenExecutor(Pool& pool) : Executor(pool.NumThreads()), pool_(&pool), run_(&run<Pool>) {}

  void parallel_for(int count, WorkerFunction worker) override { run_(*pool_, count, worker); }

 private:
  template <class Pool>
  static void run(Eigen::ThreadPoolInterface& given, int count, WorkerFunction worker) {
    auto& pool = static_cast<Pool&>(given);
    if (count <= 1 || pool.CurrentThreadId() >= 0) {  // from within the pool, waiting for it could wait forever
      detail::run_in_order(count, worker);
      return;
    }
    detail::FirstError error;
    detail::WaitableWord left(static_cast<std::uint64_t>(count));
    const auto run_worker = [&error, &left, worker](int i) {
      error.guard([&] { worker(i); });
      if (left.fetch_sub(1) == 1) left.notify_all();
    };
    for (int i = 1; i < count; ++i) {  // a copy of run_worker each, which outlives this call
      try {
        pool.Schedule([run_worker, i] { run_worker(i); });
      } catch (...) {
        run_worker(i);
      }
    }
    run_worker(0);
    for (std::uint64_t now = left.load(); now != 0; now = left.load()) left.wait(now);
    error.rethrow();
  }

  Eigen::ThreadPoolInterface* pool_;
  void (*run_)(Eigen::ThreadPoolInterface&, int, WorkerFunction);
};

}  // namespace attn
