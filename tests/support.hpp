#pragma once
// What the tests of attention, masks and scores share: random tensors, the oracle, and the bar that answers must meet.
//
// The oracle of every test is attn::reference on double tensors, with what a mask and a score function do folded into
// one additive [B,H,S,T] tensor by plain code of the test's own. The bar: the largest error is at most twice that of
// the plain formula in float (attn::reference on float tensors). So a test reads
//
//     expect_attention(random_inputs<float>(n, seed), attn::Causal{}, attn::NoScore{},
//                      [=](Position at) { return only_if(at.key <= at.row + n.T - n.S); });

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <attn/attn.hpp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <ostream>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace attn_test {

using attn::Index;
using attn::Position;
using attn::Tensor;
using attn::View;

inline constexpr double infinity = std::numeric_limits<double>::infinity();
inline constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// ---- Tensors ----------------------------------------------------------------------------------------------------

template <class To, class From>
[[nodiscard]] To to(From x) {
  return static_cast<To>(static_cast<attn::Accumulator<From>>(x));
}

template <class To, class From, int Rank>
[[nodiscard]] Tensor<To, Rank> cast(const Tensor<From, Rank>& x) {
  Tensor<To, Rank> y(x.dimensions());
  for (Index i = 0; i < x.size(); ++i) y.data()[i] = to<To>(x.data()[i]);
  return y;
}

/// Elements of variance spread^2 and mean 0, uniform, the same on every machine.
template <class T, int Rank>
[[nodiscard]] Tensor<T, Rank> random_tensor(const std::type_identity_t<std::array<Index, std::size_t{Rank}>>& shape,
                                            unsigned seed, double spread = 1.0) {
  auto x = attn::detail::make_tensor<T, Rank>(shape);
  std::mt19937 words(seed);
  for (Index i = 0; i < x.size(); ++i) {
    const double uniform = static_cast<double>(words()) * 0x1p-31 - 1.0;
    x.data()[i] = static_cast<T>(static_cast<float>(std::sqrt(3.0) * spread * uniform));
  }
  return x;
}

template <class T, int Rank>
[[nodiscard]] Tensor<T, Rank> filled(const std::type_identity_t<std::array<Index, std::size_t{Rank}>>& shape, T value) {
  auto x = attn::detail::make_tensor<T, Rank>(shape);
  x.setConstant(value);
  return x;
}

/// Whether two tensors agree in every bit.
template <class T, int Rank>
[[nodiscard]] bool same_bits(const Tensor<T, Rank>& a, const Tensor<T, Rank>& b) {
  return a.dimensions() == b.dimensions() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0);
}

/// How far apart two tensors are. Equal infinities and two NaN do not differ; a number differs from NaN infinitely.
struct Difference {
  double largest = 0, rms = 0;
};
inline double difference_of(double a, double b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0;
  return std::isfinite(a) && std::isfinite(b) ? std::abs(a - b) : infinity;
}
template <class T, class U, int Rank>
[[nodiscard]] Difference difference(const Tensor<T, Rank>& a, const Tensor<U, Rank>& b) {
  Difference result;
  for (Index i = 0; i < a.size(); ++i) {
    const double d = difference_of(to<double>(a.data()[i]), to<double>(b.data()[i]));
    result.largest = std::max(result.largest, d);
    result.rms += d * d;
  }
  if (a.size() > 0) result.rms = std::sqrt(result.rms / static_cast<double>(a.size()));
  return result;
}

/// The largest magnitude among the finite elements.
template <int Rank>
[[nodiscard]] double magnitude(const Tensor<double, Rank>& x) {
  double largest = 0;
  for (Index i = 0; i < x.size(); ++i)
    if (std::isfinite(x.data()[i])) largest = std::max(largest, std::abs(x.data()[i]));
  return largest;
}

// ---- Attention: sizes and inputs --------------------------------------------------------------------------------

/// Sizes: q [B,H,S,D], k [B,G,T,D], v [B,G,T,Dv].
struct Sizes {
  Index B = 1, H = 1, G = 1, S = 1, T = 1, D = 1, Dv = 1;

  [[nodiscard]] std::array<Index, 4> scores() const { return {B, H, S, T}; }
};
inline std::ostream& operator<<(std::ostream& out, const Sizes& n) {
  return out << "B=" << n.B << " H=" << n.H << " G=" << n.G << " S=" << n.S << " T=" << n.T << " D=" << n.D
             << " Dv=" << n.Dv;
}

