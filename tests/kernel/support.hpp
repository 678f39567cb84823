#pragma once
// What the tests of kernels share: every instruction set, numbers whose sums are exact, and memory in which a stray
// write shows.

#include <attn/kernel/isa/targets.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

namespace attn_test {

namespace kernel = attn::kernel;
using attn::Index;
using attn::Isa;

using Accumulators = testing::Types<float, double>;
using Storages = testing::Types<float, double, kernel::Half, kernel::Bfloat16>;

/// Calls f(isa) for every instruction set of this CPU, up to the first that fails.
template <class F>
void on_every_isa(const F& f) {
  for (const Isa isa : attn::supported_isas()) {
    SCOPED_TRACE(testing::Message() << isa_name(isa));
    f(isa);
    if (testing::Test::HasFailure()) return;
  }
}

[[nodiscard]] inline std::size_t as_size(Index n) { return static_cast<std::size_t>(n); }

/// Uniform numbers, the same on every machine.
template <class T>
[[nodiscard]] std::vector<T> numbers_between(double low, double high, Index n, unsigned seed) {
  std::mt19937 words(seed);
  std::vector<T> x(as_size(n));
  for (T& value : x) value = static_cast<T>(low + (high - low) * 0x1p-32 * static_cast<double>(words()));
  return x;
}

/// Whole numbers from -8 to 8: sums of a thousand of their products are exact in float and in double.
template <class T>
[[nodiscard]] std::vector<T> whole_numbers(Index n, unsigned seed) {
  std::mt19937 words(seed);
  std::vector<T> x(as_size(n));
  for (T& value : x) value = static_cast<T>(static_cast<int>(words() % 17U) - 8);
  return x;
}

/// A small whole number as a stored type, by the definition of the format; and back.
template <class Storage>
[[nodiscard]] Storage stored(double x) {
  if constexpr (std::is_same_v<Storage, float> || std::is_same_v<Storage, double>) {
    return static_cast<Storage>(x);
  } else {
    constexpr bool half = std::is_same_v<Storage, kernel::Half>;
    constexpr int mantissa_bits = half ? 10 : 7, bias = half ? 15 : 127;
    if (x == 0) return {0};
    int exponent = 0;
    const double fraction = 2 * std::frexp(std::abs(x), &exponent) - 1;  // |x| = (1 + fraction) 2^(exponent - 1)
    const int magnitude =
        ((exponent - 1 + bias) << mantissa_bits) + static_cast<int>(std::ldexp(fraction, mantissa_bits));
    return {static_cast<std::uint16_t>((x < 0 ? 0x8000 : 0) | magnitude)};
  }
}
template <class Storage>
[[nodiscard]] std::vector<Storage> stored(const std::vector<double>& x) {
  std::vector<Storage> y;
  for (const double value : x) y.push_back(stored<Storage>(value));
  return y;
}

template <class T>
[[nodiscard]] bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

/// Rows in a larger piece of memory, all of it filled with a sentinel.
template <class T>
class Fenced {
 public:
  Fenced(Index rows, Index columns, Index stride)
      : rows_(rows),
        columns_(columns),
        stride_(std::max<Index>(stride, 1)),
        all_(as_size(2 * margin + rows * stride_)) {
    std::memset(static_cast<void*>(all_.data()), sentinel, all_.size() * sizeof(T));
  }

  [[nodiscard]] T* data() { return all_.data() + margin; }
  [[nodiscard]] Index stride() const { return stride_; }
  [[nodiscard]] T& operator()(Index row, Index column) { return data()[row * stride_ + column]; }

  /// Fills the rows with these numbers, one row after the other.
  template <class From>
  void fill(const std::vector<From>& from) {
    for (Index i = 0; i < rows_ * columns_; ++i) (*this)(i / columns_, i % columns_) = static_cast<T>(from[as_size(i)]);
  }
  /// Whether nothing has been written outside of the rows.
  [[nodiscard]] bool intact() const {
    for (Index i = 0; i < std::ssize(all_); ++i) {
      const Index at = i - margin, row = at < 0 ? -1 : at / stride_;
      if (row >= 0 && row < rows_ && at % stride_ < columns_) continue;
      if (!is_sentinel(all_[as_size(i)])) return false;
    }
    return true;
  }
  [[nodiscard]] static bool is_sentinel(const T& x) {
    T unset;
    std::memset(static_cast<void*>(&unset), sentinel, sizeof unset);
    return same_bits(x, unset);
  }

