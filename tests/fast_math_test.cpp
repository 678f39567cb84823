// A consumer compiled with -ffast-math, which lets the compiler assume that there is no infinity and no NaN: -inf masks,
// rows without keys and NaN keep their meaning. Expected values are computed here by hand, without exp, infinity or NaN,
// and both are made and recognized by their bits.
#include <attn/attn.hpp>

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#if !defined(__FAST_MATH__)
#error "this file is meant to be compiled with -ffast-math"
#endif

namespace {

using attn::Index;
using attn::Tensor;

template <class T>
using Word =
    std::conditional_t<sizeof(T) == 8, std::uint64_t, std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;

/// The bits of infinity: all of the exponent, nothing else.
template <class T>
constexpr Word<T> exponent_bits = std::is_same_v<T, double>        ? static_cast<Word<T>>(0x7FF0000000000000U)
                                  : std::is_same_v<T, float>       ? static_cast<Word<T>>(0x7F800000U)
                                  : std::is_same_v<T, Eigen::half> ? static_cast<Word<T>>(0x7C00U)
                                                                   : static_cast<Word<T>>(0x7F80U);
template <class T>
constexpr Word<T> sign_bit = static_cast<Word<T>>(Word<T>{1} << (8 * sizeof(T) - 1));

template <class T>
Word<T> bits(T x) {
  return std::bit_cast<Word<T>>(x);
}
template <class T>
bool is_nan(T x) {
  return (bits(x) & static_cast<Word<T>>(~sign_bit<T>)) > exponent_bits<T>;
}
template <class T>
bool is_minus_infinity(T x) {
  return bits(x) == (exponent_bits<T> | sign_bit<T>);
}
template <class T>
bool is_zero(T x) {
  return (bits(x) & static_cast<Word<T>>(~sign_bit<T>)) == 0;
}
template <class T>
T from_bits(Word<T> word) {
  volatile Word<T> hidden = word;  // or the compiler sees the constant and may do with it what it likes
  return std::bit_cast<T>(static_cast<Word<T>>(hidden));
}
template <class T>
T nan() {
  return from_bits<T>(exponent_bits<T> | (exponent_bits<T> >> 1));
}
template <class T>
T minus_infinity() {
  return from_bits<T>(exponent_bits<T> | sign_bit<T>);
}

/// How far a result may be off, in parts of 1.
template <class T>
constexpr double bar = std::is_same_v<T, double>        ? 1e-13
                       : std::is_same_v<T, float>       ? 3e-6
                       : std::is_same_v<T, Eigen::half> ? 4e-3
                                                        : 3e-2;

template <class T>
double number(T x) {
  return static_cast<double>(x);
}

/// Runs a test body once per instruction set.
template <class Body>
void on_all(const Body& body) {
  const attn::Isa before = attn::active_isa();
  const char* forced = std::getenv("ATTN_ISA");
  for (const attn::Isa isa : attn::supported_isas()) {
    if (forced != nullptr && *forced != '\0' && isa != before) continue;
    attn::set_active_isa(isa);
    SCOPED_TRACE(std::string(isa_name(isa)));
    body();
  }
  attn::set_active_isa(before);
}

template <class T>
class FastMath : public testing::Test {};
using Types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(FastMath, Types);

/// Scores whose exp is known: q k = log of a weight from 1 to 4, so a row of the output is sum w v / sum w over the keys
/// kept. Head size 2: the second element of q is 0 and of k is free.
template <class T>
struct Problem {
  Index S, keys;
  Tensor<T, 4> q, k, v;
  Problem(Index queries, Index count) : S(queries), keys(count), q(1, 1, S, 2), k(1, 1, keys, 2), v(1, 1, keys, 3) {
    for (Index s = 0; s < S; ++s) q(0, 0, s, 0) = T(1), q(0, 0, s, 1) = T(0);
    for (Index t = 0; t < keys; ++t) {
      k(0, 0, t, 0) = static_cast<T>(std::log(weight(t)));
      k(0, 0, t, 1) = T(2);
      for (Index d = 0; d < 3; ++d) v(0, 0, t, d) = static_cast<T>(value(t, d));
    }
  }
  static double weight(Index t) { return static_cast<double>(1 + t % 4); }
  static double value(Index t, Index d) { return static_cast<double>((7 * t + 3 * d) % 11) / 16.0; }