/// Sizes that a mask or a score is tried on: the corners, and some at random. S != T, G < H, Dv != D, odd numbers.
inline std::vector<Sizes> many_sizes() {
  std::vector<Sizes> all = {
      {.B = 1, .H = 1, .G = 1, .S = 1, .T = 1, .D = 1, .Dv = 1},       // the smallest
      {.B = 2, .H = 4, .G = 2, .S = 5, .T = 9, .D = 8, .Dv = 6},       // less than a tile
      {.B = 2, .H = 6, .G = 1, .S = 1, .T = 77, .D = 12, .Dv = 5},     // decoding, multi-query
      {.B = 2, .H = 4, .G = 2, .S = 3, .T = 1203, .D = 20, .Dv = 17},  // decoding, many keys
      {.B = 1, .H = 1, .G = 1, .S = 1, .T = 601, .D = 130, .Dv = 33},  // decoding, fewer heads than threads
      {.B = 1, .H = 4, .G = 2, .S = 70, .T = 33, .D = 10, .Dv = 13},   // more queries than keys
      {.B = 1, .H = 1, .G = 1, .S = 19, .T = 23, .D = 1, .Dv = 3},     // head size 1
      {.B = 1, .H = 2, .G = 2, .S = 37, .T = 70, .D = 130, .Dv = 1},   // a long head
      {.B = 1, .H = 2, .G = 1, .S = 21, .T = 40, .D = 7, .Dv = 129},   // a longer one for values
      {.B = 1, .H = 2, .G = 1, .S = 203, .T = 259, .D = 17, .Dv = 9},  // several tiles both ways
      {.B = 1, .H = 1, .G = 1, .S = 141, .T = 1101, .D = 8, .Dv = 8},  // many tiles of keys
      {.B = 1, .H = 3, .G = 3, .S = 301, .T = 2, .D = 4, .Dv = 6},     // many of queries
      {.B = 0, .H = 2, .G = 1, .S = 3, .T = 4, .D = 5, .Dv = 6},       // nothing to do
      {.B = 2, .H = 2, .G = 1, .S = 0, .T = 4, .D = 5, .Dv = 6},
      {.B = 2, .H = 2, .G = 1, .S = 3, .T = 0, .D = 5, .Dv = 6},  // no key for anyone
  };
  std::mt19937 random(20260);
  const auto from = [&](Index first, Index last) {
    return first + static_cast<Index>(random() % static_cast<unsigned>(last - first + 1));
  };
  for (int i = 0; i < 7; ++i) {
    const Index G = from(1, 3);
    all.push_back({.B = from(1, 3),
                   .H = G * from(1, 3),
                   .G = G,
                   .S = from(1, 60),
                   .T = from(1, 150),
                   .D = from(1, 40),
                   .Dv = from(1, 40)});
  }
  return all;
}

template <class T>
struct Inputs {
  Sizes n;
  Tensor<T, 4> q, k, v;
};

template <class T>
[[nodiscard]] Inputs<T> random_inputs(const Sizes& n, unsigned seed, double spread = 1.0) {
  return {n, random_tensor<T, 4>({n.B, n.H, n.S, n.D}, 3 * seed, spread),
          random_tensor<T, 4>({n.B, n.G, n.T, n.D}, 3 * seed + 1, spread),
          random_tensor<T, 4>({n.B, n.G, n.T, n.Dv}, 3 * seed + 2)};
}
template <class To, class From>
[[nodiscard]] Inputs<To> cast(const Inputs<From>& in) {
  return {in.n, cast<To>(in.q), cast<To>(in.k), cast<To>(in.v)};
}

// ---- The oracle -------------------------------------------------------------------------------------------------

/// What a mask adds to a score: 0, a bias, or -infinity.
using PlainMask = std::function<double(Position)>;
/// What a score function makes of a scaled score.
using PlainScore = std::function<double(double, Position)>;

inline double only_if(bool keep) { return keep ? 0.0 : -infinity; }
inline double keep_all(Position) { return 0.0; }
inline double same_score(double score, Position) { return score; }

/// Calls f(Position) for every score; at.query is T - S more than at.row.
template <class F>
void for_each_position(const Sizes& n, std::span<const Index> query_start, const F& f) {
  for (Index b = 0; b < n.B; ++b)
    for (Index h = 0; h < n.H; ++h)
      for (Index s = 0; s < n.S; ++s)
        for (Index t = 0; t < n.T; ++t) {
          const Index start = query_start.empty() ? n.T - n.S : query_start[static_cast<std::size_t>(b)];
          f(Position{static_cast<std::int32_t>(b), static_cast<std::int32_t>(h), static_cast<std::int32_t>(s),
                     static_cast<std::int32_t>(start + s), static_cast<std::int32_t>(t)});
        }
}

