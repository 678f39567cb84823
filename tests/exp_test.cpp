// The kernels' exp on each instruction set, and the tanh of score functions: over every float. 20 s for all instruction sets.
#include <attn/attn.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

// The kernels' functions are inlined into callers of their own target only, so each gets a region like theirs.
#define ATTN_TEST_FUNCTIONS(isa)                                                                        \
  namespace isa##_functions {                                                                           \
    template <class A, bool exact>                                                                      \
    void exp(const A* x, A* y, attn::Index n) {                                                         \
      for (attn::Index i = 0; i < n; i += attn::kernel::isa::lanes<A>)                                  \
        attn::kernel::isa::store(y + i, attn::kernel::isa::exp<exact>(attn::kernel::isa::load(x + i))); \
    }                                                                                                   \
    inline void tanh(const float* x, float* y, attn::Index n) {                                         \
      for (attn::Index i = 0; i < n; ++i) y[i] = attn::detail::tanh(x[i]);                              \
    }                                                                                                   \
  }

ATTN_TEST_FUNCTIONS(baseline)
#if ATTN_X86_TARGETS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
ATTN_TEST_FUNCTIONS(avx2)
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")
#endif
ATTN_TEST_FUNCTIONS(avx512)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#undef ATTN_TEST_FUNCTIONS

namespace {

using attn::Index;
using attn::Isa;

template <class A>
using Function = void (*)(const A* x, A* y, Index n);

template <class A, bool exact = true>
Function<A> exp_of(Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx2) return avx2_functions::exp<A, exact>;
  if (isa == Isa::avx512) return avx512_functions::exp<A, exact>;
#endif
  EXPECT_EQ(isa, Isa::baseline);
  return baseline_functions::exp<A, exact>;
}
Function<float> tanh_of(Isa isa) {
#if ATTN_X86_TARGETS
  if (isa == Isa::avx2) return avx2_functions::tanh;
  if (isa == Isa::avx512) return avx512_functions::tanh;
#endif
  EXPECT_EQ(isa, Isa::baseline);
  return baseline_functions::tanh;
}

/// All, or the one that ATTN_ISA forces.
std::vector<Isa> isas() {
  const char* forced = std::getenv("ATTN_ISA");
  if (forced != nullptr && *forced != '\0') return {attn::active_isa()};
  return {attn::supported_isas().begin(), attn::supported_isas().end()};
}

constexpr Index chunk = 4096;

/// The largest error seen, in units in the last place of the exact result.
struct Worst {
  double ulps = 0.0, at = 0.0;
};

double float_ulp(double exact) {  // a power of two, from the exponent of a double that is 0 or no smaller than 2^-1022
  const std::uint64_t exponent = std::bit_cast<std::uint64_t>(exact) >> 52 & 0x7FF;
  return std::bit_cast<double>((std::max<std::uint64_t>(exponent, 1023 - 126) - 23) << 52);
}

/// Compares functions with the exact result at the floats with bit patterns first, first + step, ... last.
class Sweep {
 public:
  explicit Sweep(Function<float> (*function_of)(Isa)) : isas_(isas()), worst_(isas_.size()) {
    for (const Isa isa : isas_) functions_.push_back(function_of(isa));
  }
  template <class Exact>
  void run(std::uint32_t first, std::uint32_t last, std::uint32_t step, const Exact& exact) {
    std::vector<float> x(chunk), y(chunk);
    std::vector<double> expected(chunk), per_ulp(chunk);
    for (std::uint64_t bits = first; bits <= last;) {
      for (std::size_t i = 0; i < chunk; ++i, bits += step) {
        x[i] = std::bit_cast<float>(static_cast<std::uint32_t>(std::min<std::uint64_t>(bits, last)));
        expected[i] = exact(static_cast<double>(x[i]));
        per_ulp[i] = 1.0 / float_ulp(expected[i]);
      }
      for (std::size_t f = 0; f < functions_.size(); ++f) {
        functions_[f](x.data(), y.data(), chunk);
        double largest = 0.0;
        bool all_numbers = true;
        for (std::size_t i = 0; i < chunk; ++i) {
          const double error = std::abs(static_cast<double>(y[i]) - expected[i]) * per_ulp[i];
          largest = std::max(largest, error);
          all_numbers &= error < 1e300;
        }
        if (!all_numbers) largest = std::numeric_limits<double>::infinity();
        if (largest <= worst_[f].ulps) continue;
        worst_[f].ulps = largest;
        for (std::size_t i = 0; i < chunk; ++i)
          if (!(std::abs(static_cast<double>(y[i]) - expected[i]) * per_ulp[i] < largest))
            worst_[f].at = static_cast<double>(x[i]);
      }
    }
  }
  void expect_at_most(double ulps) const {
    for (std::size_t f = 0; f < isas_.size(); ++f) {
      const std::string name(isa_name(isas_[f]));
      EXPECT_LE(worst_[f].ulps, ulps) << name << ", at " << std::hexfloat << worst_[f].at;
      testing::Test::RecordProperty("worst_ulps_" + name, std::to_string(worst_[f].ulps));
      std::cout << "  " << name << ": at most " << worst_[f].ulps << " ULP, at " << worst_[f].at << '\n';
    }
  }