  /// The output is as computed by hand, for the keys that keep(s, t) keeps; rows that skip(s) names are not looked at.
  template <class Keep, class Skip>
  void expect(const attn::AttentionResult<T>& got, const Keep& keep, const Skip& skip) const {
    for (Index s = 0; s < S; ++s) {
      if (skip(s)) continue;
      double sum = 0.0;
      std::array<double, 3> y{};
      for (Index t = 0; t < keys; ++t)
        if (keep(s, t)) {
          sum += weight(t);
          for (Index d = 0; d < 3; ++d) y[static_cast<std::size_t>(d)] += weight(t) * value(t, d);
        }
      for (Index d = 0; d < 3; ++d) {
        const T result = got.output(0, 0, s, d);
        const double expected = sum == 0.0 ? 0.0 : y[static_cast<std::size_t>(d)] / sum;
        ASSERT_TRUE(sum == 0.0 ? is_zero(result) : !is_nan(result) && std::abs(number(result) - expected) <= bar<T>)
            << "row " << s << ": " << number(result) << ", expected " << expected;
      }
      const auto lse = got.log_sum_exp(0, 0, s);
      ASSERT_TRUE(sum == 0.0 ? is_minus_infinity(lse) : !is_nan(lse) && std::abs(number(lse) - std::log(sum)) <= bar<T>)
          << "log-sum-exp of row " << s << ": " << number(lse) << ", of a sum of " << sum;
    }
  }
  template <class Keep>
  void expect(const attn::AttentionResult<T>& got, const Keep& keep) const {
    expect(got, keep, [](Index) { return false; });
  }
  template <class M, class F = attn::NoScore>
  attn::AttentionResult<T> run(const M& mask, const F& score = {}) const {
    return attn::scaled_dot_product_attention(q, k, v, mask, score, {.scale = 1.0, .log_sum_exp = true});
  }
};

/// Few queries (decoding), and more than a panel; keys that fill steps and that do not.
constexpr std::array<std::array<Index, 2>, 6> sizes{{{1, 5}, {1, 700}, {3, 64}, {5, 9}, {60, 130}, {200, 64}}};

TYPED_TEST(FastMath, KeepsAdditiveMasksOfMinusInfinity) {
  using T = TypeParam;
  const auto keep = [](Index s, Index t) { return s % 5 != 4 && (s + t) % 3 != 0; };  // every fifth row keeps nothing
  on_all([&] {
    for (const auto& [S, keys] : sizes) {
      const Problem<T> p(S, keys);
      Tensor<T, 2> mask(S, keys);
      for (Index s = 0; s < S; ++s)
        for (Index t = 0; t < keys; ++t) mask(s, t) = keep(s, t) ? T(0) : minus_infinity<T>();
      p.expect(p.run(mask), keep);
    }
  });
}

TYPED_TEST(FastMath, GivesZeroForRowsWithoutKeys) {
  using T = TypeParam;
  on_all([&] {
    for (const auto& [S, keys] : sizes) {
      const Problem<T> p(S, keys);
      p.expect(p.run([](attn::Position) { return false; }), [](Index, Index) { return false; });
      p.expect(p.run([](attn::Position at) { return at.row % 2 == 0; }), [](Index s, Index) { return s % 2 == 0; });
      const std::array<Index, 1> none{0};
      p.expect(p.run(attn::Padding(none)), [](Index, Index) { return false; });
    }
    const Problem<T> wide(70, 6);  // lower-right causal: the first 64 rows see nothing
    wide.expect(wide.run(attn::Causal{}), [](Index s, Index t) { return t <= s - 64; });
  });
}

TYPED_TEST(FastMath, KeepsTypedMasks) {
  using T = TypeParam;
  on_all([&] {
    for (const auto& [S_, keys_] : sizes) {
      const Index S = S_, keys = keys_;
      const Problem<T> p(S, keys);
      const std::array<Index, 1> length{keys - 3};
      Tensor<bool, 2> allowed(S, keys);
      for (Index s = 0; s < S; ++s)
        for (Index t = 0; t < keys; ++t) allowed(s, t) = (s * t) % 4 != 1;
      p.expect(p.run(attn::Causal{} & attn::SlidingWindow(20)), [&](Index s, Index t) {
        const Index query = keys - S + s;
        return t <= query && t > query - 20;
      });
      p.expect(p.run(attn::KeepMask(allowed) & attn::Padding(length)),
               [&](Index s, Index t) { return allowed(s, t) && t < keys - 3; });
    }
  });
}

TYPED_TEST(FastMath, KeepsScoresOfMinusInfinity) {
  using T = TypeParam;
  const auto score = [](auto s, attn::Position at) {
    return at.key % 3 == 1 ? from_bits<decltype(s)>(exponent_bits<decltype(s)> | sign_bit<decltype(s)>) : s;
  };
  on_all([&] {
    for (const auto& [S, keys] : sizes) {
      const Problem<T> p(S, keys);
      p.expect(p.run(attn::NoMask{}, score), [](Index, Index t) { return t % 3 != 1; });
    }
  });
}

TYPED_TEST(FastMath, KeepsNanInItsOwnRow) {
  using T = TypeParam;
  on_all([&] {
    for (const auto& [S_, keys] : sizes) {
      const Index S = S_, bad = S / 2;
      Problem<T> p(S, keys);
      p.q(0, 0, bad, 1) = nan<T>();
      const auto got = p.run(attn::NoMask{});
      for (Index d = 0; d < 3; ++d) ASSERT_TRUE(is_nan(got.output(0, 0, bad, d))) << "row " << bad << " of " << S;
      ASSERT_TRUE(is_nan(got.log_sum_exp(0, 0, bad)))
          << "row " << bad << " of " << S << ": " << number(got.log_sum_exp(0, 0, bad));
      p.expect(
          got, [](Index, Index) { return true; }, [&](Index s) { return s == bad; });
    }
  });
}

/// A NaN in a mask, at the first, a middle or the last key of query `bad`, reaches that query alone.
template <class T, class Attend>
void expect_nan_in_one_row(Index S, Index keys, Index bad, const Attend& attend) {
  const Problem<T> p(S, keys);
  for (const Index at : {Index{0}, keys / 2, keys - 1}) {
    Tensor<T, 2> mask(S, keys);
    mask.setZero();
    mask(bad, at) = nan<T>();
    const auto got = attend(p, mask);
    for (Index d = 0; d < 3; ++d)
      ASSERT_TRUE(is_nan(got.output(0, 0, bad, d))) << "key " << at << " of " << keys << ", " << S << " queries";
    p.expect(
        got, [](Index, Index) { return true; }, [&](Index s) { return s == bad; });
  }
}

TYPED_TEST(FastMath, KeepsNanOfASingleScore) {
  using T = TypeParam;
  on_all([&] {
    for (const auto& [S, keys] : sizes)
      expect_nan_in_one_row<T>(S, keys, S - 1,
                               [](const Problem<T>& p, const Tensor<T, 2>& mask) { return p.run(mask); });
  });
}

TYPED_TEST(FastMath, KeepsNanOfAStoredLayerInItsRow) {
  using T = TypeParam;
  on_all([&] {
    for (const auto format : {attn::WeightFormat::bfloat16, attn::WeightFormat::int8, attn::WeightFormat::int4}) {
      attn::Linear<T> linear(70, 5, true, 1);
      linear.store_weights(format);
      Tensor<T, 2> x(3, 70);
      x.setConstant(T(1));
      x(1, 40) = nan<T>();
      const Tensor<T, 2> y = linear.forward(x);
      for (Index o = 0; o < 5; ++o) {
        ASSERT_TRUE(is_nan(y(1, o))) << weight_format_name(format);
        ASSERT_FALSE(is_nan(y(0, o)) || is_nan(y(2, o))) << weight_format_name(format);
      }
      x(1, 40) = T(0);
      ASSERT_FALSE(is_nan(linear.forward(x)(1, 0)));
    }
  });
}

TYPED_TEST(FastMath, KeepsNanOfAPaddedKeyOut) {
  using T = TypeParam;
  on_all([&] {
    for (const auto& [S, keys_] : sizes) {
      const Index keys = keys_;
      Problem<T> p(S, keys);
      for (Index d = 0; d < 2; ++d) p.k(0, 0, keys - 1, d) = nan<T>();
      for (Index d = 0; d < 3; ++d) p.v(0, 0, keys - 1, d) = nan<T>();
      const std::array<Index, 1> length{keys - 1};
      p.expect(p.run(attn::Padding(length)), [&](Index, Index t) { return t < keys - 1; });
    }
  });
}

TYPED_TEST(FastMath, KeepsInfinityAndNanInSoftmax) {
  using T = TypeParam;
  on_all([&] {
    for (const Index columns : {1, 4, 16, 33, 500}) {
      Tensor<T, 2> x(4, columns);
      double sum = 0.0;
      const auto kept = [&](Index t) { return t % 5 != 3; };
      for (Index t = 0; t < columns; ++t) {
        const auto log = static_cast<T>(std::log(Problem<T>::weight(t)));
        x(0, t) = kept(t) ? log : minus_infinity<T>();
        x(1, t) = minus_infinity<T>();
        x(2, t) = t == columns / 2 ? nan<T>() : log;
        x(3, t) = T(-60000);  // far below, but live: uniform
        if (kept(t)) sum += Problem<T>::weight(t);
      }
      const auto y = attn::Softmax<T>().forward(x);
      double total = 0.0, uniform = 0.0;
      for (Index t = 0; t < columns; ++t) {
        ASSERT_NEAR(number(y(0, t)), kept(t) ? Problem<T>::weight(t) / sum : 0.0, kept(t) ? bar<T> : 0.0);
        ASSERT_TRUE(is_zero(y(1, t)));
        ASSERT_TRUE(is_nan(y(2, t))) << "column " << t << " of " << columns;
        total += number(y(0, t));
        uniform += number(y(3, t));
      }
      ASSERT_NEAR(total, 1.0, bar<T> * 2);
      ASSERT_NEAR(uniform, 1.0, bar<T> * 2);
    }
  });
}

// In the softmax of {0, x}, the ratio of the two results is e^x.
TYPED_TEST(FastMath, KeepsTheAccuracyOfExp) {
  using T = TypeParam;
  on_all([&] {
    for (int i = 1; i < 2000; ++i) {
      Tensor<T, 1> x(2);
      x(0) = T(0);
      x(1) = static_cast<T>(-9.0 * i / 2000);
      const auto y = attn::Softmax<T>().forward(x);
      const double exact = std::exp(number(x(1)));
      constexpr bool is_float = std::is_same_v<T, float>, is_double = std::is_same_v<T, double>;
      ASSERT_NEAR(number(y(1)) / number(y(0)) / exact, 1.0,
                  is_double  ? 1e-15
                  : is_float ? 4e-7
                             : bar<T>)
          << number(x(1));
    }
  });
}

// A row whose mask keeps nothing gives the bias of the output projection.
TYPED_TEST(FastMath, KeepsMasksOfMinusInfinityInAModule) {
  using T = TypeParam;
  attn::LlamaAttention<T> module(8, 2);
  module.eval();
  Tensor<T, 3> x(1, 6, 8);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(static_cast<double>(i % 7) * 0.25 - 0.75);
  Tensor<T, 2> mask(6, 6);
  for (Index s = 0; s < 6; ++s)
    for (Index t = 0; t < 6; ++t) mask(s, t) = s == 3 || t > s ? minus_infinity<T>() : T(0);
  const auto bias = module.out_proj().bias();
  on_all([&] {
    const auto y = module.forward(x, mask);
    const auto causal = module.forward(x, attn::Causal{});
    for (Index s = 0; s < 6; ++s)
      for (Index e = 0; e < 8; ++e) {
        ASSERT_FALSE(is_nan(y(0, s, e)));
        ASSERT_NEAR(number(y(0, s, e)), s == 3 ? number(bias(e)) : number(causal(0, s, e)), bar<T>) << "row " << s;
      }
  });
}

// The program itself runs with flush-to-zero.
TEST(FastMathConversions, KeepSubnormalHalves) {
  on_all([] {
    const Eigen::half tiny = from_bits<Eigen::half>(0x0346);  // 5e-5, below half's smallest normal number
    for (const Index queries : {1, 30}) {
      Tensor<Eigen::half, 4> q(1, 1, queries, 4), v(1, 1, 50, 4);
      q.setConstant(Eigen::half(0.F));
      v.setConstant(tiny);
      const auto y = attn::scaled_dot_product_attention(q, v, v).output;
      for (Index i = 0; i < y.size(); ++i) EXPECT_EQ(bits(y.data()[i]), bits(tiny));
    }
  });
}

// ---- Checks -----------------------------------------------------------------------------------------------------

template <class Call>
bool refuses(const Call& call) {
  try {
    call();
  } catch (const attn::Error&) {
    return true;
  }
  return false;
}

TEST(FastMathChecks, RefuseADropoutThatIsNoProbability) {
  const Problem<float> p(2, 3);
  for (const double bad :
       {nan<double>(), -nan<double>(), minus_infinity<double>(), -minus_infinity<double>(), -0.1, 1.5})
    EXPECT_TRUE(refuses([&] {
      (void)attn::scaled_dot_product_attention(p.q, p.k, p.v, attn::NoMask{}, attn::NoScore{}, {.dropout = bad});
    })) << bits(bad);
}

template <class T>
bool refuses_scale(double scale) {
  const Problem<T> p(2, 3);
  return refuses([&] {
    (void)attn::scaled_dot_product_attention(p.q, p.k, p.v, attn::NoMask{}, attn::NoScore{}, {.scale = scale});
  });
}
TEST(FastMathChecks, RefuseAScaleThatIsNotFinite) {
  for (const double bad : {nan<double>(), minus_infinity<double>(), -minus_infinity<double>()})
    EXPECT_TRUE(refuses_scale<float>(bad) && refuses_scale<double>(bad) && refuses_scale<Eigen::half>(bad))
        << bits(bad);
  EXPECT_TRUE(refuses_scale<float>(1e300));
  EXPECT_FALSE(refuses_scale<double>(1e300));
}

TEST(FastMathChecks, RefuseASoftCapThatIsNotPositive) {
  for (const float bad : {nan<float>(), minus_infinity<float>(), -minus_infinity<float>(), 0.F, -1.F})
    EXPECT_TRUE(refuses([&] { (void)attn::SoftCap(bad); })) << bits(bad);
  EXPECT_FALSE(refuses([] { (void)attn::SoftCap(1e-30F); }));
}

// ---- Score functions and the reference ----------------------------------------------------------------------------

TEST(FastMathScores, SoftCapKeepsNanAndBoundsInfinity) {
  const attn::SoftCap cap(from_bits<float>(bits(3.F)));
  EXPECT_TRUE(is_nan(cap(nan<float>(), {})) && is_nan(cap(nan<double>(), {})));
  EXPECT_NEAR(number(cap(minus_infinity<float>(), {})), -3.0, 1e-6);
  EXPECT_NEAR(number(cap(-minus_infinity<double>(), {})), 3.0, 1e-12);
  EXPECT_NEAR(number(cap(1.F, {})), 3.0 * std::tanh(1.0 / 3.0), 1e-6);
}

TYPED_TEST(FastMath, NanStaysInItsOwnRowUnderASoftCap) {
  using T = TypeParam;
  on_all([&] {
    for (const auto& [S_, keys] : sizes) {
      const Index S = S_, bad = S / 2;
      Problem<T> p(S, keys);
      p.q(0, 0, bad, 1) = nan<T>();
      const auto got = p.run(attn::NoMask{}, attn::SoftCap(1000.F));
      for (Index d = 0; d < 3; ++d) ASSERT_TRUE(is_nan(got.output(0, 0, bad, d))) << "row " << bad << " of " << S;
      for (Index s = 0; s < S; ++s) ASSERT_EQ(is_nan(got.output(0, 0, s, 0)), s == bad) << "row " << s << " of " << S;
    }
  });
}

/// The same by attn::reference.
template <class T, class M>
attn::AttentionResult<T> by_reference(const Problem<T>& p, const M& mask) {
  attn::AttentionResult<T> result{Tensor<T, 4>(1, 1, p.S, 3), Tensor<attn::Accumulator<T>, 3>(1, 1, p.S), {}};
  const attn::AttentionOutputs<T> out{result.output, result.log_sum_exp, {}};
  attn::reference::scaled_dot_product_attention_into<T>(out, p.q, p.k, p.v, mask, attn::NoScore{}, {.scale = 1.0});
  return result;
}

TYPED_TEST(FastMath, KeepsMinusInfinityAndNanInTheReference) {
  using T = TypeParam;
  constexpr Index S = 11, keys = 23, bad = 3;
  Problem<T> p(S, keys);
  p.q(0, 0, bad, 1) = nan<T>();
  const auto keep = [](Index s, Index t) { return s % 5 != 4 && (s + t) % 3 != 0; };  // every fifth row keeps nothing
  Tensor<T, 2> mask(S, keys);
  for (Index s = 0; s < S; ++s)
    for (Index t = 0; t < keys; ++t) mask(s, t) = keep(s, t) ? T(0) : minus_infinity<T>();
  const auto is_bad = [](Index s) { return s == bad; };
  const auto added = by_reference(p, attn::AdditiveMask(mask));
  p.expect(added, keep, is_bad);
  const auto kept = by_reference(p, attn::as_mask([&](attn::Position at) { return keep(at.row, at.key); }));
  p.expect(kept, keep, is_bad);
  for (Index d = 0; d < 3; ++d) EXPECT_TRUE(is_nan(added.output(0, 0, bad, d)) && is_nan(kept.output(0, 0, bad, d)));
  EXPECT_TRUE(is_nan(added.log_sum_exp(0, 0, bad)) && is_nan(kept.log_sum_exp(0, 0, bad)));
}

TYPED_TEST(FastMath, KeepsNanOfASingleScoreInTheReference) {
  using T = TypeParam;
  expect_nan_in_one_row<T>(
      3, 9, 1, [](const Problem<T>& p, const Tensor<T, 2>& mask) { return by_reference(p, attn::AdditiveMask(mask)); });
}

TEST(FastMathNumbers, AreRefusedIfTheyAreNotFinite) {
  for (const double x : {nan<double>(), minus_infinity<double>(), from_bits<double>(exponent_bits<double>)}) {
    EXPECT_TRUE(refuses([=] { attn::Dropout<float> dropout(x); }));
    EXPECT_TRUE(refuses([=] { attn::LlamaAttention<float> module(8, 2, x); }));
    const auto rotary = [=](attn::RotaryScaling scaling) {
      return refuses([&] { std::make_unique<attn::Rotary>(4, attn::RotaryConfig{.scaling = scaling}); });
    };
    EXPECT_TRUE(refuses([=] { attn::Rotary made(4, {.theta = x}); }));
    EXPECT_TRUE(rotary(attn::LinearScaling{x}));
    EXPECT_TRUE(rotary(attn::DynamicNtkScaling{x, 10}));
    EXPECT_TRUE(rotary(attn::Llama3Scaling{.low_frequency_factor = x}));
    EXPECT_TRUE(rotary(attn::Llama3Scaling{.high_frequency_factor = x}));
    EXPECT_TRUE(rotary(attn::YarnScaling{.factor = 2.0, .original_length = 10, .beta_fast = x}));
    EXPECT_TRUE(rotary(attn::YarnScaling{.factor = 2.0, .original_length = 10, .beta_slow = x}));
    EXPECT_TRUE(rotary(attn::YarnScaling{.factor = 2.0, .original_length = 10, .attention_factor = x}));
    EXPECT_TRUE(rotary(attn::LongRopeScaling{{1, x}, {1, 1}, 10, 2.0, {}}));
    EXPECT_TRUE(rotary(attn::LongRopeScaling{{1, 1}, {1, 1}, 10, 2.0, x}));
  }
  EXPECT_TRUE(refuses([] { attn::Rotary made(4, {.theta = 1e-300, .scaling = attn::LinearScaling{1e-300}}); }));
  EXPECT_FALSE(
      refuses([] { attn::Rotary made(4, {.scaling = attn::YarnScaling{.factor = 2.0, .original_length = 10}}); }));
}

}  // namespace