/// Mask and score as one additive tensor [B,H,S,T] to the scores that `in` gives.
inline Tensor<double, 4> folded(const Inputs<double>& in, const PlainMask& mask, const PlainScore& score,
                                const attn::AttentionOptions& options) {
  auto sum = attn::detail::make_tensor<double, 4>(in.n.scores());
  const double scale = options.scale.value_or(1.0 / std::sqrt(static_cast<double>(in.n.D)));
  for_each_position(in.n, options.query_start, [&](Position at) {
    const Index g = at.head / (in.n.H / in.n.G);
    double x = 0;
    for (Index d = 0; d < in.n.D; ++d) x += in.q(at.batch, at.head, at.row, d) * in.k(at.batch, g, at.key, d);
    x *= scale;
    const double added = mask(at);
    sum(at.batch, at.head, at.row, at.key) = added == -infinity ? -infinity : score(x, at) - x + added;
  });
  return sum;
}

struct Answer {
  Tensor<double, 4> output;
  Tensor<double, 3> log_sum_exp;
  Tensor<double, 4> weights;
};

/// attn::reference, its results as double.
template <class T, class M, class F>
[[nodiscard]] Answer by_reference(const Inputs<T>& in, const M& mask, const F& score,
                                  const attn::AttentionOptions& options) {
  const Sizes& n = in.n;
  auto output = attn::detail::make_tensor<T, 4>({n.B, n.H, n.S, n.Dv});
  auto log_sum_exp = attn::detail::make_tensor<attn::Accumulator<T>, 3>({n.B, n.H, n.S});
  auto weights = attn::detail::make_tensor<T, 4>(n.scores());
  const attn::AttentionOutputs<T> out{output, log_sum_exp, weights};
  attn::reference::scaled_dot_product_attention_into(out, attn::detail::read(in.q), attn::detail::read(in.k),
                                                     attn::detail::read(in.v), mask, score, options);
  return {cast<double>(output), cast<double>(log_sum_exp), cast<double>(weights)};
}

/// The true answer, and what the plain formula makes of it in float.
struct Oracle {
  Answer exact;
  std::vector<Answer> in_float;  ///< with few rows, for several orders in which dot products are summed
  Answer rounding;               ///< what rounded operands may add to the error; parts are empty where there are none
};

/// The same attention with the elements of each query and key in another order.
template <class T>
[[nodiscard]] Inputs<T> rotated(const Inputs<T>& in, Index by) {
  Inputs<T> result = in;
  const auto rotate = [&](const Tensor<T, 4>& from, Tensor<T, 4>& to_) {
    for (Index i = 0; i < from.size(); ++i) {
      const Index d = i % in.n.D;
      to_.data()[i - d + (d + by) % in.n.D] = from.data()[i];
    }
  };
  rotate(in.q, result.q);
  rotate(in.k, result.k);
  return result;
}

template <class T>
[[nodiscard]] Oracle ask_oracle(const Inputs<T>& in, const PlainMask& mask, const PlainScore& score,
                                const attn::AttentionOptions& options) {
  const auto in_double = cast<double>(in);
  const auto exact_fold = folded(in_double, mask, score, options);
  Oracle oracle;
  oracle.exact = by_reference(in_double, attn::AdditiveMask(exact_fold), attn::NoScore{}, options);

  auto mask_in_float = attn::detail::make_tensor<float, 4>(in.n.scores());
  for_each_position(in.n, options.query_start, [&](Position at) {
    mask_in_float(at.batch, at.head, at.row, at.key) = static_cast<float>(mask(at));
  });
  const auto score_in_float = [&](float x, Position at) { return static_cast<float>(score(x, at)); };
  // Among few rows, the largest error is a matter of luck: one formula's may be a third of another's. More orders of
  // summation show how large it may be.
  const Index orders = in.n.B * in.n.H * in.n.S < 100 ? std::min<Index>(in.n.D, 5) : 1;
  for (Index i = 0; i < orders; ++i)
    oracle.in_float.push_back(by_reference(rotated(cast<float>(in), i * in.n.D / orders),
                                           attn::AdditiveMask(mask_in_float), score_in_float, options));
  if (std::is_same_v<T, Eigen::bfloat16> && attn::bf16_dots()) {  // weights are rounded before they are multiplied
    auto magnitudes = in_double;
    magnitudes.v = magnitudes.v.abs().eval();
    oracle.rounding.output = by_reference(magnitudes, attn::AdditiveMask(exact_fold), attn::NoScore{}, options).output;
    oracle.rounding.output = (oracle.rounding.output * 0x1.01p-8).eval();
  }
  return oracle;
}

