// Floor 4. Rotary position embedding.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "executor.hpp"
#include "memory.hpp"
#include "overlap.hpp"
#include "parallel.hpp"
#include "rotary_positions.hpp"
#include "rotary_scaling.hpp"
#include "scratch.hpp"
#include "tensor.hpp"
#include "tensor_argument.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Rotates pairs of elements of queries and keys by angles that grow with position, so that scores depend on distance.
///
/// Types: cosines and sines are float32 for every scalar, computed in double and rounded once.
/// Conventions: a sequence is rotated the same whatever else is in its batch. With dynamic and longrope scaling its
/// frequencies depend on its own length.
/// A Rotary that was moved from has head size 0 and refuses to run.
/// Source: Su et al., "RoFormer", 2021.
class Rotary {
 public:
  /// Errors: a head size that is odd or below 2, theta or a factor that is not positive, factors of the wrong count,
  /// lengths past 2^53, frequencies that overflow.
  [[gnu::cold]] explicit Rotary(Index head_size, const RotaryConfig& config = {})
      : frequencies_(detail::RotaryFrequencies(head_size, config)) {}

  [[nodiscard]] const RotaryConfig& config() const { return frequencies_->config(); }
  [[nodiscard]] Index head_size() const { return frequencies_->head_size(); }
  /// How many pairs of a head's elements are rotated.
  [[nodiscard]] Index pairs() const { return frequencies_->rotated() / 2; }

  /// The length up to which all sequences have the same frequencies: original_length with dynamic and longrope scaling,
  /// unless the configuration fixes the length; otherwise there is no such limit.
  [[nodiscard]] Index same_up_to() const { return frequencies_->same_up_to(); }

  /// Writes the angle per position of each pair, for a sequence of `length` positions. Only dynamic and longrope scaling
  /// depend on the length, unless the configuration fixes it.
  /// Errors: a span that does not hold one element for each pair.
  void frequencies(Index length, std::span<double> result) const {
    detail::require(std::ssize(result) == pairs(), "Rotary::frequencies", "expected room for ", pairs(), ", got ",
                    std::ssize(result));
    frequencies_->get(length, result);
  }

  /// What cosines and sines are multiplied by: 1 but for yarn and longrope.
  [[nodiscard]] double attention_factor() const { return frequencies_->attention_factor(); }

  /// Rotates x [B,H,S,D] in place; row s of batch entry b stands at position start[b] + s, or where positions [B,S] or
  /// [B,S,D/2] say. `lengths`, one for each batch entry, says how many positions its sequence has in all, where that is
  /// not one more than its last; padding does not count.
  /// Errors: another head size, positions that are missing or not within 2^53 of 0, lengths that are missing, negative or
  /// past 2^53, a last axis that is not contiguous, elements that are repeated by a stride of 0.
  template <Scalar T>
  void apply(View<T, 4> x, const RotaryPositions& positions, std::span<const Index> lengths = {}) const {
    rotate<T, 1, false>({x}, {detail::layout_of("view", x)}, positions, lengths);
  }
  template <detail::TensorArgument<4> X>
  void apply(X& x, const RotaryPositions& positions, std::span<const Index> lengths = {}) const {
    if constexpr (TensorOf<X, 4>) apply(View<detail::Element<X>, 4>(x), positions, lengths);
  }

  /// Rotates queries [B,H,S,D] and keys [B,G,S,D] of the same tokens in place, computing each angle once.
  /// Errors: besides, keys of another B or S than the queries, or that share memory with them.
  template <Scalar T>
  void apply(View<T, 4> q, View<T, 4> k, const RotaryPositions& positions, std::span<const Index> lengths = {}) const {
    rotate<T, 2, false>({q, k}, {detail::layout_of("queries", q), detail::layout_of("keys", k)}, positions, lengths);
  }
  template <TensorOf<4> Q, TensorOf<4> K>
  void apply(Q& q, K& k, const RotaryPositions& positions, std::span<const Index> lengths = {}) const {
    apply(View<detail::Element<Q>, 4>(q), View<detail::Element<Q>, 4>(k), positions, lengths);
  }

