// Floor 2. Instruction sets: which ones this CPU has, which one attn uses.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <span>
#include <string_view>

#include "../../error.hpp"

#if ATTN_X86_TARGETS
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
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

#if ATTN_X86_TARGETS
// By hand: __builtin_cpu_supports needs a variable of libgcc's, which macOS, musl and zig c++ do not link.

/// What cpuid answers to a leaf; zeros where the CPU has no such leaf.
struct CpuId {
  unsigned a = 0, b = 0, c = 0, d = 0;

  explicit CpuId(unsigned leaf, unsigned subleaf = 0) {
    static_cast<void>(__get_cpuid_count(leaf, subleaf, &a, &b, &c, &d));
  }
};

/// The registers that the system keeps apart for each thread, as bits of XCR0.
inline unsigned saved_registers() {
  if ((CpuId(1).c & 1U << 27) == 0) return 0;  // OSXSAVE: the system has turned xgetbv on
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

inline bool cpu_has(Isa isa) {
  constexpr unsigned fma = 1U << 12, avx = 1U << 28, f16c = 1U << 29;  // leaf 1, ecx
  constexpr unsigned avx2 = 1U << 5;                                   // leaf 7, ebx, as those of AVX-512
  constexpr unsigned avx512f = 1U << 16, avx512dq = 1U << 17, avx512cd = 1U << 28, avx512bw = 1U << 30,
                     avx512vl = 1U << 31;
  constexpr unsigned ymm = 0x6, zmm = 0xE6;  // XCR0: SSE and AVX; besides, masks and both halves of AVX-512
  const auto has_all = [](unsigned word, unsigned bits) { return (word & bits) == bits; };
  const unsigned saved = saved_registers(), extended = CpuId(7).b;
  const bool v3 = has_all(saved, ymm) && has_all(CpuId(1).c, fma | avx | f16c) && has_all(extended, avx2);
  if (isa == Isa::avx2) return v3;
  if (isa == Isa::avx512)
    return v3 && has_all(saved, zmm) && has_all(extended, avx512f | avx512dq | avx512cd | avx512bw | avx512vl);
  return isa == Isa::baseline;
}
/// Whether the CPU has dot products of bytes on the vectors of an instruction set: AVX-512 VNNI, AVX-VNNI.
inline bool cpu_has_byte_dots(Isa isa) {
  constexpr unsigned avx512_vnni = 1U << 11, avx_vnni = 1U << 4;  // leaf 7, ecx; and its subleaf 1, eax
  if (isa == Isa::avx512) return (CpuId(7).c & avx512_vnni) != 0;
  return isa == Isa::avx2 && (CpuId(7, 1).a & avx_vnni) != 0;
}
/// Whether it has products of pairs of bfloat16 on these vectors: AVX512-BF16.
inline bool cpu_has_bf16_dots(Isa isa) { return isa == Isa::avx512 && (CpuId(7, 1).a & 1U << 5) != 0; }
inline bool cpu_is_intel() {
  const CpuId vendor(0);
  return vendor.b == 0x756E6547 && vendor.d == 0x49656E69 && vendor.c == 0x6C65746E;  // GenuineIntel
}
/// Whether it is AMD's of Zen 5 or later.
inline bool cpu_is_zen_5() {
  const CpuId vendor(0);
  const unsigned signature = CpuId(1).a, family = (signature >> 8 & 0xF) + (signature >> 20 & 0xFF);
  const bool is_amd = vendor.b == 0x68747541 && vendor.d == 0x69746E65 && vendor.c == 0x444D4163;  // AuthenticAMD
  return is_amd && family >= 0x1A;
}
#else
inline bool cpu_is_intel() { return false; }
inline bool cpu_is_zen_5() { return false; }
inline bool cpu_has(Isa isa) { return isa == Isa::baseline; }
/// Whether the CPU has dot products of bytes: those of Armv8.2.
inline bool cpu_has_byte_dots(Isa) {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long dot_products = 1UL << 20;  // HWCAP_ASIMDDP
  return (::getauxval(AT_HWCAP) & dot_products) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}
/// Whether it has dot products of bfloat16: those of Armv8.6. Apple's CPUs are not asked.
inline bool cpu_has_bf16_dots(Isa) {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long bfloat16 = 1UL << 14;  // HWCAP2_BF16
  return (::getauxval(AT_HWCAP2) & bfloat16) != 0;
#else
  return false;
#endif
}
#endif
/// Whether the CPU has matrix products of bytes: those of Armv8.6. Apple's CPUs are not asked.
inline bool cpu_has_byte_matrices() {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long matrix_products = 1UL << 13;  // HWCAP2_I8MM
  return (::getauxval(AT_HWCAP2) & matrix_products) != 0;
#else
  return false;
#endif
}

/// Each has all that those before it have, so that a CPU supports the first few.
inline constexpr Isa all_isas[] = {Isa::baseline, Isa::avx2, Isa::avx512};
inline constexpr std::string_view all_isa_names = "baseline, avx2, avx512";

/// Whether the CPU has something on the vectors of each of them.
inline std::array<bool, 3> on_each_isa(bool (*cpu_has_it)(Isa)) {
  return {cpu_has_it(Isa::baseline), cpu_has_it(Isa::avx2), cpu_has_it(Isa::avx512)};
}

[[gnu::cold]] inline std::size_t count_isas() {
  std::size_t count = 0;
  for (const Isa isa : all_isas)
    if (cpu_has(isa)) ++count;
  return count;
}

}  // namespace detail

