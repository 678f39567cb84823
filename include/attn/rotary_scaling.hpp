// Floor 4. How rotary positions are configured: layouts, scalings, and the frequencies that follow from them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "error.hpp"
#include "math.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Which two elements of a head are rotated together.
enum class RotaryLayout : std::uint8_t {
  half_split,   ///< i and i + D/2: Hugging Face checkpoints
  interleaved,  ///< 2i and 2i + 1: Meta's checkpoints, llama2.c
};

/// Divides positions by `factor`.
/// Source: Chen et al., "Extending context window of large language models via positional interpolation", 2023.
struct LinearScaling {
  double factor;
};

/// Raises theta once a sequence is longer than `original_length`. Source: Hugging Face, "dynamic".
struct DynamicNtkScaling {
  double factor;
  Index original_length;
};

/// Divides low frequencies by `factor`, keeps high ones, and interpolates in between. Source: Llama 3.1.
struct Llama3Scaling {
  double factor = 8.0;
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  Index original_length = 8192;
};

/// Interpolates between scaled and plain frequencies along the dimensions, and scales scores by an attention factor.
/// Source: Peng et al., "YaRN", 2023.
struct YarnScaling {
  double factor;
  Index original_length;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  std::optional<double> attention_factor = {};  ///< 0.1 ln(factor) + 1 where not set
  bool truncate = true;                         ///< round the ends of the ramp to whole dimensions
};

// g++ 12 takes the vectors of a variant for some that may not be set, where it is inside an optional.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
/// Divides each frequency by a factor of its own, one set of factors for short sequences and one for long ones.
/// Source: Ding et al., "LongRoPE", 2024; Phi-3.
struct LongRopeScaling {
  std::vector<double> short_factors;            ///< up to original_length; one for each pair of elements
  std::vector<double> long_factors;             ///< beyond original_length; one for each pair of elements
  Index original_length;                        ///< the longest sequence of the first training
  double factor;                                ///< longest length / original_length
  std::optional<double> attention_factor = {};  ///< sqrt(1 + ln(factor) / ln(original_length)) where not set
};

using RotaryScaling =
    std::variant<std::monostate, LinearScaling, DynamicNtkScaling, Llama3Scaling, YarnScaling, LongRopeScaling>;

/// How queries and keys are rotated. The defaults are those of the first Llama.
struct RotaryConfig {
  RotaryLayout layout = RotaryLayout::half_split;  ///< which elements form a pair
  double theta = 10000.0;                          ///< base of the frequencies theta^(-2i/D)
  RotaryScaling scaling = {};                      ///< for sequences longer than the model was trained on; none
  Index dimensions = 0;                            ///< how many of a head's first elements are rotated; 0: all
  /// Takes the frequencies of a sequence of this many positions (0 or more), whatever its length. Dynamic and longrope
  /// scaling need it with a cache that holds more than original_length: keys in it keep the frequencies they came with.
  std::optional<Index> length = {};
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// The last position that rotary takes: up to 2^53 a double tells all integers apart.
inline constexpr Index most_positions =
    static_cast<Index>(std::min<std::int64_t>(std::int64_t{1} << 53, std::numeric_limits<Index>::max()));

/// A checked configuration for heads of one size, and the frequencies of its pairs.
class RotaryFrequencies {
 public:
  RotaryFrequencies() = default;
  RotaryFrequencies(Index head_size, const RotaryConfig& config)
      : config_(config), head_size_(head_size), rotated_(config.dimensions == 0 ? head_size : config.dimensions) {
    require(2 <= head_size && head_size <= Index{1} << 30 && head_size % 2 == 0, fn,
            "head size, expected an even number from 2 to 2^30, got ", head_size);
    require(rotated_ >= 2 && rotated_ % 2 == 0 && rotated_ <= head_size, fn,
            "dimensions, expected an even number up to the head size ", head_size, ", got ", rotated_);
    require(is_positive(config.theta), fn, "theta, expected a positive number, got ", config.theta);
    const Index length = config.length.value_or(0);
    require(0 <= length && length <= most_positions, fn, "length, expected from 0 to 2^53, got ", length);
    check_scaling();
    check_frequencies();
    if (config.length) return;
    if (const auto* s = scaling<DynamicNtkScaling>()) same_up_to_ = s->original_length;
    if (const auto* s = scaling<LongRopeScaling>()) same_up_to_ = s->original_length;
  }

  [[nodiscard]] const RotaryConfig& config() const { return config_; }
  [[nodiscard]] Index head_size() const { return head_size_; }
  [[nodiscard]] Index rotated() const { return rotated_; }        ///< elements of a head
  [[nodiscard]] Index same_up_to() const { return same_up_to_; }  ///< see Rotary