  /// Turns the gradient [B,H,S,D] of what `apply` wrote into that of what it read, in place: the transpose of the
  /// rotation, scaled alike. Positions, lengths and errors: as for apply.
  template <Scalar T>
  void backward(View<T, 4> grad, const RotaryPositions& positions, std::span<const Index> lengths = {}) const {
    rotate<T, 1, true>({grad}, {detail::layout_of("gradient", grad)}, positions, lengths);
  }
  template <detail::TensorArgument<4> G>
  void backward(G& grad, const RotaryPositions& positions, std::span<const Index> lengths = {}) const {
    if constexpr (TensorOf<G, 4>) backward(View<detail::Element<G>, 4>(grad), positions, lengths);
  }
  /// The same of the gradients of queries [B,H,S,D] and keys [B,G,S,D], computing each angle once.
  template <Scalar T>
  void backward(View<T, 4> grad_q, View<T, 4> grad_k, const RotaryPositions& positions,
                std::span<const Index> lengths = {}) const {
    rotate<T, 2, true>(
        {grad_q, grad_k},
        {detail::layout_of("gradient of queries", grad_q), detail::layout_of("gradient of keys", grad_k)}, positions,
        lengths);
  }
  template <TensorOf<4> Q, TensorOf<4> K>
  void backward(Q& grad_q, K& grad_k, const RotaryPositions& positions, std::span<const Index> lengths = {}) const {
    backward(View<detail::Element<Q>, 4>(grad_q), View<detail::Element<Q>, 4>(grad_k), positions, lengths);
  }

  /// Turns keys [B,G,S,D] that `apply` has rotated, in place, to `by` positions further on, back where it is negative. The
  /// attention factor stays in them once.
  /// Conventions: frequencies are those of a sequence of up to same_up_to() positions.
  /// Errors: another head size, a last axis that is not contiguous.
  template <Scalar T>
  void turn(View<T, 4> keys, Index by) const {
    check_views("Rotary::turn", std::array{detail::layout_of("view", keys)});
    const Workspace::Frame frame;
    auto* const frequency = frame.take<double>(pairs());
    float *const cosine = frame.take<float>(pairs()), *const sine = frame.take<float>(pairs());
    frequencies(0, {frequency, static_cast<std::size_t>(pairs())});
    for (Index i = 0; i < pairs(); ++i) {
      cosine[i] = static_cast<float>(std::cos(static_cast<double>(by) * frequency[i]));
      sine[i] = static_cast<float>(std::sin(static_cast<double>(by) * frequency[i]));
    }
    for (Index b = 0; b < keys.dimension(0); ++b)
      for (Index g = 0; g < keys.dimension(1); ++g)
        for (Index s = 0; s < keys.dimension(2); ++s)
          rotate_row<false>(&keys(b, g, s, 0), Angles{.b = b, .s = s, .cosine = cosine, .sine = sine});
  }

 private:
  /// The cosines and sines of one token: batch entry b, row s.
  struct Angles {
    Index b;
    Index s;
    const float* cosine;
    const float* sine;
  };
  using RotateToken = detail::FunctionRef<const Angles&>;

  /// Back: by the opposite angles.
  template <Scalar T, std::size_t n, bool back>
  void rotate(const std::array<View<T, 4>, n>& views, const std::array<detail::Layout, n>& layouts,
              const RotaryPositions& positions, std::span<const Index> lengths) const {
    constexpr auto function = back ? "Rotary::backward" : "Rotary::apply";
    (this->*for_each_token_)(function, {layouts.data(), n}, positions, lengths, [&](const Angles& token) {
      for (const View<T, 4>& x : views)
        for (Index h = 0; h < x.dimension(1); ++h) rotate_row<back>(&x(token.b, h, token.s, 0), token);
    });
  }

