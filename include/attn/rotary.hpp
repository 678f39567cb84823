// Floor 4. Rotary position embedding, its scalings, and the two layouts in which checkpoints come.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "math.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Which two elements of a head are turned together.
enum class RotaryLayout : std::uint8_t {
  half_split,   ///< i and i + D/2: Hugging Face checkpoints
  interleaved,  ///< 2i and 2i + 1: Meta's checkpoints, llama2.c
};

/// Positions divided by `factor`. Source: Chen et al., "Extending context window ... via positional interpolation", 2023.
struct LinearScaling {
  double factor;
};
/// theta grows with the length once that passes `original_length`. Source: Hugging Face, "dynamic".
struct DynamicNtkScaling {
  double factor;
  Index original_length;
};
/// Low frequencies divided by `factor`, high ones kept, smooth in between. Source: Llama 3.1.
struct Llama3Scaling {
  double factor = 8.0;
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  Index original_length = 8192;
};
/// As Llama 3.1's in spirit, with a ramp over dimensions and warmer attention. Source: Peng et al., "YaRN", 2023.
struct YarnScaling {
  double factor;
  Index original_length;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  std::optional<double> attention_factor = {};  ///< 0.1 ln(factor) + 1 where not set
  bool truncate = true;                         ///< round the ramp's ends to whole dimensions
};
/// One factor per frequency, for short and for long input. Source: Ding et al., "LongRoPE", 2024; Phi-3.
struct LongRopeScaling {
  std::vector<double> short_factors, long_factors;  ///< rotary dimension / 2 of each
  Index original_length;
  double factor;                                ///< longest length / original_length
  std::optional<double> attention_factor = {};  ///< sqrt(1 + ln(factor) / ln(original_length)) where not set
};
using RotaryScaling =
    std::variant<std::monostate, LinearScaling, DynamicNtkScaling, Llama3Scaling, YarnScaling, LongRopeScaling>;

struct RotaryConfig {
  RotaryLayout layout = RotaryLayout::half_split;
  double theta = 10000.0;
  RotaryScaling scaling = {};
  Index dimensions = 0;  ///< how many of a head's first elements are turned; 0: all
  /// Frequencies as for a sequence of this many positions, whatever its length; 0 or more. Dynamic and longrope scaling
  /// need it with a cache that holds more than original_length: its keys are turned once, by the length of that time.
  std::optional<Index> length = {};
};

/// Turns pairs of elements of queries and keys by angles that grow with position, so that scores depend on distance.
/// Cosines and sines are float32 whatever the scalar (computed in double and rounded once). What a sequence becomes
/// depends on nothing but itself: dynamic and longrope scaling ask for its length, and others in its batch may differ.
/// Source: Su et al., "RoFormer", 2021.
class Rotary {
 public:
  /// Errors: a head size that is odd or below 2, theta or a factor that is not positive, factors of the wrong count,
  /// lengths past 2^53, frequencies that overflow.
  [[gnu::cold]] explicit Rotary(Index head_size, const RotaryConfig& config = {})
      : held_(Held{config, head_size, config.dimensions == 0 ? head_size : config.dimensions}) {
    detail::require(2 <= head_size && head_size <= Index{1} << 30 && head_size % 2 == 0, fn,
                    "head size, expected an even number from 2 to 2^30, got ", head_size);
    detail::require(turned() >= 2 && turned() % 2 == 0 && turned() <= head_size, fn,
                    "dimensions, expected an even number up to the head size ", head_size, ", got ", turned());
    detail::require(detail::is_positive(config.theta), fn, "theta, expected a positive number, got ", config.theta);
    const Index length = config.length.value_or(0);
    detail::require(0 <= length && length <= most_positions, fn, "length, expected from 0 to 2^53, got ", length);
    check_scaling();
    check_frequencies();
  }

  [[nodiscard]] const RotaryConfig& config() const { return held_->config; }
  [[nodiscard]] Index head_size() const { return held_->head_size; }

  /// The length up to which all sequences have the same frequencies. It is original_length with dynamic and longrope
  /// scaling, unless the configuration says a length; else there is no such limit.
  [[nodiscard]] Index same_up_to() const {
    if (!config().length) {
      if (const auto* s = scaling<DynamicNtkScaling>()) return s->original_length;
      if (const auto* s = scaling<LongRopeScaling>()) return s->original_length;
    }
    return std::numeric_limits<Index>::max();
  }

