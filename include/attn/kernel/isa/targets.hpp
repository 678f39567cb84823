// Floor 2. One region per instruction set around the same body. Everything the body needs is included before the first
// region opens: what a region includes would be compiled for its target and leak into the rest of the program.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "../../mask.hpp"
#include "../../math.hpp"
#include "../../score.hpp"
#include "../arithmetic.hpp"
#include "../attention_pairs.hpp"
#include "../codec.hpp"
#include "../gemm.hpp"
#include "../row_source.hpp"
#include "../rules.hpp"
#include "../weights.hpp"
#include "isa.hpp"

#define ATTN_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define ATTN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define ATTN_UNROLL _Pragma("GCC unroll 32")
#endif

// Marks a function whose assembly names an instruction of an extension of AArch64's. g++'s assembler takes most of them from
// Armv8.2 on, so a target that may be older is replaced; with crypto, since a function only inlines others whose features it has.
#if defined(__aarch64__)
#if defined(__clang__)
#define ATTN_EXTENSION(name) __attribute__((target(name)))
#elif defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC) || defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_COMPLEX)
#define ATTN_EXTENSION(name) __attribute__((target("+" name)))
#else
#define ATTN_EXTENSION(name) __attribute__((target("arch=armv8.2-a+crypto+" name)))
#endif
#endif

#include "begin_baseline.inl"
namespace attn::kernel::baseline {
inline namespace ATTN_UNIT_FLAGS {
#include "body.inl"
}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel::baseline
#include "end.inl"

#if ATTN_X86_TARGETS

#include "begin_avx2.inl"
namespace attn::kernel::avx2 {
#include "body.inl"
}  // namespace attn::kernel::avx2
#include "end.inl"

#include "begin_avx512.inl"
namespace attn::kernel::avx512 {
#include "body.inl"
}  // namespace attn::kernel::avx512
#include "end.inl"

#endif

#undef ATTN_EXTENSION
#undef ATTN_UNROLL
#undef ATTN_INLINE

namespace attn::kernel {
inline namespace ATTN_UNIT_FLAGS {

// A public call reads the active instruction set once and passes it to the functions below: another thread may choose
// another one meanwhile, and two sets in one call would not agree on the width of a panel.

/// The functions of an instruction set that depend on the accumulator.
template <class A>
[[nodiscard]] const Arithmetic<A>& arithmetic_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::arithmetic<A>;
  if (isa == Isa::avx2) return avx2::arithmetic<A>;
#endif
  return baseline::arithmetic<A>;
}

/// Those that a backward pass needs besides.
template <class A>
[[nodiscard]] const GradientArithmetic<A>& gradient_arithmetic_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::gradient_arithmetic<A>;
  if (isa == Isa::avx2) return avx2::gradient_arithmetic<A>;
#endif
  return baseline::gradient_arithmetic<A>;
}

/// The conversions of a stored type.
template <class Storage>
[[nodiscard]] const Codec<Storage>& codec_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::codec<Storage>;
  if (isa == Isa::avx2) return avx2::codec<Storage>;
#endif
  return baseline::codec<Storage>;
}

/// A format of keys or values, as rows of A.
template <class A, class Storage>
[[nodiscard]] const RowFormat<A>& row_format_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::row_format<A, Storage>;
  if (isa == Isa::avx2) return avx2::row_format<A, Storage>;
#endif
  return baseline::row_format<A, Storage>;
}

/// What reads weights of a format.
template <class W>
[[nodiscard]] const WeightReader& weight_reader_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::weight_reader<W>;
  if (isa == Isa::avx2) return avx2::weight_reader<W>;
#endif
  return baseline::weight_reader<W>;
}

/// What multiplies bfloat16 in pairs.
[[nodiscard]] inline const PairArithmetic& pair_arithmetic_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::pair_arithmetic;
#endif
  return baseline::pair_arithmetic;
}

/// What attention of bfloat16 multiplies in pairs with; null where there is no instruction for it.
[[nodiscard]] inline const PairAttention* pair_attention_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::pair_attention;
#endif
  return baseline::pair_attention;
}

/// The cap on scores: apart from the tables, so that programs without one do not compile it.
template <class A>
[[nodiscard]] CapScores<A> cap_scores_of([[maybe_unused]] Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::cap_scores<A>;
  if (isa == Isa::avx2) return avx2::cap_scores<A>;
#endif
  return baseline::cap_scores<A>;
}