  template <bool back, class T>
  void rotate_row(T* row, const Angles& token) const {
    using A = Accumulator<T>;
    const bool interleaved = config().layout == RotaryLayout::interleaved;
    const Index count = pairs();
    for (Index i = 0; i < count; ++i) {
      T& first = row[interleaved ? 2 * i : i];
      T& second = row[interleaved ? 2 * i + 1 : i + count];
      const A u = static_cast<A>(first), v = static_cast<A>(second);
      const A c = static_cast<A>(token.cosine[i]), s = static_cast<A>(back ? -token.sine[i] : token.sine[i]);
      first = static_cast<T>(u * c - v * s);
      second = static_cast<T>(v * c + u * s);
    }
  }

  /// Checks, and computes the angles of each token, by which `rotate_token` then rotates its heads in all views.
  void for_each_token(std::string_view fn, std::span<const detail::Layout> views, const RotaryPositions& positions,
                      std::span<const Index> lengths, RotateToken rotate_token) const {
    const Index B = views[0].shape[0], S = views[0].shape[2];
    check_views(fn, views);
    positions.check(fn, B, S, pairs());
    check_lengths(fn, B, lengths);
    Index heads = 0;
    for (const detail::Layout& x : views) heads += x.shape[1];
    if (B == 0 || S == 0 || heads == 0) return;

    const auto length = [&](Index b) {
      return lengths.empty() ? positions.length(b, S, pairs()) : lengths[static_cast<std::size_t>(b)];
    };
    bool same = true;  // all sequences have the same frequencies
    for (Index b = 0; b < B; ++b) same = same && (length(b) <= same_up_to() || length(b) == length(0));

    const Workspace::Frame frame;
    auto* const frequency = frame.take<double>(same ? pairs() : B * pairs());
    for (Index b = 0; b < (same ? 1 : B); ++b)
      frequencies(length(b), {frequency + b * pairs(), static_cast<std::size_t>(pairs())});

    constexpr Index angle_work = 20;  // multiplications that a cosine and a sine take, about
    const double work = static_cast<double>(B * S * 2 * pairs()) * static_cast<double>(heads + angle_work);
    const double factor = attention_factor();
    const auto take_table = [&](detail::Scratch scratch) {
      float* const table = scratch.take<float>(2 * pairs());
      return std::pair(table, scratch.size());
    };
    detail::run_tasks(B * S, work, take_table({}).second, [&](Index task, std::byte* memory) {
      const Index b = task / S, s = task % S;
      float* const cosine = take_table(detail::Scratch(memory)).first;
      float* const sine = cosine + pairs();
      const double* const of_sequence = frequency + (same ? 0 : b * pairs());
      for (Index i = 0; i < pairs(); ++i) {
        const double angle = static_cast<double>(positions.at(b, s, i)) * of_sequence[i];
        cosine[i] = static_cast<float>(std::cos(angle) * factor);
        sine[i] = static_cast<float>(std::sin(angle) * factor);
      }
      rotate_token(Angles{.b = b, .s = s, .cosine = cosine, .sine = sine});
    });
  }

  // ---- Checks ----

  void check_views(std::string_view fn, std::span<const detail::Layout> views) const {
    detail::require(head_size() > 0, fn, "rotary, expected one with a head size, got one moved from");
    for (const detail::Layout& x : views) {
      detail::require(x.shape[3] == head_size(), fn, "last dimension, expected ", head_size(), ", got ", x.shape);
      detail::require(x.stride[3] == 1, fn, "view, expected a contiguous last axis, got strides ", x.stride);
      detail::require_distinct(fn, x);
      const detail::Layout& first = views.front();
      detail::require(x.shape[0] == first.shape[0] && x.shape[2] == first.shape[2], fn,
                      "keys [B,G,S,D], expected B and S of queries ", first.shape, ", got ", x.shape);
      if (&x != &first) detail::require_apart(fn, x, first);
    }
  }
  static void check_lengths(std::string_view fn, Index B, std::span<const Index> lengths) {
    detail::require(lengths.empty() || std::ssize(lengths) == B, fn, "lengths, expected one for each of ", B,
                    " batch entries, got ", std::ssize(lengths));
    for (const Index length : lengths)
      detail::require(0 <= length && length <= detail::most_positions, fn, "lengths, expected from 0 to 2^53, got ",
                      length);
  }