  /// The angle per position of each pair, for a sequence of `length` positions in all (two scalings ask for it, unless
  /// the configuration says a length).
  void frequencies(Index length, std::span<double> result) const {
    detail::require(std::ssize(result) == turned() / 2, "Rotary::frequencies", "expected room for ", turned() / 2,
                    ", got ", std::ssize(result));
    length = config().length.value_or(length);
    double theta = config().theta;
    const auto dimensions = static_cast<double>(turned());
    if (const auto* s = scaling<DynamicNtkScaling>()) {
      const double stretch =
          static_cast<double>(std::max(length, s->original_length)) / static_cast<double>(s->original_length);
      if (turned() > 2) theta *= std::pow(s->factor * stretch - (s->factor - 1.0), dimensions / (dimensions - 2.0));
    }
    for (std::size_t i = 0; i < result.size(); ++i) {
      const double plain = std::pow(theta, -2.0 * static_cast<double>(i) / dimensions);
      result[i] = scaled(plain, i, length);
    }
  }

  /// What cosines and sines are multiplied by: 1 but for yarn and longrope.
  [[nodiscard]] double attention_factor() const {
    if (const auto* s = scaling<YarnScaling>())
      return s->attention_factor.value_or(s->factor <= 1.0 ? 1.0 : 0.1 * std::log(s->factor) + 1.0);
    if (const auto* s = scaling<LongRopeScaling>())
      return s->attention_factor.value_or(
          s->factor <= 1.0 ? 1.0
                           : std::sqrt(1.0 + std::log(s->factor) / std::log(static_cast<double>(s->original_length))));
    return 1.0;
  }

  /// Turns x [B,H,S,D] in place; row s of batch entry b stands at position start[b] + s. `lengths`, one for each batch
  /// entry: how many positions its sequence has in all, where that is not start[b] + S (padding is none of its own).
  /// Errors: another head size, starts or lengths that are missing, negative or past 2^53, a last axis that is not
  /// contiguous, elements that are repeated by a stride of 0.
  template <Scalar T>
  void apply(View<T, 4> x, std::span<const Index> start, std::span<const Index> lengths = {}) const {
    const Index B = x.dimension(0), H = x.dimension(1), S = x.dimension(2), half = turned() / 2;
    check_view(detail::layout_of("view", x));
    check_positions(B, S, start, lengths);
    const auto length = [&](Index b) { return lengths.empty() ? at(start, b) + S : at(lengths, b); };

    if (B == 0 || H == 0 || S == 0) return;

    // Frequencies of each sequence, or of all at once.
    bool same = true;
    for (Index b = 0; b < B; ++b) same = same && (length(b) <= same_up_to() || length(b) == length(0));
    const Workspace::Frame frame;
    auto* const frequency = frame.take<double>(same ? half : B * half);
    for (Index b = 0; b < (same ? 1 : B); ++b)
      frequencies(length(b), {frequency + b * half, static_cast<std::size_t>(half)});

    const double factor = attention_factor();
    const bool interleaved = config().layout == RotaryLayout::interleaved;
    const int lanes = detail::worth_workers(B * S, static_cast<double>(B * S * turned()) * static_cast<double>(H + 20));
    auto* const tables = frame.take<float>(lanes * turned());
    detail::for_each_task(B * S, lanes, [&](Index task, int lane) {
      const Index b = task / S, s = task % S;
      float* const cosine = tables + lane * turned();
      float* const sine = cosine + half;
      const double* const of_sequence = frequency + (same ? 0 : b * half);
      for (Index i = 0; i < half; ++i) {
        const double angle = static_cast<double>(at(start, b) + s) * of_sequence[i];
        cosine[i] = static_cast<float>(std::cos(angle) * factor);
        sine[i] = static_cast<float>(std::sin(angle) * factor);
      }
      for (Index h = 0; h < H; ++h) turn(&x(b, h, s, 0), cosine, sine, half, interleaved);
    });
  }
  template <TensorOf<4> X>
  void apply(X& x, std::span<const Index> start, std::span<const Index> lengths = {}) const {
    apply(View<detail::Element<X>, 4>(x), start, lengths);
  }

 private:
  static constexpr auto fn = "Rotary";
  static constexpr Index most_positions =  // 2^53, as far as a double tells them all apart, or all that there are
      static_cast<Index>(std::min<std::int64_t>(std::int64_t{1} << 53, std::numeric_limits<Index>::max()));

