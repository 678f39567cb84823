// Floor 1. How a thread computes with floating-point numbers: rounding, and whether subnormal numbers count as zero.
#pragma once

#include <cstdint>

namespace attn {

namespace detail {

/// The calling thread's floating-point control word: MXCSR of x86, FPCR of AArch64, nothing on other machines. Flags of
/// exceptions that were raised are no part of it: they stay with the thread that raised them.
class FloatEnvironment {
#if defined(__x86_64__) || defined(__SSE2__)
  using Word = std::uint32_t;
  static constexpr Word raised = 0x3F;               // the flags of exceptions
  static constexpr Word flush = 1U << 15 | 1U << 6;  // FTZ for results, DAZ for inputs
  static Word read() { return __builtin_ia32_stmxcsr(); }
  static void write(Word word) { __builtin_ia32_ldmxcsr(word); }
#elif defined(__aarch64__)
  using Word = std::uint64_t;
  static constexpr Word raised = 0;        // FPSR holds them
  static constexpr Word flush = 1U << 24;  // FZ, for inputs and results
  static Word read() {
    Word word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word));
    return word;
  }
  static void write(Word word) { __asm__ volatile("msr fpcr, %0" : : "r"(word) : "memory"); }
#else
  using Word = std::uint32_t;
  static constexpr Word raised = 0;
  static constexpr Word flush = 0;
  static Word read() { return 0; }
  static void write(Word) {}
#endif

 public:
  static constexpr bool can_flush = flush != 0;

  [[nodiscard]] static FloatEnvironment current() { return FloatEnvironment(read() & ~raised); }
  /// Makes it the calling thread's. Writes the register only where it differs, since that costs some ten cycles.
  void set() const {
    const Word now = read();
    if ((now & ~raised) != word_) write(word_ | (now & raised));
  }
  /// The same, but with subnormal numbers as zero.
  [[nodiscard]] FloatEnvironment flushing() const { return FloatEnvironment(word_ | flush); }
  /// The same, but with subnormal numbers as in `other`.
  [[nodiscard]] FloatEnvironment flushing_as(FloatEnvironment other) const {
    return FloatEnvironment((word_ & ~flush) | (other.word_ & flush));
  }
  bool operator==(const FloatEnvironment&) const = default;

 private:
  explicit FloatEnvironment(Word word) : word_(word) {}
  Word word_;
};

/// While it lives, the calling thread computes as `environment` says.
class UseFloatEnvironment {
 public:
  explicit UseFloatEnvironment(FloatEnvironment environment) : before_(FloatEnvironment::current()) {
    environment.set();
  }
  UseFloatEnvironment(const UseFloatEnvironment&) = delete;
  UseFloatEnvironment& operator=(const UseFloatEnvironment&) = delete;
  ~UseFloatEnvironment() { before_.set(); }

 private:
  FloatEnvironment before_;
};

}  // namespace detail

/// While it lives, subnormal numbers (float: below 1.2e-38) count as zero in what this thread computes: as inputs, and as
/// results. Attn calls made from this thread hold to it on all their threads.
/// It is off unless asked for, since it changes results; but arithmetic on subnormal numbers takes some 100 times as long
/// on many Intel CPUs, so that inputs or weights with many of them make a call that much slower. May be nested.
/// Conventions: x86 sets FTZ and DAZ of MXCSR, AArch64 FZ of FPCR; elsewhere it does nothing, and `available` is false.
/// Float, double and bfloat16 follow it. Subnormal halves are normal floats and keep their value.
class FlushSubnormals {
 public:
  static constexpr bool available = detail::FloatEnvironment::can_flush;

  FlushSubnormals() : before_(detail::FloatEnvironment::current()) { before_.flushing().set(); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;
  ~FlushSubnormals() { detail::FloatEnvironment::current().flushing_as(before_).set(); }

 private:
  detail::FloatEnvironment before_;
};

}  // namespace attn
