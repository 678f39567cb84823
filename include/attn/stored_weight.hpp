// Floor 4. The weight of a linear layer in fewer bits than its activations have.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "kernel/weights.hpp"
#include "math.hpp"
#include "memory.hpp"
#include "parallel.hpp"
#include "scratch.hpp"
#include "tensor.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// How a linear layer stores its weight. int8 and int4 keep groups of 32 inputs of an output, which share a scale in half
/// precision: the arithmetic of GGUF's Q8_0 and Q4_0.
enum class WeightFormat : std::uint8_t {
  native,  ///< in the layer's own type
  bfloat16,
  half,
  int8,  ///< 8.5 bits a weight
  int4,  ///< 4.5 bits a weight
};

[[nodiscard]] constexpr std::string_view weight_format_name(WeightFormat format) {
  constexpr std::array<std::string_view, 5> names{"native", "bfloat16", "half", "int8", "int4"};
  const auto i = static_cast<std::size_t>(format);
  return i < names.size() ? names[i] : "unknown";
}

/// Whether groups of inputs share a scale.
[[nodiscard]] constexpr bool is_grouped(WeightFormat format) {
  return format == WeightFormat::int8 || format == WeightFormat::int4;
}

/// A matrix [out,in] in a format other than native, in the order in which kernels read it: kernel/weights.hpp.
class StoredWeight {
 public:
  StoredWeight() = default;
  /// Zeros. Errors: sizes that are negative or that memory cannot hold.
  StoredWeight(WeightFormat format, Index out, Index in) : StoredWeight(Unset{}, format, out, in) {
    std::ranges::fill(values_, std::byte{zero_byte()});
    std::ranges::fill(scales_, Eigen::half(0));
  }

  [[nodiscard]] WeightFormat format() const { return format_; }
  [[nodiscard]] Index out() const { return out_; }
  [[nodiscard]] Index in() const { return in_; }
  /// Inputs of a panel: whole groups, where there are groups.
  [[nodiscard]] Index inputs() const { return grouped() ? detail::round_up(in_, group) : in_; }
  [[nodiscard]] bool grouped() const { return is_grouped(format_); }
  /// Bytes of the weight and its scales.
  [[nodiscard]] Index bytes() const { return std::ssize(values_) + 2 * std::ssize(scales_); }
  [[nodiscard]] kernel::WeightPart part() const {
    return {.values = values_.data(), .scales = kernel::stored(scales_.data())};
  }

  /// The first of an output's weights [in] that a format cannot hold, or `in`: a finite one that, or whose scale, would become
  /// infinite; in int8 and int4 also infinities and NaN.
  [[nodiscard]] static Index first_unstorable(WeightFormat format, const float* row, Index in) {
    float largest = 0x1.FFFFFEp127F;
    if (format == WeightFormat::bfloat16) largest = 0x1.FEFFFEp127F;
    if (format == WeightFormat::half) largest = 65519.996F;
    if (format == WeightFormat::int8) largest = 65504.F * 127;
    if (format == WeightFormat::int4) largest = 65504.F * 8;
    const bool keeps_special = format == WeightFormat::bfloat16 || format == WeightFormat::half;
    for (Index i = 0; i < in; ++i) {
      const bool special = !detail::is_finite(row[i]);
      if (special ? !keeps_special : detail::magnitude_bits(row[i]) > detail::bits_of(largest)) return i;
    }
    return in;
  }

  /// Stores the weights [in] of an output, rounded to nearest.
  void set_row(Index o, const float* row) {
    if (!grouped()) {
      for (Index i = 0; i < in_; ++i) {
        if (format_ == WeightFormat::half)
          put(o, i, Eigen::half(row[i]));
        else
          put(o, i, Eigen::bfloat16(row[i]));
      }
      return;
    }
    for (Index first = 0; first < in_; first += group) set_group(o, first, row + first, std::min(group, in_ - first));
  }
  /// Reads the weights [in] of an output.
  void get_row(Index o, float* row) const {
    for (Index i = 0; i < in_; ++i) {
      if (format_ == WeightFormat::half)
        row[i] = static_cast<float>(get<Eigen::half>(o, i));
      else if (format_ == WeightFormat::bfloat16)
        row[i] = static_cast<float>(get<Eigen::bfloat16>(o, i));
      else
        row[i] = static_cast<float>(number(o, i) - zero()) * static_cast<float>(scale(o, i));
    }
  }