  struct Held {
    RotaryConfig config;
    Index head_size = 0, turned = 0;
  };
  [[nodiscard]] Index turned() const { return held_->turned; }
  [[nodiscard]] static Index at(std::span<const Index> x, Index b) { return x[static_cast<std::size_t>(b)]; }

  /// Turns the pairs of one row.
  template <class T>
  static void turn(T* row, const float* cosine, const float* sine, Index half, bool interleaved) {
    using A = Accumulator<T>;
    for (Index i = 0; i < half; ++i) {
      T& first = row[interleaved ? 2 * i : i];
      T& second = row[interleaved ? 2 * i + 1 : i + half];
      const A u = static_cast<A>(first), v = static_cast<A>(second);
      const A c = static_cast<A>(cosine[i]), n = static_cast<A>(sine[i]);
      first = static_cast<T>(u * c - v * n);
      second = static_cast<T>(v * c + u * n);
    }
  }

  void check_view(const detail::Layout& x) const {
    constexpr auto where = "Rotary::apply";
    detail::require(head_size() > 0, where, "rotary, expected one with a head size, got one moved from");
    detail::require(x.shape[3] == head_size(), where, "last dimension, expected ", head_size(), ", got ", x.shape);
    detail::require(x.stride[3] == 1, where, "view, expected a contiguous last axis, got strides ", x.stride);
    detail::require_distinct(where, x);
  }
  static void check_positions(Index B, Index S, std::span<const Index> start, std::span<const Index> lengths) {
    constexpr auto where = "Rotary::apply";
    detail::require(std::ssize(start) == B, where, "start, expected one for each of ", B, " batch entries, got ",
                    std::ssize(start));
    for (const Index position : start) {
      detail::require(position >= 0, where, "start, expected at least 0, got ", position);
      detail::require(position <= most_positions - S, where, "start, expected ", S, " positions up to 2^53, got ",
                      position);
    }
    detail::require(lengths.empty() || std::ssize(lengths) == B, where, "lengths, expected one for each of ", B,
                    " batch entries, got ", std::ssize(lengths));
    for (const Index length : lengths)
      detail::require(0 <= length && length <= most_positions, where, "lengths, expected from 0 to 2^53, got ", length);
  }

  // The scaling, if it is this one. Not std::visit: each use of it compiles some 20 functions, with or without rotary.
  template <class S>
  [[nodiscard]] const S* scaling() const {
    return std::get_if<S>(&held_->config.scaling);
  }

  [[gnu::cold]] void check_scaling() const {
    if (const auto* s = scaling<LinearScaling>()) check_factor(s->factor);
    if (const auto* s = scaling<DynamicNtkScaling>()) check_factor(s->factor), check_length(s->original_length);
    if (const auto* s = scaling<Llama3Scaling>()) {
      check_factor(s->factor), check_length(s->original_length);
      check_range("llama3 scaling, expected 0 < low_frequency_factor < high_frequency_factor, got ",
                  s->low_frequency_factor, s->high_frequency_factor);
    }
    if (const auto* s = scaling<YarnScaling>()) {
      check_factor(s->factor), check_length(s->original_length), check_attention_factor(s->attention_factor);
      check_range("yarn scaling, expected 0 < beta_slow < beta_fast, got ", s->beta_slow, s->beta_fast);
      detail::require(config().theta > 1.0, fn, "theta, expected a number above 1 with yarn scaling, got ",
                      config().theta);
    }
    if (const auto* s = scaling<LongRopeScaling>()) {
      check_factor(s->factor), check_length(s->original_length), check_attention_factor(s->attention_factor);
      for (const auto* factors : {&s->short_factors, &s->long_factors}) {
        detail::require(std::ssize(*factors) == turned() / 2, fn, "longrope scaling, expected ", turned() / 2,
                        " factors, got ", std::ssize(*factors));
        for (const double factor : *factors) check_factor(factor);
      }
    }
  }
  static void check_factor(double factor) {
    detail::require(detail::is_positive(factor), fn, "scaling factor, expected a positive number, got ", factor);
  }
  static void check_attention_factor(std::optional<double> factor) {
    if (factor)
      detail::require(detail::is_positive(*factor), fn, "attention_factor, expected a positive number, got ", *factor);
  }
  static void check_length(Index length) {
    detail::require(2 <= length && length <= most_positions, fn, "original_length, expected from 2 to 2^53, got ",
                    length);
  }
  static void check_range(const char* what, double low, double high) {
    detail::require(detail::is_positive(low) && detail::is_positive(high) && low < high, fn, what, low, " and ", high);
  }
  /// Numbers that are fine by themselves may overflow together. Angles are the largest for short or for long sequences.
  void check_frequencies() const {
    const Workspace::Frame frame;
    const std::span<double> frequency(frame.take<double>(turned() / 2), static_cast<std::size_t>(turned() / 2));
    for (const Index length : {Index{0}, most_positions}) {
      frequencies(length, frequency);
      for (const double f : frequency)
        detail::require(detail::is_finite(f * static_cast<double>(most_positions)), fn,
                        "frequencies, expected finite angles at all positions, got a frequency of ", f);
    }
  }

