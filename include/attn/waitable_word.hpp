// Floor 1. An atomic word that threads can wait on.
#pragma once

#include <atomic>
#include <cstdint>

// libstdc++'s atomic wait loses wake-ups where it has no futex to build on: pools hung in 8 of 11 programs of MinGW 12.
// ATTN_WAIT_ON_CONDITION, which may also be defined by hand to try it, waits on a condition variable instead.
#if !defined(__cpp_lib_atomic_wait) || (defined(__GLIBCXX__) && !defined(_GLIBCXX_HAVE_PLATFORM_WAIT))
#define ATTN_WAIT_ON_CONDITION
#endif

#if defined(ATTN_WAIT_ON_CONDITION)
#include <condition_variable>
#include <mutex>
#include <new>
#endif

namespace attn::detail {

#if !defined(ATTN_WAIT_ON_CONDITION)

/// A word to wait on. It may be destroyed as soon as no thread waits, even while `notify_all` has not yet returned.
using WaitableWord = std::atomic<std::uint64_t>;

#else

/// A word to wait on. It may be destroyed as soon as no thread waits, even while `notify_all` has not yet returned: all
/// words share one mutex and one condition, which are never destroyed.
class WaitableWord : public std::atomic<std::uint64_t> {
 public:
  using std::atomic<std::uint64_t>::atomic;
  using std::atomic<std::uint64_t>::operator=;

  /// Returns once the word is not `old`.
  void wait(std::uint64_t old) const {
    Parking& shared = parking();
    std::unique_lock<std::mutex> lock(shared.mutex);
    while (load() == old) shared.changed.wait(lock);
  }
  void notify_all() const {
    Parking& shared = parking();
    { const std::lock_guard<std::mutex> lock(shared.mutex); }  // who has seen the old word waits by now
    shared.changed.notify_all();
  }

 private:
  struct Parking {
    std::mutex mutex;
    std::condition_variable changed;
  };
  static Parking& parking() {
    alignas(Parking) static std::byte room[sizeof(Parking)];
    static Parking* const shared = ::new (static_cast<void*>(room)) Parking;
    return *shared;
  }
};

#endif

}  // namespace attn::detail

#undef ATTN_WAIT_ON_CONDITION
