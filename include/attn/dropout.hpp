// Floor 4. Inverted dropout.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kernel/isa/targets.hpp"
#include "math.hpp"
#include "parallel.hpp"
#include "philox.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Where a Dropout stands: what it takes for another one to drop the same elements from here on.
struct DropoutState {
  bool training = true;
  std::uint64_t seed = 0;
  bool given = false;      ///< whether the caller gave the seed, so that copies keep it
  std::uint32_t call = 0;  ///< the number of the next call
};

/// In training, sets each element to 0 with probability p and multiplies the others by 1 / (1 - p); in evaluation, does
/// nothing. Which elements go is a pure function of (seed, call, index): `forward` counts its calls, those that fail
/// excepted. A new Dropout is in training mode, as in PyTorch.
///
/// Without a seed of the caller's each Dropout has one of its own, a copy as well, so that no two layers drop the same
/// elements. A copy of one whose seed was given goes on where the original stands. A move takes the seed along.
/// Source: Srivastava et al., "Dropout", 2014; random numbers: see philox.hpp.
template <Scalar T>
class Dropout {
 public:
  /// seed: of the random numbers; where not set, one that no other Dropout has.
  /// Errors: p outside [0,1] or NaN.
  explicit Dropout(double p = 0.5, std::optional<std::uint64_t> seed = {}) : p_(p), numbers_(seed) {
    detail::require(detail::is_probability(p), "Dropout", "p, expected a probability in [0,1], got ", p);
  }

  void train(bool on = true) { training_ = on; }
  void eval() { training_ = false; }
  [[nodiscard]] bool is_training() const { return training_; }
  [[nodiscard]] double p() const { return p_; }

  /// Starts the random numbers anew: the next call is call 0 of this seed, which counts as given.
  void reseed(std::uint64_t seed) { numbers_ = Numbers(seed); }

  [[nodiscard]] DropoutState state() const {
    return {.training = training_, .seed = numbers_.seed, .given = numbers_.given, .call = numbers_.call.load()};
  }
  void set_state(const DropoutState& state) {
    training_ = state.training;
    numbers_ = Numbers(state.seed);
    numbers_.given = state.given, numbers_.call = state.call;
  }