  /// The angle per position of each pair; see Rotary::frequencies.
  void get(Index length, std::span<double> result) const {
    length = config_.length.value_or(length);
    double theta = config_.theta;
    const auto dimensions = static_cast<double>(rotated_);
    if (const auto* s = scaling<DynamicNtkScaling>()) {
      const double stretch =
          static_cast<double>(std::max(length, s->original_length)) / static_cast<double>(s->original_length);
      if (rotated_ > 2) theta *= std::pow(s->factor * stretch - (s->factor - 1.0), dimensions / (dimensions - 2.0));
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

 private:
  static constexpr auto fn = "Rotary";

  // The scaling if it is S, else null. Not std::visit: each use of it compiles some 20 functions.
  template <class S>
  [[nodiscard]] const S* scaling() const {
    return std::get_if<S>(&config_.scaling);
  }

  // ---- Checks ----

  void check_scaling() const {
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
      require(config_.theta > 1.0, fn, "theta, expected a number above 1 with yarn scaling, got ", config_.theta);
    }
    if (const auto* s = scaling<LongRopeScaling>()) {
      check_factor(s->factor), check_length(s->original_length), check_attention_factor(s->attention_factor);
      for (const auto* factors : {&s->short_factors, &s->long_factors}) {
        require(std::ssize(*factors) == rotated_ / 2, fn, "longrope scaling, expected ", rotated_ / 2, " factors, got ",
                std::ssize(*factors));
        for (const double factor : *factors) check_factor(factor);
      }
    }
  }
  static void check_factor(double factor) {
    require(is_positive(factor), fn, "scaling factor, expected a positive number, got ", factor);
  }
  static void check_attention_factor(std::optional<double> factor) {
    if (factor) require(is_positive(*factor), fn, "attention_factor, expected a positive number, got ", *factor);
  }
  static void check_length(Index length) {
    require(2 <= length && length <= most_positions, fn, "original_length, expected from 2 to 2^53, got ", length);
  }
  static void check_range(const char* what, double low, double high) {
    require(is_positive(low) && is_positive(high) && low < high, fn, what, low, " and ", high);
  }
  /// Numbers that are fine by themselves may overflow together. The largest angles are those of the shortest or of the
  /// longest sequence.
  void check_frequencies() const {
    std::vector<double> frequencies(static_cast<std::size_t>(rotated_ / 2));
    for (const Index length : {Index{0}, most_positions}) {
      get(length, frequencies);
      for (const double frequency : frequencies)
        require(is_finite(frequency * static_cast<double>(most_positions)), fn,
                "frequencies, expected finite angles at all positions, got a frequency of ", frequency);
    }
  }

  // ---- Formulas ----

  /// The frequency of pair i, from the plain one, to which dynamic scaling has already been applied.
  [[nodiscard]] double scaled(double plain, std::size_t i, Index length) const {
    if (const auto* s = scaling<LinearScaling>()) return plain / s->factor;
    if (const auto* s = scaling<Llama3Scaling>()) {
      const double rotations = static_cast<double>(s->original_length) * plain / (2.0 * std::numbers::pi);
      const double keep = std::clamp(
          (rotations - s->low_frequency_factor) / (s->high_frequency_factor - s->low_frequency_factor), 0.0, 1.0);
      return keep * plain + (1.0 - keep) * plain / s->factor;
    }
    if (const auto* s = scaling<YarnScaling>()) {
      double low = yarn_dimension(*s, s->beta_fast), high = yarn_dimension(*s, s->beta_slow);
      if (s->truncate) low = std::floor(low), high = std::ceil(high);
      low = std::max(low, 0.0), high = std::min(high, static_cast<double>(rotated_ - 1));
      if (low == high) high += 0.001;  // no division by zero
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      return (1.0 - ramp) * plain + ramp * plain / s->factor;
    }
    if (const auto* s = scaling<LongRopeScaling>())
      return plain / (length > s->original_length ? s->long_factors : s->short_factors)[i];
    return plain;
  }
  /// The pair, a fraction, that makes this many rotations within the original length.
  [[nodiscard]] double yarn_dimension(const YarnScaling& s, double rotations) const {
    return static_cast<double>(rotated_) *
           std::log(static_cast<double>(s.original_length) / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(config_.theta));
  }

  RotaryConfig config_;
  Index head_size_ = 0;
  Index rotated_ = 0;
  Index same_up_to_ = std::numeric_limits<Index>::max();
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