/// The softmax of a row: apart from the tables, which would compile it for every program.
template <class Storage>
[[nodiscard]] auto softmax_row_of([[maybe_unused]] Isa isa)
    -> void (*)(const Storage* x, Storage* y, Index n, AccumulatorOf<Storage>* scratch) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx512) return avx512::softmax_row<Storage>;
  if (isa == Isa::avx2) return avx2::softmax_row<Storage>;
#endif
  return baseline::softmax_row<Storage>;
}

/// Binds a mask and a score function to an instruction set. Holds references: both must outlive the result.
template <class A, class M, class F>
[[nodiscard]] Rules<A> rules_of([[maybe_unused]] Isa isa, const M& mask, const F& score) {
  const auto cover = [](const Rules<A>& rules, const Block& block) {
    const Coverage coverage = static_cast<const M*>(rules.mask)->cover(block);
    // A bias remains to be added, in full blocks too.
    return detail::HasBias<M> && coverage == Coverage::full ? Coverage::mixed : coverage;
  };
  Rules<A> rules{.mask = &mask,
                 .score = &score,
                 .cover = cover,
                 .panel = baseline::RulesOf<A, M, F>::panel,
                 .line = baseline::RulesOf<A, M, F>::line,
                 .has_score = !std::is_same_v<F, NoScore>};
#if ATTN_X86_TARGETS
  if (isa == Isa::avx2) rules.panel = avx2::RulesOf<A, M, F>::panel, rules.line = avx2::RulesOf<A, M, F>::line;
  if (isa == Isa::avx512) rules.panel = avx512::RulesOf<A, M, F>::panel, rules.line = avx512::RulesOf<A, M, F>::line;
#endif
  return rules;
}

/// Rules without a score function, and a cap before them: no mask is compiled once more for it.
template <class A>
[[nodiscard]] Rules<A> with_cap(Rules<A> rules, Isa isa, A cap) {
  rules.cap_scores = cap_scores_of<A>(isa);
  rules.cap = cap;
  return rules;
}
inline constexpr NoScore no_score{};
template <class A, class M>
[[nodiscard]] Rules<A> rules_of(Isa isa, const M& mask, const SoftCap& score) {
  return with_cap(rules_of<A>(isa, mask, no_score), isa, static_cast<A>(score.cap()));
}

/// The same for a backward pass.
template <class A, class M>
[[nodiscard]] GradientRules<A> gradient_rules_of(Isa isa, const M& mask, const SoftCap& score) {
  return {.forward = rules_of<A>(isa, mask, score), .slopes = nullptr, .bias_slopes = nullptr};
}
template <class A, class M, class F>
[[nodiscard]] GradientRules<A> gradient_rules_of([[maybe_unused]] Isa isa, const M& mask, const F& score) {
  GradientRules<A> rules{.forward = rules_of<A>(isa, mask, score), .slopes = nullptr, .bias_slopes = nullptr};
  if constexpr (!std::is_same_v<F, NoScore>) {
    rules.slopes = baseline::RulesOf<A, M, F>::template panel_and_slopes<baseline::Slopes::score>;
#if ATTN_X86_TARGETS
    if (isa == Isa::avx2) rules.slopes = avx2::RulesOf<A, M, F>::template panel_and_slopes<avx2::Slopes::score>;
    if (isa == Isa::avx512) rules.slopes = avx512::RulesOf<A, M, F>::template panel_and_slopes<avx512::Slopes::score>;
#endif
  }
  if constexpr (detail::score_biases<F> == 1) {
    rules.bias_slopes = baseline::RulesOf<A, M, F>::template panel_and_slopes<baseline::Slopes::bias>;
#if ATTN_X86_TARGETS
    if (isa == Isa::avx2) rules.bias_slopes = avx2::RulesOf<A, M, F>::template panel_and_slopes<avx2::Slopes::bias>;
    if (isa == Isa::avx512)
      rules.bias_slopes = avx512::RulesOf<A, M, F>::template panel_and_slopes<avx512::Slopes::bias>;
#endif
  }
  return rules;
}

}  // namespace ATTN_UNIT_FLAGS
}  // namespace attn::kernel
