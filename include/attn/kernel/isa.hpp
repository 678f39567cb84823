// Floor 2. Instruction sets: which ones this CPU has, which one attn uses.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../error.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define ATTN_X86_TARGETS 1
#include <cpuid.h>
#else
#define ATTN_X86_TARGETS 0
#endif

namespace attn {

/// An instruction set that attn has kernels for. `baseline` is what the compiler was told to assume: SSE2 on x86-64,
/// NEON on AArch64, unless the program is compiled for more.
enum class Isa : std::uint8_t {
  baseline,
  avx2,    ///< AVX2, FMA and F16C: x86-64-v3
  avx512,  ///< AVX-512 F, BW, CD, DQ and VL: x86-64-v4
};

[[nodiscard]] constexpr std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::baseline:
      return "baseline";
  }
  return "unknown";
}

namespace detail {

inline bool cpu_has(Isa isa) {
#if ATTN_X86_TARGETS
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1U << 29)) != 0;
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return v3;
  if (isa == Isa::avx512) return v4;
#endif
  return isa == Isa::baseline;
}

inline std::vector<Isa> find_isas() {
  std::vector<Isa> found;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (cpu_has(isa)) found.push_back(isa);
  return found;
}

}  // namespace detail

/// The instruction sets that can be used on this CPU, the best one last.
[[nodiscard]] inline std::span<const Isa> supported_isas() {
  static const std::vector<Isa> isas = detail::find_isas();
  return isas;
}

namespace detail {

/// What the name says, in an error's words when the CPU lacks it.
inline Isa checked_isa(std::string_view function, std::string_view what, std::string_view name) {
  std::string known;
  for (const Isa isa : supported_isas()) {
    if (isa_name(isa) == name) return isa;
    known += known.empty() ? "" : ", ";
    known += isa_name(isa);
  }
  fail(function, what, ", expected one that this CPU has (", std::string_view(known), "), got ", name);
}

/// What the environment says.
inline Isa default_isa() {
  const char* forced = std::getenv("ATTN_ISA");
  return forced == nullptr || *forced == '\0' ? supported_isas().back()
                                              : checked_isa("active_isa", "instruction set ATTN_ISA", forced);
}

inline constexpr Isa undecided{255};
inline constinit std::atomic<Isa> chosen_isa{undecided};

}  // namespace detail

/// The instruction set that attn uses: the best one, or what ATTN_ISA (baseline, avx2, avx512) or set_active_isa says.
/// Errors: ATTN_ISA names one that does not exist or that this CPU lacks.
[[nodiscard]] inline Isa active_isa() {
  Isa isa = detail::chosen_isa.load(std::memory_order_relaxed);
  if (isa == detail::undecided) {  // the first call; another thread's choice meanwhile stays
    const Isa first = detail::default_isa();
    if (detail::chosen_isa.compare_exchange_strong(isa, first)) isa = first;
  }
  return isa;
}

/// Uses another instruction set from the next call on, in all threads, whatever ATTN_ISA says; a call that runs meanwhile
/// keeps the one it began with (of a module, each of its layers does). Errors: this CPU lacks it.
inline void set_active_isa(Isa isa) {
  static_cast<void>(detail::checked_isa("set_active_isa", "instruction set", isa_name(isa)));
  detail::chosen_isa.store(isa);
}

}  // namespace attn