  detail::EmptyWhenMoved<detail::RotaryFrequencies> frequencies_;
  /// Only constructors name the function: where a program makes no Rotary, modules that could use one do not compile it.
  void (Rotary::*for_each_token_)(std::string_view, std::span<const detail::Layout>, const RotaryPositions&,
                                  std::span<const Index>, RotateToken) const = &Rotary::for_each_token;
};

/// A RotaryConfig or none, used as a std::optional of it.
///
/// It reaches the functions of RotaryConfig and Rotary through pointers that only its constructors from a configuration
/// name: a program without rotary compiles none of them (8 KB and 0.1 s of g++ -O2).
class OptionalRotary {
 public:
  OptionalRotary() = default;
  OptionalRotary(std::nullopt_t) {}  // NOLINT: converts as std::optional does
  OptionalRotary(const RotaryConfig& config) : config_(copy(config)), functions_(&functions) {}  // NOLINT: the same
  OptionalRotary(const std::optional<RotaryConfig>& config)                                      // NOLINT: the same
      : OptionalRotary(config ? OptionalRotary(*config) : OptionalRotary()) {}
  OptionalRotary(const OptionalRotary& other)
      : config_(other ? other.functions_->copy(*other) : nullptr), functions_(other.functions_) {}
  OptionalRotary(OptionalRotary&&) noexcept = default;
  OptionalRotary& operator=(const OptionalRotary& other) { return *this = OptionalRotary(other); }
  OptionalRotary& operator=(OptionalRotary&&) noexcept = default;
  ~OptionalRotary() = default;

  [[nodiscard]] bool has_value() const { return config_ != nullptr; }
  explicit operator bool() const { return has_value(); }
  const RotaryConfig& operator*() const { return *config_; }
  const RotaryConfig* operator->() const { return config_.get(); }
  RotaryConfig& operator*() { return *config_; }
  RotaryConfig* operator->() { return config_.get(); }

  /// The configuration, or an empty optional.
  operator std::optional<RotaryConfig>() const {  // NOLINT: both convert to each other
    return has_value() ? std::optional<RotaryConfig>(*config_) : std::nullopt;
  }
  [[nodiscard]] RotaryConfig value_or(const RotaryConfig& otherwise) const {
    return has_value() ? *config_ : otherwise;
  }
  /// Forgets the configuration.
  void reset() { config_.reset(); }

  /// The rotation for heads of this size, null without a configuration. Errors: as Rotary's constructor.
  [[nodiscard]] std::shared_ptr<const Rotary> make(Index head_size) const {
    return has_value() ? functions_->make(head_size, *config_) : nullptr;
  }

 private:
  struct Functions {
    std::shared_ptr<RotaryConfig> (*copy)(const RotaryConfig&);
    std::shared_ptr<const Rotary> (*make)(Index head_size, const RotaryConfig&);
  };
  [[gnu::cold]] static std::shared_ptr<RotaryConfig> copy(const RotaryConfig& config) {
    return std::make_shared<RotaryConfig>(config);
  }
  [[gnu::cold]] static std::shared_ptr<const Rotary> make_rotary(Index head_size, const RotaryConfig& config) {
    return std::make_shared<const Rotary>(head_size, config);
  }
  static constexpr Functions functions{.copy = copy, .make = make_rotary};

  std::shared_ptr<RotaryConfig> config_;
  const Functions* functions_ = nullptr;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