 private:
  std::vector<Isa> isas_;
  std::vector<Function<float>> functions_;
  std::vector<Worst> worst_;
};

constexpr std::uint32_t sign = 0x80000000U;
std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
double exact_exp(double x) { return std::abs(x) < 0x1p-30 ? 1.0 + x : std::exp(x); }

TEST(Exp, IsAtMostOneUlpOffForEveryFloatFromMinus87To0) {
  Sweep sweep(exp_of<float>);
  sweep.run(sign, bits_of(-87.F), 1, exact_exp);
  sweep.expect_at_most(1.0);
}

TEST(Exp, IsAtMostOneUlpOffFrom0To88) {
  Sweep sweep(exp_of<float>);
  sweep.run(0, bits_of(88.F), 97, exact_exp);
  sweep.run(bits_of(0x1p-6F), bits_of(88.F), 7, exact_exp);
  sweep.run(bits_of(87.9F), bits_of(88.F), 1, exact_exp);
  sweep.expect_at_most(1.0);
}

TEST(Exp, InexactIsAtMost4AndAHalfUlpOff) {
  Sweep near(exp_of<float, false>);
  near.run(sign, bits_of(-16.F), 7, exact_exp);
  near.run(bits_of(-0x1p-10F), bits_of(-16.F), 1, exact_exp);
  near.expect_at_most(1.25);
  Sweep far(exp_of<float, false>);
  far.run(bits_of(-16.F), bits_of(-87.F), 1, exact_exp);
  far.expect_at_most(4.5);
}

/// function(x) for one x, in every lane.
template <class A>
A one(Function<A> function, A x) {
  std::vector<A> in(64, x), out(64);
  function(in.data(), out.data(), 64);
  for (const A y : out) EXPECT_TRUE(std::isnan(y) ? std::isnan(out[0]) : y == out[0]);
  return out[0];
}

template <class A>
class ExpOf : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(ExpOf, Types);

/// Both exps of each instruction set that this CPU has, and what to call them.
template <class A>
std::vector<std::pair<std::string, Function<A>>> all_exps() {
  std::vector<std::pair<std::string, Function<A>>> all;
  for (const Isa isa : isas()) {
    all.emplace_back(isa_name(isa), exp_of<A>(isa));
    all.emplace_back(std::string(isa_name(isa)) + ", not exact", exp_of<A, false>(isa));
  }
  return all;
}

TYPED_TEST(ExpOf, ZeroIsOne) {
  for (const auto& [name, exp] : all_exps<TypeParam>()) {
    EXPECT_EQ(one<TypeParam>(exp, 0), TypeParam{1}) << name;
    EXPECT_EQ(one<TypeParam>(exp, -TypeParam{0}), TypeParam{1}) << name;
  }
}

TYPED_TEST(ExpOf, FarBelowIsZero) {
  using A = TypeParam;
  const A end = std::is_same_v<A, float> ? A(-87.34) : A(-708.4);
  for (const auto& [name, exp] : all_exps<A>())
    for (const A x : {end, end * 2, end * 1000, A(-1e30), std::numeric_limits<A>::lowest(),
                      attn::kernel::masked_score<A>, -std::numeric_limits<A>::infinity()}) {
      const A y = one<A>(exp, x);
      EXPECT_TRUE(y == A{0} && !std::signbit(y)) << name << ", " << x << ": " << y;
    }
}

TYPED_TEST(ExpOf, NanStaysNan) {
  using A = TypeParam;
  for (const auto& [name, exp] : all_exps<A>())
    for (const A x : {std::numeric_limits<A>::quiet_NaN(), -std::numeric_limits<A>::quiet_NaN(), A(std::nan("12345"))})
      EXPECT_TRUE(std::isnan(one<A>(exp, x))) << name;
}