  /// Bytes of a block of GGUF's, which is a group: a scale, then the numbers.
  [[nodiscard]] static constexpr Index block_bytes(WeightFormat format) {
    return format == WeightFormat::int8 ? 2 + group : 2 + group / 2;
  }
  /// Bytes of an output's weights as files have them: whole blocks of groups, or numbers of 16 bits.
  [[nodiscard]] static constexpr Index row_bytes(WeightFormat format, Index in) {
    return is_grouped(format) ? detail::ceil_div(in, group) * block_bytes(format) : 2 * in;
  }
  /// The first output whose last block holds a number other than 0 past the end of the inputs, or `out`.
  [[nodiscard]] static Index first_overlong(WeightFormat format, Index out, Index in, const std::byte* rows) {
    if (!is_grouped(format) || in % group == 0) return out;
    const std::byte* block = rows - block_bytes(format);
    for (Index o = 0; o < out; ++o) {
      block += row_bytes(format, in);
      for (Index i = in % group; i < group; ++i)
        if (number_of_block(format, block, i) != 0) return o;
    }
    return out;
  }
  /// Writes an output's blocks, as files have them.
  void get_blocks(Index o, std::byte* block) const {
    for (Index first = 0; first < in_; first += group, block += block_bytes(format_)) {
      std::memcpy(block, static_cast<const void*>(&scale(o, first)), 2);
      std::byte* const numbers = block + 2;
      for (Index i = 0; i < (format_ == WeightFormat::int8 ? group : group / 2); ++i) {
        const int low = number(o, first + i);
        numbers[i] = static_cast<std::byte>(
            format_ == WeightFormat::int8 ? low - zero() : low | number(o, first + i + group / 2) << 4);
      }
    }
  }
  /// A weight of rows as files have them, [out][row_bytes]; without loss. Past the end of the inputs, blocks hold 0.
  [[nodiscard]] static StoredWeight of_rows(WeightFormat format, Index out, Index in, const std::byte* rows) {
    StoredWeight weight(Unset{}, format, out, in);
    detail::run_tasks(detail::ceil_div(out, width), static_cast<double>(weight.bytes()), 0,
                      [&](Index panel, std::byte*) { weight.load_panel(panel, rows); });
    return weight;
  }
  /// Calls f(first output, end of outputs, scratch) for parts of the outputs, on several threads where that is worth it: what
  /// f sets of different parts shares no memory. Scratch has room for `in` floats.
  template <class F>
  void for_each_part(const F& f) const {
    constexpr double work_of_a_weight = 20;
    detail::run_tasks(detail::ceil_div(out_, width), work_of_a_weight * static_cast<double>(out_ * in_),
                      in_ * Index{sizeof(float)}, [&](Index part, std::byte* memory) {
                        f(part * width, std::min(out_, (part + 1) * width), detail::Scratch(memory).take<float>(in_));
                      });
  }

 private:
  static constexpr Index width = kernel::panel_width<float>, group = kernel::group_inputs;

  struct Unset {};
  /// Takes the memory, whose numbers are not set.
  StoredWeight(Unset, WeightFormat format, Index out, Index in) : format_(format), out_(out), in_(in) {
    const auto checked = [&](Index rows, Index inputs) {
      return detail::checked_size<float>("Linear", "weight [out,in]",
                                         detail::as_shape(std::array<Index, 2>{rows, inputs}));
    };
    checked(out, in);  // then rounding up does not overflow
    const Index elements = checked(detail::round_up(out, width), inputs());
    values_.resize(static_cast<std::size_t>(elements * bits() / 8));
    if (grouped()) scales_.resize(static_cast<std::size_t>(elements / group));
  }

  [[nodiscard]] int bits() const {
    if (format_ == WeightFormat::int4) return 4;
    return format_ == WeightFormat::int8 ? 8 : 16;
  }
  /// A number of a block as files have it.
  [[nodiscard]] static int number_of_block(WeightFormat format, const std::byte* block, Index i) {
    const std::byte* const numbers = block + 2;
    if (format == WeightFormat::int8) return static_cast<std::int8_t>(numbers[i]);
    return std::to_integer<int>(numbers[i % (group / 2)] >> (i < group / 2 ? 0 : 4) & std::byte{15}) - 8;
  }
  /// The number that stands for 0.
  [[nodiscard]] int zero() const { return format_ == WeightFormat::int8 ? kernel::Int8::zero : kernel::Int4::zero; }
  [[nodiscard]] std::uint8_t zero_byte() const {
    if (format_ == WeightFormat::int8) return kernel::Int8::zero;
    return format_ == WeightFormat::int4 ? kernel::Int4::zero * 0x11 : 0;
  }