// ---- The bar ----------------------------------------------------------------------------------------------------

/// Half an ulp of 1: what storing a result as T may add to its error.
template <class T>
inline constexpr double storage_error = 0;
template <>
inline constexpr double storage_error<Eigen::half> = 0x1p-11;
template <>
inline constexpr double storage_error<Eigen::bfloat16> = 0x1p-8;

/// Twice the plain formula's error. Where that is next to nothing (a single key, a lucky sum), a few ulp of the
/// result. For double, 2^-29 times as much, and twice that, since the oracle itself is a double.
template <class T, int Rank>
void expect_close(const char* what, const Tensor<T, Rank>& got, const Oracle& oracle,
                  Tensor<double, Rank> Answer::*part) {
  const Tensor<double, Rank>& exact = oracle.exact.*part;
  ASSERT_EQ(attn::detail::shape_of(got), attn::detail::shape_of(exact)) << what;
  Difference formula;
  for (const Answer& in_float : oracle.in_float) {
    const Difference one = difference(in_float.*part, exact);
    formula = {std::max(formula.largest, one.largest), std::max(formula.rms, one.rms)};
  }
  const double size = magnitude(exact);
  ASSERT_LT(formula.largest, 1e-2 * size + 1e-30) << what << ": the plain float formula is too far off to be a bar";
  double bar = std::max(2 * formula.largest, 4 * double{std::numeric_limits<float>::epsilon()} * size);
  if constexpr (std::is_same_v<T, double>) bar *= 2 * 0x1p-29;
  for (Index i = 0; i < got.size(); ++i) {
    const double expected = exact.data()[i];
    const double error = difference_of(to<double>(got.data()[i]), expected);
    const double rounding = (oracle.rounding.*part).size() > 0 ? (oracle.rounding.*part).data()[i] : 0.0;
    ASSERT_LE(error, std::isfinite(expected) ? bar + rounding + 1.01 * storage_error<T> * std::abs(expected) : 0.0)
        << what << " at " << i << " of " << got.size() << ": " << to<double>(got.data()[i]) << ", expected " << expected
        << "; the plain float formula errs by at most " << formula.largest << ", rms " << formula.rms;
  }
}

template <class T>
void expect_result(const attn::AttentionResult<T>& got, const Oracle& oracle, const attn::AttentionOptions& options) {
  expect_close("output", got.output, oracle, &Answer::output);
  if (options.log_sum_exp) expect_close("log_sum_exp", got.log_sum_exp, oracle, &Answer::log_sum_exp);
  if (options.weights) expect_close("weights", got.weights, oracle, &Answer::weights);
}

/// scaled_dot_product_attention with this mask and score gives what plain code says, output and log-sum-exp.
template <class T, class M, class F>
void expect_attention(const Inputs<T>& in, const M& mask, const F& score, const PlainMask& plain_mask,
                      const PlainScore& plain_score = same_score, attn::AttentionOptions options = {}) {
  SCOPED_TRACE(testing::Message() << in.n);
  options.log_sum_exp = true;
  const Oracle oracle = ask_oracle(in, plain_mask, plain_score, options);
  expect_result(attn::scaled_dot_product_attention(in.q, in.k, in.v, mask, score, options), oracle, options);
}

// ---- Errors -----------------------------------------------------------------------------------------------------

/// The text of the std::invalid_argument that `call` throws.
template <class Call>
[[nodiscard]] std::string error_of(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Whether a text holds these parts, in this order.
inline testing::AssertionResult reads(std::string_view text, std::initializer_list<std::string_view> parts) {
  std::size_t from = 0;
  for (const std::string_view part : parts) {
    const std::size_t found = text.find(part, from);
    if (found == std::string_view::npos)
      return testing::AssertionFailure() << "\"" << text << "\" lacks \"" << part << "\", or has it out of order";
    from = found + part.size();
  }
  return testing::AssertionSuccess() << text;
}

}  // namespace attn_test