  // The frequency of pair i, from the plain one; a dynamic scaling is in that already.
  [[nodiscard]] double scaled(double plain, std::size_t i, Index length) const {
    if (const auto* s = scaling<LinearScaling>()) return plain / s->factor;
    if (const auto* s = scaling<Llama3Scaling>()) {
      const double turns = static_cast<double>(s->original_length) * plain / (2.0 * std::numbers::pi);
      const double keep = std::clamp(
          (turns - s->low_frequency_factor) / (s->high_frequency_factor - s->low_frequency_factor), 0.0, 1.0);
      return keep * plain + (1.0 - keep) * plain / s->factor;
    }
    if (const auto* s = scaling<YarnScaling>()) {
      double low = yarn_dimension(*s, s->beta_fast), high = yarn_dimension(*s, s->beta_slow);
      if (s->truncate) low = std::floor(low), high = std::ceil(high);
      low = std::max(low, 0.0), high = std::min(high, static_cast<double>(turned() - 1));
      if (low == high) high += 0.001;  // no division by zero
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      return (1.0 - ramp) * plain + ramp * plain / s->factor;
    }
    if (const auto* s = scaling<LongRopeScaling>())
      return plain / (length > s->original_length ? s->long_factors : s->short_factors)[i];
    return plain;
  }
  [[nodiscard]] double yarn_dimension(const YarnScaling& s,
                                      double turns) const {  // which pair turns that often over the original length
    return static_cast<double>(turned()) *
           std::log(static_cast<double>(s.original_length) / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(config().theta));
  }

  detail::EmptyWhenMoved<Held> held_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {

template <class T, int Rank>
Tensor<T, Rank> reorder(View<const T, Rank> x, Index heads, bool to_half_split, std::string_view fn) {
  const Index rows = x.dimension(0);
  require(heads >= 1 && rows % (2 * heads) == 0, fn, "first dimension, expected a multiple of twice ", heads,
          " heads, got ", as_shape(x.shape()));
  require(is_packed(x), fn, "views, expected a packed tensor");
  auto result = make_tensor<T, Rank>(x.shape());
  const Index d = rows / heads, width = x.size() / std::max<Index>(rows, 1);
  for (Index r = 0; r < rows; ++r) {
    const Index i = r % d / 2 + (r % 2) * d / 2;  // where row r of interleaved pairs stands when halves are split
    const Index split = r / d * d + i;
    const Index from = to_half_split ? r : split, to = to_half_split ? split : r;
    std::copy_n(x.data() + from * width, width, result.data() + to * width);
  }
  return result;
}
}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Reorders the rows of a query or key weight [heads*D, in] (or bias [heads*D]) made for interleaved rotary, so that
/// half-split rotary gives the same scores.
template <TensorOf<2> X>
[[nodiscard]] Tensor<detail::Element<X>, 2> to_half_split(const X& weight, Index heads) {
  return detail::reorder(detail::read(weight), heads, true, "to_half_split");
}
template <TensorOf<1> X>
[[nodiscard]] Tensor<detail::Element<X>, 1> to_half_split(const X& bias, Index heads) {
  return detail::reorder(detail::read(bias), heads, true, "to_half_split");
}

/// The way back: from half-split to interleaved.
template <TensorOf<2> X>
[[nodiscard]] Tensor<detail::Element<X>, 2> to_interleaved(const X& weight, Index heads) {
  return detail::reorder(detail::read(weight), heads, false, "to_interleaved");
}
template <TensorOf<1> X>
[[nodiscard]] Tensor<detail::Element<X>, 1> to_interleaved(const X& bias, Index heads) {
  return detail::reorder(detail::read(bias), heads, false, "to_interleaved");
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