  /// The index of a weight in the order of panels, inputs, outputs.
  [[nodiscard]] std::size_t place(Index o, Index i) const {
    return static_cast<std::size_t>((o / width * inputs() + i) * width + o % width);
  }
  template <class Element>
  void put(Index o, Index i, Element x) {
    std::memcpy(values_.data() + place(o, i) * sizeof x, static_cast<const void*>(&x), sizeof x);
  }
  template <class Element>
  [[nodiscard]] Element get(Index o, Index i) const {
    Element x;
    std::memcpy(static_cast<void*>(&x), values_.data() + place(o, i) * sizeof x, sizeof x);
    return x;
  }
  [[nodiscard]] Eigen::half& scale(Index o, Index i) { return scales_[scale_place(o, i)]; }
  [[nodiscard]] const Eigen::half& scale(Index o, Index i) const { return scales_[scale_place(o, i)]; }
  [[nodiscard]] std::size_t scale_place(Index o, Index i) const {
    return static_cast<std::size_t>((o / width * (inputs() / group) + i / group) * width + o % width);
  }
  /// The byte with a number, and at which bit of it the number begins.
  struct Where {
    std::size_t byte;
    int shift;
  };
  [[nodiscard]] Where where(Index o, Index i) const {
    const Index word_inputs = 32 / bits(), word = (o / width * inputs() + i) / word_inputs * width + o % width;
    const int bit = kernel::first_bit_of(static_cast<int>(i % word_inputs));
    return {static_cast<std::size_t>(word * 4 + bit / 8), bit % 8};
  }
  [[nodiscard]] int number(Index o, Index i) const {
    const auto [byte, shift] = where(o, i);
    return std::to_integer<int>(values_[byte]) >> shift & ((1 << bits()) - 1);
  }
  void set_number(Index o, Index i, int number) {
    const auto [byte, shift] = where(o, i);
    const int others = std::to_integer<int>(values_[byte]) & ~(((1 << bits()) - 1) << shift);
    values_[byte] = static_cast<std::byte>(others | number << shift);
  }

  // ---- Rows of files, panel by panel ----

  /// Outputs that are loaded side by side: what they write fills cache lines, and few enough rows are read at once.
  static constexpr Index strip = 16;
  static constexpr Index four = 4;  // words of a vector

  void load_panel(Index panel, const std::byte* rows) {
    const Index first = panel * width, outputs = std::min(width, out_ - first), row = row_bytes(format_, in_);
    if (outputs < width) clear_panel(panel);
    for (Index o = 0; o < outputs; o += strip) {
      const std::byte* const from = rows + (first + o) * row;
      const Index n = std::min(strip, outputs - o);
      if (grouped())
        load_groups(first + o, n, from);
      else
        load_numbers(first + o, n, from);
    }
  }
  void clear_panel(Index panel) {
    const Index elements = width * inputs(), bytes = elements * bits() / 8;
    std::fill_n(values_.begin() + panel * bytes, bytes, std::byte{zero_byte()});
    if (grouped()) std::fill_n(scales_.begin() + panel * (elements / group), elements / group, Eigen::half(0));
  }
  /// Loads the blocks of n outputs of a panel, whose rows follow each other.
  void load_groups(Index first, Index n, const std::byte* rows) {
    const Index row = row_bytes(format_, in_), block = block_bytes(format_), words = bits();
    const auto [at, shift] = where(first, 0);
    std::byte* to = values_.data() + at;
    Eigen::half* scales = &scale(first, 0);
    for (Index g = 0; g < inputs() / group; ++g, rows += block, to += words * width * 4, scales += width) {
      for (Index o = 0; o < n; ++o) std::memcpy(static_cast<void*>(scales + o), rows + o * row, 2);
      if (format_ == WeightFormat::int8)
        load_group_of_8(to, n, rows + 2, row);
      else
        load_group_of_4(to, n, rows + 2, row);
    }
  }
  /// Signed bytes become bytes from 0: their highest bit flips. Words are those of the file.
  static void load_group_of_8(std::byte* to, Index n, const std::byte* rows, Index row) {
    for (Index word = 0; word < 8; word += four) {
      Index o = 0;
      for (; o + four <= n; o += four) load_four_by_four(to + (word * width + o) * 4, rows + o * row + word * 4, row);
      for (; o < n; ++o)
        for (Index w = word; w < word + four; ++w)
          set_word(to + (w * width + o) * 4, word_at(rows + o * row + w * 4) ^ 0x80808080U);
    }
  }
  /// Four words of four rows, transposed in registers.
  static void load_four_by_four(std::byte* to, const std::byte* rows, Index row) {
    using Words [[gnu::vector_size(16)]] = std::uint32_t;
    const auto words = [&](Index i) {
      Words four_words;
      std::memcpy(&four_words, rows + i * row, sizeof four_words);
      return four_words ^ 0x80808080U;
    };
    const Words a = words(0), b = words(1), c = words(2), d = words(3);
    const Words ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    const Words ab_end = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd_end = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Words columns[] = {__builtin_shufflevector(ab, cd, 0, 1, 4, 5), __builtin_shufflevector(ab, cd, 2, 3, 6, 7),
                             __builtin_shufflevector(ab_end, cd_end, 0, 1, 4, 5),
                             __builtin_shufflevector(ab_end, cd_end, 2, 3, 6, 7)};
    for (Index w = 0; w < four; ++w) std::memcpy(to + w * width * 4, &columns[w], sizeof columns[w]);
  }
  /// The file has inputs j and j + 16 in byte j; a word here has eight inputs that follow each other.
  static void load_group_of_4(std::byte* to, Index n, const std::byte* rows, Index row) {
    constexpr std::uint32_t low = 0x0F0F0F0FU;
    for (Index o = 0; o < n; ++o)
      for (Index pair = 0; pair < 2; ++pair) {
        const std::uint32_t a = word_at(rows + o * row + pair * 8), b = word_at(rows + o * row + pair * 8 + 4);
        set_word(to + (pair * width + o) * 4, (a & low) | (b & low) << 4);
        set_word(to + ((pair + 2) * width + o) * 4, (a >> 4 & low) | (b & ~low));
      }
  }
  /// Loads n rows of numbers of 16 bits.
  void load_numbers(Index first, Index n, const std::byte* rows) {
    std::byte* const to = values_.data() + place(first, 0) * 2;
    for (Index i = 0; i < in_; ++i)
      for (Index o = 0; o < n; ++o) std::memcpy(to + (i * width + o) * 2, rows + (o * in_ + i) * 2, 2);
  }
  [[nodiscard]] static std::uint32_t word_at(const std::byte* from) {
    std::uint32_t word = 0;
    std::memcpy(&word, from, sizeof word);
    return word;
  }
  static void set_word(std::byte* to, std::uint32_t word) { std::memcpy(to, &word, sizeof word); }

