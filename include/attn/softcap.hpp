// Floor 4. A cap on scores that a module may have.
#pragma once

#include <concepts>
#include <optional>

#include "kernel/isa/targets.hpp"
#include "kernel/rules.hpp"
#include "score.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// The cap of cap * tanh(score / cap), or none, used as a std::optional<double>.
///
/// It reaches the kernels through a pointer that only its constructors from a number name: a program without a cap compiles
/// none of them, and no mask is compiled once more for it.
class OptionalSoftCap {
 public:
  OptionalSoftCap() = default;
  OptionalSoftCap(std::nullopt_t) {}                                  // NOLINT: converts as std::optional does
  OptionalSoftCap(double cap) : cap_(cap), kernels_(&all_kernels) {}  // NOLINT: the same
  OptionalSoftCap(const std::optional<double>& cap)                   // NOLINT: the same
      : OptionalSoftCap(cap ? OptionalSoftCap(*cap) : OptionalSoftCap()) {}

  [[nodiscard]] bool has_value() const { return cap_.has_value(); }
  explicit operator bool() const { return has_value(); }
  const double& operator*() const { return *cap_; }
  [[nodiscard]] const double& value() const { return cap_.value(); }
  [[nodiscard]] double value_or(double otherwise) const { return cap_.value_or(otherwise); }
  operator std::optional<double>() const { return cap_; }  // NOLINT: both convert to each other
  /// Forgets the cap.
  void reset() { *this = OptionalSoftCap(); }

  /// The rules with this cap before them.
  template <class A>
  [[nodiscard]] kernel::Rules<A> before(kernel::Rules<A> rules, Isa isa) const {
    if (!has_value()) return rules;
    if constexpr (std::same_as<A, double>)
      return kernels_->in_double(rules, isa, *cap_);
    else
      return kernels_->in_float(rules, isa, static_cast<float>(*cap_));
  }

 private:
  struct Kernels {
    kernel::Rules<float> (*in_float)(kernel::Rules<float> rules, Isa isa, float cap);
    kernel::Rules<double> (*in_double)(kernel::Rules<double> rules, Isa isa, double cap);
  };
  static constexpr Kernels all_kernels{kernel::with_cap<float>, kernel::with_cap<double>};

  std::optional<double> cap_;
  const Kernels* kernels_ = nullptr;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

/// A score function that comes after a module's cap: a SoftCap by itself would take its place.
template <class F>
[[nodiscard]] decltype(auto) after_cap(const F& score) {
  if constexpr (std::same_as<F, SoftCap>)
    return Chain(score);
  else
    return (score);
}

}  // namespace attn::detail