  /// Shapes: x of rank 1 to 4 -> the same shape.
  template <detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x) const {
    auto y = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    forward_into(y, x);
    return y;
  }

  /// The same, written into a tensor of the same shape, which may be x itself.
  /// Errors: another shape; views with gaps between their rows.
  template <class Y, detail::TensorOfElement<T> X>
  void forward_into(Y&& to, const X& from) const {
    DropoutRule saved;
    forward_into(to, from, saved);
  }
  /// Both, and saves what backward needs: which elements were dropped. A failed call leaves `saved` as it was.
  template <detail::TensorOfElement<T> X>
  [[nodiscard]] Tensor<T, X::NumDimensions> forward(const X& x, DropoutRule& saved) const {
    auto y = detail::make_tensor<T, X::NumDimensions>(detail::shape_of(x));
    forward_into(y, x, saved);
    return y;
  }
  template <class Y, detail::TensorOfElement<T> X>
  void forward_into(Y&& to, const X& from, DropoutRule& saved) const {
    check(to, from);
    constexpr int rank = X::NumDimensions;
    const View<const T, rank> x(from);
    const View<T, rank> y(to);
    const DropoutRule rule = next_rule();
    try {
      run(rule, x.data(), x.size(), y.data());
    } catch (...) {
      give_back(rule);
      throw;
    }
    saved = rule;
  }
  /// Throws what `forward_into` would, and does nothing else.
  template <class Y, detail::TensorOfElement<T> X>
  void check(Y&& to, const X& from) const {
    check_pair("Dropout::forward", View<T, X::NumDimensions>(to), "output", from, "input");
  }

  /// The gradient of the input: that of the output, dropped and scaled as forward did. Whether the module trains by now
  /// does not matter. Shapes: grad_y of rank 1 to 4 -> the same shape.
  template <detail::TensorOfElement<T> G>
  [[nodiscard]] Tensor<T, G::NumDimensions> backward(const G& grad_y, const DropoutRule& saved) const {
    auto grad_x = detail::make_tensor<T, G::NumDimensions>(detail::shape_of(grad_y));
    backward_into(grad_x, grad_y, saved);
    return grad_x;
  }
  /// The same, written into a tensor of the same shape, which may be grad_y itself. Errors: as forward_into.
  template <class Out, detail::TensorOfElement<T> G>
  void backward_into(Out&& to, const G& from, const DropoutRule& saved) const {
    constexpr int rank = G::NumDimensions;
    const View<T, rank> grad_x(to);
    const View<const T, rank> grad_y(from);
    check_pair("Dropout::backward", grad_x, "grad_x", grad_y, "grad_y");
    run(saved, grad_y.data(), grad_y.size(), grad_x.data());
  }

  template <detail::TensorLike X>
  [[nodiscard]] auto operator()(const X& x) const {
    return forward(x);
  }

  /// The rule that the next call follows, for code that drops elements itself; it counts as a call. Inactive in
  /// evaluation.
  [[nodiscard]] DropoutRule next_rule() const {
    return training_ && p_ > 0.0 ? DropoutRule(p_, numbers_.seed, numbers_.call.fetch_add(1)) : DropoutRule();
  }
  /// Takes back the call that a rule belongs to, if no other has begun since: for a call that failed.
  void give_back(const DropoutRule& rule) const {
    std::uint32_t next = rule.call + 1;
    if (rule.active()) numbers_.call.compare_exchange_strong(next, rule.call);
  }

 private:
  /// The random numbers: their seed, and which call comes next.
  struct Numbers {
    std::uint64_t seed;
    bool given;                               // by the caller, so that copies keep the seed
    mutable std::atomic<std::uint32_t> call;  // calls from several threads each get a number of their own

    explicit Numbers(std::optional<std::uint64_t> of_caller)
        : seed(of_caller ? *of_caller : fresh_seed()), given(of_caller.has_value()), call(0) {}
    Numbers(const Numbers& other)
        : seed(other.given ? other.seed : fresh_seed()),
          given(other.given),
          call(other.given ? other.call.load() : 0) {}
    Numbers(Numbers&& other) noexcept : Numbers(other) { trade(other); }
    Numbers& operator=(const Numbers& other) noexcept { return this == &other ? *this : *this = Numbers(other); }
    Numbers& operator=(Numbers&& other) noexcept {
      trade(other);
      return *this;
    }
    ~Numbers() = default;

    void trade(Numbers& other) noexcept {
      std::swap(seed, other.seed);
      std::swap(given, other.given);
      call = other.call.exchange(call);
    }
  };

  template <int Rank>
  static void check_pair(std::string_view fn, View<T, Rank> to, std::string_view to_name,
                         std::type_identity_t<View<const T, Rank>> from, std::string_view from_name) {
    static_assert(Rank >= 1 && Rank <= 4, "attn: Dropout takes tensors of rank 1 to 4");
    detail::require_packed_pair(fn, detail::layout_of(to_name, to), detail::layout_of(from_name, from));
  }
  void run(const DropoutRule& rule, const T* x, Index size, T* y) const {
    if (!rule.active()) {
      if (x != y) std::copy_n(x, size, y);
      return;
    }
    constexpr Index chunk = 1 << 14;  // divides 2^32, where rows end
    const auto& arithmetic = kernel::arithmetic_of<Accumulator<T>>(active_isa());
    constexpr double philox = 10.0;  // operations of an element, about
    const auto work = philox * static_cast<double>(size);
    detail::run_tasks(detail::ceil_div(size, chunk), work, 0, [&](Index task, std::byte*) {
      using A = Accumulator<T>;
      A factors[kernel::dropout_group];
      for (Index first = task * chunk, end = std::min(size, first + chunk); first < end; first += 64) {
        arithmetic.dropout_factors(
            factors, rule,
            {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(static_cast<std::uint64_t>(first) >> 32), 0},
            {4, 0, 0});
        for (Index i = 0; i < std::min<Index>(64, end - first); ++i) {
          const A factor = factors[kernel::dropout_index(i)];
          y[first + i] = kernel::is_zero(factor) ? T(0) : static_cast<T>(static_cast<A>(x[first + i]) * factor);
        }
      }
    });
  }

  double p_;
  bool training_ = true;
  Numbers numbers_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