// No weight may exceed 1.
TYPED_TEST(ExpOf, NeverRisesAboveOneBelowZero) {
  using A = TypeParam;
  for (const auto& [name, exp] : all_exps<A>())
    for (A x = A(-1e-3); x != 0; x = std::nextafter(x * A(0.99), A(0)))
      ASSERT_LE(one<A>(exp, x), A{1}) << name << ", " << x;
}

TEST(Exp, IsZeroOrAtMostOneUlpOffBelowMinus87) {
  for (const Isa isa : isas())
    for (float x = -87.F; x > -87.34F; x = std::nextafter(x, -88.F)) {
      const double y = static_cast<double>(one<float>(exp_of<float>(isa), x)), exact = std::exp(static_cast<double>(x));
      ASSERT_TRUE(y == 0.0 || std::abs(y - exact) <= float_ulp(exact)) << isa_name(isa) << ", " << x;
    }
}

TEST(Exp, IsAtMostOneUlpOffInDouble) {
  std::vector<double> x;
  std::mt19937_64 random(1);
  for (int i = 0; i < 1000000; ++i) x.push_back(std::uniform_real_distribution(-708.0, 709.0)(random));
  for (int i = 0; i < 500000; ++i) x.push_back(std::uniform_real_distribution(-2.0, 0.0)(random));
  for (int i = 0; i < 500000; ++i) x.push_back(-std::exp2(std::uniform_real_distribution(-70.0, 9.0)(random)));
  for (int n = -2042; n <= 2044; ++n)  // where the range is reduced to an end of its interval
    for (int i = -20; i <= 20; ++i) {
      const double at = n * 0.34657359027997264;
      if (at > -708.0) x.push_back(at + i * 0x1p-52 * std::abs(at));
    }
  while (x.size() % 64 != 0) x.push_back(-1.0);
  std::vector<double> y(x.size());
  for (const Isa isa : isas()) {
    exp_of<double>(isa)(x.data(), y.data(), std::ssize(x));
    Worst worst;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const long double exact = std::exp(static_cast<long double>(x[i]));
      const double ulps = static_cast<double>(std::abs(static_cast<long double>(y[i]) - exact) /
                                              std::exp2(static_cast<long double>(std::ilogb(exact) - 52)));
      if (!(ulps <= worst.ulps)) worst = {ulps, x[i]};
    }
    EXPECT_LE(worst.ulps, 1.0) << isa_name(isa) << ", at " << std::hexfloat << worst.at;
    std::cout << "  " << isa_name(isa) << ": at most " << worst.ulps << " ULP, at " << worst.at << '\n';
  }
}

// ---- tanh: in a kernel it is inlined into each target, which may fuse its multiplications and additions ----

double exact_tanh(double x) {
  const double a = std::abs(x);
  if (a < 0x1p-14) return x * (1.0 - x * x / 3.0);
  return a > 20.0 ? std::copysign(1.0, x) : std::tanh(x);
}

TEST(Tanh, IsAtMostThreeUlpOffForEveryFloat) {
  Sweep sweep(tanh_of);
  sweep.run(0, bits_of(0x1p-60F), 997, exact_tanh);  // tanh x is x; many of these are slow, their squares are denormal
  sweep.run(bits_of(0x1p-60F), bits_of(std::numeric_limits<float>::infinity()), 1, exact_tanh);
  sweep.expect_at_most(3.0);
}

// The exception is -0, which gives 0.
TEST(Tanh, IsOdd) {
  std::vector<float> x(chunk), minus(chunk), y(chunk), other(chunk);
  for (const Isa isa : isas())
    for (std::uint32_t bits = 1; bits < bits_of(std::numeric_limits<float>::infinity());) {
      for (std::size_t i = 0; i < chunk; ++i, bits += 997) {
        x[i] = std::bit_cast<float>(bits);
        minus[i] = std::bit_cast<float>(bits | sign);
      }
      tanh_of(isa)(x.data(), y.data(), chunk);
      tanh_of(isa)(minus.data(), other.data(), chunk);
      for (std::size_t i = 0; i < chunk; ++i)
        ASSERT_TRUE(std::isnan(x[i]) || (bits_of(y[i]) | sign) == bits_of(other[i])) << isa_name(isa) << ", " << x[i];
    }
}

TEST(Tanh, NanStaysNan) {
  for (const Isa isa : isas()) {
    EXPECT_TRUE(std::isnan(one<float>(tanh_of(isa), std::numeric_limits<float>::quiet_NaN())));
    EXPECT_TRUE(std::isnan(one<float>(tanh_of(isa), -std::numeric_limits<float>::quiet_NaN())));
  }
}

}  // namespace