/// The instruction sets that can be used on this CPU, the best one last.
[[nodiscard]] inline std::span<const Isa> supported_isas() {
  static const std::size_t count = detail::count_isas();
  return {detail::all_isas, count};
}

namespace detail {

/// The instruction set of this name. Errors: there is none, or the CPU lacks it; `what` says where the name comes from.
[[gnu::cold]] inline Isa checked_isa(std::string_view function, std::string_view what, std::string_view name) {
  for (const Isa isa : supported_isas())
    if (isa_name(isa) == name) return isa;
  const std::string_view best = isa_name(supported_isas().back());
  fail(function, what, ", expected one that this CPU has (",
       all_isa_names.substr(0, all_isa_names.find(best) + best.size()), "), got ", name);
}

/// What the environment says.
inline Isa default_isa() {
  const char* forced = std::getenv("ATTN_ISA");
  return forced == nullptr || *forced == '\0' ? supported_isas().back()
                                              : checked_isa("active_isa", "instruction set ATTN_ISA", forced);
}

inline constexpr Isa undecided{255};
inline constinit std::atomic<Isa> chosen_isa{undecided};

/// What the environment says of a special unit: use it or not, or nothing.
[[gnu::cold]] inline std::optional<bool> forced_unit(std::string_view function, const char* variable) {
  const char* const value = std::getenv(variable);
  const std::string_view said = value == nullptr ? "" : value;
  require(said.empty() || said == "0" || said == "1", function, variable, ", expected 0 or 1, got ", said);
  return said.empty() ? std::nullopt : std::optional(said == "1");
}

/// Whether a special unit is wanted: what was set, or the environment says, or else `otherwise`, decided at the first call.
inline bool is_wanted(std::atomic<signed char>& wanted, std::string_view function, const char* variable,
                      bool otherwise) {
  signed char now = wanted.load(std::memory_order_relaxed);
  if (now < 0) {
    now = forced_unit(function, variable).value_or(otherwise) ? 1 : 0;
    wanted.store(now, std::memory_order_relaxed);
  }
  return now != 0;
}
inline constinit std::atomic<signed char> byte_dots_wanted{-1};  // -1: not yet decided

inline constinit std::atomic<signed char> bf16_dots_wanted{-1};

inline constexpr Index usual_decode_prefetch = 2048;
inline constinit std::atomic<Index> decode_prefetch_wanted{-1};
[[gnu::cold]] inline Index default_decode_prefetch() {
  const char* const said = std::getenv("ATTN_DECODE_PREFETCH");
  if (said == nullptr || *said == '\0') return cpu_is_intel() || cpu_is_zen_5() ? usual_decode_prefetch : 0;
  char* end = nullptr;
  const long bytes = std::strtol(said, &end, 10);
  require(*end == '\0' && bytes >= 0 && bytes <= 1 << 20, "decode_prefetch",
          "ATTN_DECODE_PREFETCH, expected bytes from 0 to 1048576, got ", std::string_view(said));
  return bytes;
}

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

/// Whether weights of 8 and 4 bits are multiplied by dot products of bytes (AVX-512 VNNI, AVX-VNNI, Armv8.2's) rather than as
/// floats: where the CPU has them for the active instruction set, unless ATTN_BYTE_DOTS=0 or set_byte_dots says otherwise. Results agree to rounding. Two rows or more then take Armv8.6's matrix
/// products of bytes where the CPU has them, which give the same bits. Errors: ATTN_BYTE_DOTS is not 0 or 1.
[[nodiscard]] inline bool byte_dots(Isa isa = active_isa()) {
  static const auto has = detail::on_each_isa(detail::cpu_has_byte_dots);
  return detail::is_wanted(detail::byte_dots_wanted, "byte_dots", "ATTN_BYTE_DOTS", true) &&
         has[static_cast<std::size_t>(isa)];
}
/// Turns dot products of bytes on, where the CPU has them, or off, from the next call on in all threads.
inline void set_byte_dots(bool on) { detail::byte_dots_wanted.store(on ? 1 : 0, std::memory_order_relaxed); }

/// Whether layers, forward and backward, and attention of bfloat16 multiply by dot products of pairs (AVX512-BF16, Armv8.6's)
/// rather than as floats. They take half of float's time on AMD's Zen 4 and 5 and twice as
/// long on Intel's Sapphire and Emerald Rapids: so they are used where the CPU has them and is not Intel's, unless ATTN_BF16_DOT
/// or set_bf16_dots says otherwise. Subnormal numbers then count as 0; and attention of more than a few queries, of an even head
/// size, rounds its weights to bfloat16 before they are multiplied by v, as PyTorch does. Errors: ATTN_BF16_DOT is not 0 or 1.
[[nodiscard]] inline bool bf16_dots(Isa isa = active_isa()) {
  static const auto has = detail::on_each_isa(detail::cpu_has_bf16_dots);
  static const bool otherwise = !detail::cpu_is_intel();
  return detail::is_wanted(detail::bf16_dots_wanted, "bf16_dots", "ATTN_BF16_DOT", otherwise) &&
         has[static_cast<std::size_t>(isa)];
}
/// Turns them on, where the CPU has them, or off, from the next call on in all threads.
inline void set_bf16_dots(bool on) { detail::bf16_dots_wanted.store(on ? 1 : 0, std::memory_order_relaxed); }

/// How many bytes ahead decoding prefetches keys and values; 0: it leaves that to the CPU. What is best depends on the CPU: with
/// 2048 bytes Intel's Emerald Rapids read 5 % faster (with keys in fewer bits 25 to 40 %), AMD's Zen 5 10 to 15 %, AMD's Zen 4
/// 10 % slower. So it is 2048 on Intel's CPUs and on AMD's from Zen 5 on, 0 on others, unless ATTN_DECODE_PREFETCH or
/// set_decode_prefetch says otherwise. Results do not depend on it. Errors: ATTN_DECODE_PREFETCH is not a number of bytes up to
/// 2^20.
[[nodiscard]] inline Index decode_prefetch() {
  Index bytes = detail::decode_prefetch_wanted.load(std::memory_order_relaxed);
  if (bytes < 0) {
    bytes = detail::default_decode_prefetch();
    detail::decode_prefetch_wanted.store(bytes, std::memory_order_relaxed);
  }
  return bytes;
}
/// Sets it for all threads, from the next call on. Errors: less than 0 or more than 2^20 bytes.
inline void set_decode_prefetch(Index bytes) {
  detail::require(bytes >= 0 && bytes <= 1 << 20, "set_decode_prefetch", "expected bytes from 0 to 1048576, got ",
                  bytes);
  detail::decode_prefetch_wanted.store(bytes, std::memory_order_relaxed);
}

}  // namespace attn
