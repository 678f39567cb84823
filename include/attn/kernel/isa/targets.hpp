// Floor 2. One region per instruction set around the same body. Everything the body needs is included before the first
// region opens: what a region includes would be compiled for its target and leak into the rest of the program.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "../../score.hpp"
#include "isa.hpp"
#include "../kernels.hpp"

#define ATTN_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define ATTN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ATTN_UNROLL _Pragma("GCC unroll 32")
#endif

// What the compiler was told to assume: 16-byte vectors, on x86-64 of 16 registers, on AArch64 of 32.
#define ATTN_VECTOR_BYTES 16
#if defined(__aarch64__) || defined(__FMA__)
#define ATTN_FUSED_MULTIPLY 1
#else
#define ATTN_FUSED_MULTIPLY 0
#endif
#if defined(__aarch64__)
#define ATTN_VECTOR_REGISTERS 32
#define ATTN_VECTOR_CONSTRAINT "w"
#elif defined(__SSE2__)
#define ATTN_VECTOR_REGISTERS 16
#define ATTN_VECTOR_CONSTRAINT "x"
#else
#define ATTN_VECTOR_REGISTERS 16
#define ATTN_VECTOR_CONSTRAINT "m"
#endif
namespace attn::kernel::baseline {
inline namespace ATTN_UNIT_FLAGS {
#include "body.inl"
}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel::baseline

#if ATTN_X86_TARGETS

#define ATTN_VECTOR_BYTES 32
#define ATTN_FUSED_MULTIPLY 1
#define ATTN_VECTOR_REGISTERS 16
#define ATTN_VECTOR_CONSTRAINT "x"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace attn::kernel::avx2 {
#include "body.inl"
}  // namespace attn::kernel::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define ATTN_VECTOR_BYTES 64
#define ATTN_FUSED_MULTIPLY 1
#define ATTN_VECTOR_REGISTERS 32
#define ATTN_VECTOR_CONSTRAINT "v"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")
#endif
namespace attn::kernel::avx512 {
#include "body.inl"
}  // namespace attn::kernel::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif

#undef ATTN_UNROLL
#undef ATTN_INLINE

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

// A public call asks for the active instruction set once and hands it to the functions below: another thread may choose
// another one meanwhile, and two sets in one call would not agree on the width of a panel.

/// The functions of an instruction set.
template <class T>
[[nodiscard]] const Kernels<T>& kernels_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::kernels<T>;
  if (isa == Isa::avx2) return avx2::kernels<T>;
#endif
  return baseline::kernels<T>;
}

/// The softmax of a row: not in the table, which would compile it for everyone.
template <class T>
[[nodiscard]] auto softmax_row_of([[maybe_unused]] Isa isa)
    -> void (*)(const T* x, T* y, Index n, AccumulatorOf<T>* scratch) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::softmax_row<T>;
  if (isa == Isa::avx2) return avx2::softmax_row<T>;
#endif
  return baseline::softmax_row<T>;
}

/// Binds a mask and a score function to an instruction set. Holds references: both must outlive the result.
template <class A, class M, class F>
[[nodiscard]] Rules<A> rules_of([[maybe_unused]] Isa isa, const M& mask, const F& score) {
  const auto cover = [](const Rules<A>& rules, const Block& block) {
    const Coverage coverage = static_cast<const M*>(rules.mask)->cover(block);
    return HasBias<M> && coverage == Coverage::full ? Coverage::mixed : coverage;  // the bias remains to be added
  };
  Rules<A> rules{&mask,
                 &score,
                 cover,
                 baseline::RulesOf<A, M, F>::panel,
                 baseline::RulesOf<A, M, F>::line,
                 !std::is_same_v<F, NoScore>};
#if ATTN_X86_TARGETS
  if (isa == Isa::avx2) rules.panel = avx2::RulesOf<A, M, F>::panel, rules.line = avx2::RulesOf<A, M, F>::line;
  if (isa == Isa::avx512) rules.panel = avx512::RulesOf<A, M, F>::panel, rules.line = avx512::RulesOf<A, M, F>::line;
#endif
  return rules;
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