 private:
  static constexpr Index margin = 160;   // more than the widest tile
  static constexpr int sentinel = 0xA5;  // as float and as double a tiny negative number

  Index rows_, columns_, stride_;
  std::vector<T> all_;
};

/// What a product starts from.
enum class Before { nothing, itself, rows, one_row };
inline constexpr Before all_befores[] = {Before::nothing, Before::itself, Before::rows, Before::one_row};

/// A product of whole numbers, and the memory that it is written to.
template <class A>
class ProductCase {
 public:
  struct Shape {
    Index rows, columns, depth;
    bool transposed;  ///< a(r, i) is a step from a(r, i + 1), and next to a(r + 1, i)
    Before before;
    bool factors;  ///< or all of them 1
    Index c_row;   ///< at least the columns in whole vectors
  };

  ProductCase(const Shape& shape, Index lanes)
      : shape_(shape),
        width_(attn::detail::round_up(shape.columns, lanes)),
        a_row_(shape.transposed ? 1 : shape.depth + 3),
        a_step_(shape.transposed ? shape.rows + 2 : 1),
        b_row_(width_ + 5),
        a_(whole_numbers<A>(std::max(shape.rows * a_row_, (shape.rows - 1) * a_row_ + (shape.depth - 1) * a_step_ + 1),
                            1)),
        b_(whole_numbers<A>(shape.depth == 0 ? 0 : (shape.depth - 1) * b_row_ + width_, 2)),
        before_(whole_numbers<A>(shape.rows * before_row + width_, 3)),
        start_(whole_numbers<A>(shape.rows * width_, 4)),
        factor_(shape.factors ? whole_numbers<A>(width_, 5) : std::vector<A>(as_size(width_), A{1})),
        c_(shape.rows, width_, shape.c_row) {
    if (shape.before == Before::itself) c_.fill(start_);
  }

  [[nodiscard]] kernel::Product<A> product() {
    kernel::Product<A> product{.a = a_.data(),
                               .a_row = a_row_,
                               .a_step = a_step_,
                               .b = b_.data(),
                               .b_row = b_row_,
                               .depth = shape_.depth,
                               .c = c_.data(),
                               .c_row = shape_.c_row,
                               .factor = factor_.data()};
    if (shape_.before == Before::itself) product.before = c_.data(), product.before_row = shape_.c_row;
    if (shape_.before == Before::rows) product.before = before_.data(), product.before_row = before_row;
    if (shape_.before == Before::one_row) product.before = before_.data(), product.before_row = 0;
    return product;
  }
  [[nodiscard]] const std::vector<A>& a() const { return a_; }
  [[nodiscard]] const std::vector<A>& b() const { return b_; }
  [[nodiscard]] const std::vector<A>& factor() const { return factor_; }

  /// c is the product, and nothing has been written but whole vectors of its rows.
  void check() {
    SCOPED_TRACE(testing::Message() << shape_.rows << " x " << shape_.columns << ", depth " << shape_.depth
                                    << (shape_.transposed ? ", a transposed" : "") << ", before "
                                    << static_cast<int>(shape_.before));
    for (Index r = 0; r < shape_.rows; ++r)
      for (Index n = 0; n < shape_.columns; ++n)
        ASSERT_EQ(static_cast<double>(c_(r, n)), expected(r, n)) << "row " << r << ", column " << n;
    ASSERT_TRUE(c_.intact()) << "something was written outside of c";
  }

 private:
  static constexpr Index before_row = 200;

  [[nodiscard]] double expected(Index r, Index n) const {
    double sum = 0;
    for (Index i = 0; i < shape_.depth; ++i)
      sum +=
          static_cast<double>(a_[as_size(r * a_row_ + i * a_step_)]) * static_cast<double>(b_[as_size(i * b_row_ + n)]);
    const auto factor = static_cast<double>(factor_[as_size(n)]);
    switch (shape_.before) {
      case Before::itself:
        return sum + static_cast<double>(start_[as_size(r * width_ + n)]) * factor;
      case Before::rows:
        return sum + static_cast<double>(before_[as_size(r * before_row + n)]) * factor;
      case Before::one_row:
        return sum + static_cast<double>(before_[as_size(n)]) * factor;
      case Before::nothing:
        break;
    }
    return sum * factor;
  }

  Shape shape_;
  Index width_;  // columns in whole vectors
  Index a_row_, a_step_, b_row_;
  std::vector<A> a_, b_, before_, start_, factor_;
  Fenced<A> c_;
};

}  // namespace attn_test