  // ---- Rounding ----

  /// Rounds a group. The scale maps its largest weight to 127 or, with 4 bits, to -8: these numbers reach further down than up.
  void set_group(Index o, Index first, const float* weights, Index n) {
    const auto smaller = [](float a, float b) { return std::abs(a) < std::abs(b); };
    const float extreme = *std::max_element(weights, weights + n, smaller);
    const Rounding rounding = format_ == WeightFormat::int8 ? Rounding{Eigen::half(std::abs(extreme) / 127), -127, 127}
                                                            : best_of_4_bits(extreme, weights, n);
    scale(o, first) = rounding.scale;
    for (Index i = 0; i < n; ++i) set_number(o, first + i, rounding.number(weights[i]) + zero());
  }
  /// How a group is rounded: number * scale.
  struct Rounding {
    Eigen::half scale;
    int least, most;

    [[nodiscard]] int number(float weight) const {
      const auto step = static_cast<float>(scale);
      const float steps = step == 0 ? 0 : weight / step;
      return std::clamp(static_cast<int>(std::lrint(std::clamp(steps, -1000.F, 1000.F))), least, most);
    }
    [[nodiscard]] float squared_error(const float* weights, Index n) const {
      float sum = 0;
      for (Index i = 0; i < n; ++i) {
        const float error = static_cast<float>(number(weights[i])) * static_cast<float>(scale) - weights[i];
        sum += error * error;
      }
      return sum;
    }
  };
  /// With 16 numbers it pays to try several scales: the one with the least squared error.
  [[nodiscard]] static Rounding best_of_4_bits(float extreme, const float* weights, Index n) {
    Rounding best{Eigen::half(extreme / -8), -8, 7};
    float least = best.squared_error(weights, n);
    for (int step = -8; step <= 8; ++step) {
      const Rounding other{Eigen::half(extreme / (-8 + 0.125F * static_cast<float>(step))), -8, 7};
      const float error = other.squared_error(weights, n);
      if (error < least) best = other, least = error;
    }
    return best;
  }

  WeightFormat format_ = WeightFormat::native;
  Index out_ = 0, in_ = 0;
  AlignedVector<std::byte> values_;
  AlignedVector<Eigen::half> scales_;  // [panel][group][output], of formats that have them
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
