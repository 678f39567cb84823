// Floor 4. Inverted dropout.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "executor.hpp"
#include "kernel/targets.hpp"
#include "philox.hpp"
#include "tensor.hpp"

namespace attn::inline ATTN_EIGEN_ABI {

/// In training, sets each element to 0 with probability p and multiplies the others by 1 / (1 - p); in evaluation, does
/// nothing. Which elements go is a pure function of (seed, call, index): `forward` counts its calls. A new Dropout is
/// in training mode, as in PyTorch.
/// Source: Srivastava et al., "Dropout", 2014; random numbers: see philox.hpp.
template <Scalar T>
class Dropout {
 public:
  /// Errors: p outside [0,1] or NaN.
  explicit Dropout(double p = 0.5, std::uint64_t seed = 0) : p_(p), seed_(seed) {
    detail::require(p >= 0.0 && p <= 1.0, "Dropout", "p, expected a probability in [0,1], got ", p);
  }
  Dropout(const Dropout& other) { *this = other; }
  Dropout& operator=(const Dropout& other) {
    p_ = other.p_;
    seed_ = other.seed_;
    training_ = other.training_;
    call_ = other.call_.load();
    return *this;
  }
  ~Dropout() = default;

  void train(bool on = true) { training_ = on; }
  void eval() { training_ = false; }
  [[nodiscard]] bool is_training() const { return training_; }
  [[nodiscard]] double p() const { return p_; }

  /// Starts the random numbers anew: the next call is call 0 of this seed.
  void reseed(std::uint64_t seed) {
    seed_ = seed;
    call_ = 0;
  }

  /// Shapes: x of rank 1 to 4 -> the same shape.
  template <detail::TensorLike X>
  requires std::same_as<detail::Element<X>, T>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    auto y = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    forward_into(y, x);
    return y;
  }

  /// The same, written into a tensor of the same shape, which may be x itself.
  /// Errors: another shape; views with gaps between their rows.
  template <class Y, detail::TensorLike X>
  requires std::same_as<detail::Element<X>, T>
  void forward_into(Y&& to, const X& from) const {
    constexpr int rank = X::NumDimensions;
    static_assert(rank >= 1 && rank <= 4, "attn: Dropout takes tensors of rank 1 to 4");
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    detail::require_packed_pair("Dropout::forward", x, y, x.shape());
    run(x.data(), x.size(), y.data());
  }

  template <detail::TensorLike X>
  [[nodiscard]] auto operator()(const X& x) const {
    return forward(x);
  }

  /// The rule that the next call follows, for code that drops elements itself; it counts as a call. Inactive in
  /// evaluation.
  [[nodiscard]] DropoutRule next_rule() const {
    return training_ && p_ > 0.0 ? DropoutRule(p_, seed_, call_.fetch_add(1)) : DropoutRule();
  }

 private:
  void run(const T* x, Index size, T* y) const {
    const DropoutRule rule = next_rule();
    if (!rule.active()) {
      if (x != y) std::copy_n(x, size, y);
      return;
    }
    constexpr Index chunk = 1 << 14;  // divides 2^32, where rows end
    const auto& kernels = kernel::kernels_of<kernel::Stored<T>>(active_isa());
    const Index tasks = (size + chunk - 1) / chunk;
    const int lanes = detail::lanes(tasks, 10.0 * static_cast<double>(size));  // Philox is some 10 operations
    detail::for_each_task(tasks, lanes, [&](Index task, int) {
      using A = Accumulator<T>;
      A factors[64];
      for (Index first = task * chunk, end = std::min(size, first + chunk); first < end; first += 64) {
        kernels.dropout_factors(
            factors, rule,
            {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(static_cast<std::uint64_t>(first) >> 32), 0},
            {4, 0, 0});
        for (Index i = 0; i < std::min<Index>(64, end - first); ++i) {
          const A factor = factors[i % 4 * 16 + i / 4];
          y[first + i] = kernel::is_zero(factor) ? T(0) : static_cast<T>(static_cast<A>(x[first + i]) * factor);
        }
      }
    });
  }

  double p_ = 0.0;
  std::uint64_t seed_ = 0;
  bool training_ = true;
  mutable std::atomic<std::uint32_t> call_{0};  // calls from several threads each get a number of their own
};

}  // namespace attn::inline ATTN_EIGEN_ABI
