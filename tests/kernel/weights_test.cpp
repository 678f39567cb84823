// Weights in formats of fewer bits, by the functions that read them and multiply by them.
#include <attn/kernel/weights.hpp>
#include <attn/stored_weight.hpp>

#include "support.hpp"

#include <optional>
#include <random>

namespace {

namespace kernel = attn::kernel;
using attn::StoredWeight;
using attn::WeightFormat;
using attn_test::as_size;
using attn_test::Fenced;
using attn_test::Index;
using attn_test::Isa;
using attn_test::numbers_between;
using attn_test::on_every_isa;
using attn_test::same_bits;
using kernel::InputGroup;
using kernel::WeightProduct;

constexpr Index width = kernel::panel_width<float>, group = kernel::group_inputs;

template <class Format>
constexpr WeightFormat format_of = WeightFormat::bfloat16;
template <>
constexpr WeightFormat format_of<kernel::Half> = WeightFormat::half;
template <>
constexpr WeightFormat format_of<kernel::Int8> = WeightFormat::int8;
template <>
constexpr WeightFormat format_of<kernel::Int4> = WeightFormat::int4;

/// One panel of random weights.
template <class Format>
StoredWeight panel_of(Index in, unsigned seed) {
  StoredWeight weight(format_of<Format>, width, in);
  for (Index o = 0; o < width; ++o) {
    const double size = std::pow(2.0, static_cast<double>(o % 7));
    weight.set_row(o, numbers_between<float>(-size, size, in, seed + static_cast<unsigned>(o)).data());
  }
  return weight;
}
/// Its weights, [input][output].
std::vector<float> weights_of(const StoredWeight& weight) {
  std::vector<float> row(as_size(weight.in())), all(as_size(weight.inputs() * width));
  for (Index o = 0; o < width; ++o) {
    weight.get_row(o, row.data());
    for (Index i = 0; i < weight.in(); ++i) all[as_size(i * width + o)] = row[as_size(i)];
  }
  return all;
}

template <class Format>
class Weights : public testing::Test {};
using Formats = testing::Types<kernel::Bfloat16, kernel::Half, kernel::Int8, kernel::Int4>;
TYPED_TEST_SUITE(Weights, Formats);

TYPED_TEST(Weights, AreLoadedAsTheyWereStored) {
  on_every_isa([](Isa isa) {
    for (const Index in : {1, 31, 32, 33, 100}) {
      const StoredWeight weight = panel_of<TypeParam>(in, 1);
      const auto expected = weights_of(weight);
      Fenced<float> got(weight.inputs(), width, width);
      kernel::weight_reader_of<TypeParam>(isa).load(got.data(), weight.part(), weight.inputs());
      for (Index i = 0; i < std::ssize(expected); ++i)
        ASSERT_EQ(got.data()[i], expected[as_size(i)]) << in << ", " << i;
      ASSERT_TRUE(got.intact());
    }
  });
}

/// A tile that converts weights itself gives the bits that one over a copy of them gives.
TYPED_TEST(Weights, AreMultipliedAsTheirCopyIs) {
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<float>(isa);
    for (const Index rows : {1, 2, 4, 5, 8})
      for (const bool one_row : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " rows, before: " << (one_row ? "one row" : "rows"));
        constexpr Index in = 96, x_row = in + 5, c_row = width + 3;
        const StoredWeight weight = panel_of<TypeParam>(in, 2);
        const auto copy = weights_of(weight);
        const auto x = numbers_between<float>(-1, 1, rows * x_row, 3),
                   before = numbers_between<float>(-9, 9, rows * c_row, 4);
        Fenced<float> got(rows, width, c_row), expected(rows, width, c_row);
        kernel::weight_reader_of<TypeParam>(isa).multiply(WeightProduct<float>{.x = x.data(),
                                                                               .x_row = x_row,
                                                                               .rows = rows,
                                                                               .inputs = in,
                                                                               .weights = weight.part(),
                                                                               .c = got.data(),
                                                                               .c_row = c_row,
                                                                               .before = before.data(),
                                                                               .before_row = one_row ? 0 : c_row});
        kernel::Product<float> product{.a = x.data(),
                                       .a_row = x_row,
                                       .b = copy.data(),
                                       .b_row = width,
                                       .depth = in,
                                       .c = expected.data(),
                                       .c_row = c_row,
                                       .before = before.data(),
                                       .before_row = one_row ? 0 : c_row,
                                       .factor = kernel::ones<float>.value};
        const Index step = arithmetic.panel_columns();
        for (Index column = 0; column < width; column += step) {
          kernel::multiply(arithmetic, product, rows, step, {});
          product.b += step, product.c += step, product.before += step;
        }
        for (Index r = 0; r < rows; ++r)
          for (Index o = 0; o < width; ++o) ASSERT_TRUE(same_bits(got(r, o), expected(r, o))) << r << ", " << o;
        ASSERT_TRUE(got.intact());
      }
  });
}

// ---- Inputs in 8 bits -------------------------------------------------------------------------------------------------

std::vector<InputGroup> rounded(Isa isa, const std::vector<float>& x) {
  std::vector<InputGroup> groups(as_size(attn::detail::ceil_div(std::ssize(x), group)));
  kernel::weight_reader_of<kernel::Int8>(isa).round_inputs(groups.data(), x.data(), std::ssize(x));
  return groups;
}

TEST(RoundedInputs, AreTheNearestMultiplesOfTheScale) {
  on_every_isa([](Isa isa) {
    for (const Index n : {1, 5, 31, 32, 33, 100})
      for (const double size : {1e-20, 1.0, 3e20}) {
        const auto x = numbers_between<float>(-size, size, n, 5);
        const auto groups = rounded(isa, x);
        for (Index i = 0; i < n; ++i) {
          const InputGroup& in = groups[as_size(i / group)];
          const double scale = double{in.scale}, number = in.number[i % group];
          ASSERT_LE(std::abs(double{x[as_size(i)]} - number * scale), 0.5001 * scale) << "input " << i;
          ASSERT_LE(std::abs(number), 127);
        }
      }
  });
}

TEST(RoundedInputs, UseAllNumbersOfTheirRange) {
  on_every_isa([](Isa isa) {
    const auto groups = rounded(isa, {127, -127, 64, 0.4F, -0.6F});
    EXPECT_EQ(groups[0].scale, 1);
    const int expected[] = {127, -127, 64, 0, -1, 0};
    for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(groups[0].number[i], expected[i]) << i;
    EXPECT_EQ(groups[0].sum, 63);
  });
}

TEST(RoundedInputs, GoToTheEvenNumberFromHalfway) {
  on_every_isa([](Isa isa) {
    const auto groups = rounded(isa, {127, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F});
    const int expected[] = {127, 0, 2, 2, 0, -2};
    for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(groups[0].number[i], expected[i]) << i;
  });
}

TEST(RoundedInputs, OfAGroupOfZerosAreZeros) {
  on_every_isa([](Isa isa) {
    for (const float zero : {0.F, -0.F, 1e-38F}) {
      const auto groups = rounded(isa, std::vector<float>(40, zero));
      for (const InputGroup& in : groups) {
        EXPECT_EQ(in.scale, 0);
        EXPECT_EQ(in.sum, 0);
        for (const std::int8_t number : in.number) EXPECT_EQ(number, 0);
      }
    }
  });
}

TEST(RoundedInputs, MakeTheirGroupNanWhereOneIsNotFinite) {
  on_every_isa([](Isa isa) {
    for (const float special : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> x(70, 1.F);
      x[35] = special;
      const auto groups = rounded(isa, x);
      EXPECT_EQ(groups[0].number[0], 127);
      EXPECT_TRUE(std::isnan(groups[1].scale));
      EXPECT_EQ(groups[1].sum, 0);
      EXPECT_EQ(groups[2].number[5], 127);
    }
  });
}

TEST(RoundedInputs, AreTheSameOnEveryInstructionSet) {
  const auto x = numbers_between<float>(-3, 3, 1000, 6);
  const auto expected = rounded(Isa::baseline, x);
  on_every_isa([&](Isa isa) {
    const auto got = rounded(isa, x);
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_TRUE(same_bits(got[i], expected[i])) << "group " << i;
  });
}

// ---- Dot products of bytes --------------------------------------------------------------------------------------------

template <class Format>
class ByteDots : public testing::Test {};
using Groups = testing::Types<kernel::Int8, kernel::Int4>;
TYPED_TEST_SUITE(ByteDots, Groups);

/// Calls f(product) for every product of inputs in 8 bits that this CPU has.
template <class Format, class F>
void by_every_instruction(const F& f) {
  on_every_isa([&](Isa isa) {
    const kernel::WeightReader& reader = kernel::weight_reader_of<Format>(isa);
    if (attn::detail::cpu_has_byte_dots(isa)) f(reader.multiply_groups);
    SCOPED_TRACE("matrix products");
    if (attn::detail::cpu_has_byte_matrices()) f(reader.multiply_groups_by_matrices);
  });
}
/// A panel of weights whose numbers are random, or all of one byte.
template <class Format>
StoredWeight panel_of_bytes(Index groups, std::optional<int> byte) {
  constexpr WeightFormat format = format_of<Format>;
  constexpr Index size = StoredWeight::block_bytes(format);
  std::mt19937 words(14);
  std::vector<std::byte> blocks(as_size(width * groups * size));
  for (std::byte& x : blocks) x = static_cast<std::byte>(byte.value_or(static_cast<int>(words() & 255U)));
  for (Index block = 0; block < width * groups; ++block)
    blocks[as_size(block * size + 1)] = std::byte{0x2C};  // the upper byte of a scale of about 1/16
  return StoredWeight::of_rows(format, width, groups * group, blocks.data());
}
/// Groups of inputs whose numbers are random, or all the same. The last one held a number that is not finite.
std::vector<InputGroup> groups_of(Index n, std::optional<int> number) {
  std::mt19937 words(15);
  std::vector<InputGroup> groups(as_size(n));
  for (InputGroup& in : groups) {
    in.sum = 0, in.scale = 1 + static_cast<float>(words() & 0xFFU) * 0x1p-8F;
    for (std::int8_t& x : in.number) {
      x = static_cast<std::int8_t>(number.value_or(static_cast<int>(words() % 255U) - 127));
      in.sum += x;
    }
  }
  groups.back() = {.number = {}, .scale = std::numeric_limits<float>::quiet_NaN(), .sum = 0};
  return groups;
}

/// The bits of a plain loop: whole numbers of a group, summed up exactly, times both scales, group by group.
TYPED_TEST(ByteDots, AreExactWithinAGroup) {
  by_every_instruction<TypeParam>([](kernel::GroupProduct multiply) {
    for (const Index rows : {1, 2, 3, 4, 5, 9}) {
      SCOPED_TRACE(testing::Message() << rows << " rows");
      constexpr Index in = 160, groups = in / group, c_row = width + 1;
      const StoredWeight weight = panel_of<TypeParam>(in, 7);
      const auto plain = weights_of(weight);
      const auto before = numbers_between<float>(-9, 9, rows * c_row, 8);
      std::vector<InputGroup> x;
      for (Index r = 0; r < rows; ++r) {
        const auto row = rounded(Isa::baseline, numbers_between<float>(-2, 2, in, 9 + static_cast<unsigned>(r)));
        x.insert(x.end(), row.begin(), row.end());
      }
      Fenced<float> got(rows, width, c_row);
      multiply(WeightProduct<InputGroup>{.x = x.data(),
                                         .x_row = groups,
                                         .rows = rows,
                                         .inputs = groups,
                                         .weights = weight.part(),
                                         .c = got.data(),
                                         .c_row = c_row,
                                         .before = before.data(),
                                         .before_row = c_row});
      for (Index r = 0; r < rows; ++r)
        for (Index o = 0; o < width; ++o) {
          float sum = 0;
          for (Index g = 0; g < groups; ++g) {
            const InputGroup& inputs = x[as_size(r * groups + g)];
            double exact = 0;  // times the weights' scale: the product of whole numbers and a half is exact in double
            for (Index i = 0; i < group; ++i)
              exact += inputs.number[i] * double{plain[as_size((g * group + i) * width + o)]};
            sum = std::fma(static_cast<float>(exact), inputs.scale, sum);
          }
          ASSERT_EQ(got(r, o), before[as_size(r * c_row + o)] + sum) << r << ", " << o;
        }
      ASSERT_TRUE(got.intact());
    }
  });
}

/// The product of the last rows of x.
std::vector<float> product_of(kernel::GroupProduct multiply, const std::vector<InputGroup>& x, Index rows,
                              const StoredWeight& weight) {
  const Index groups = weight.inputs() / group;
  const auto before = numbers_between<float>(-9, 9, width, 13);
  Fenced<float> c(rows, width, width);
  multiply(WeightProduct<InputGroup>{.x = x.data() + std::ssize(x) - rows * groups,
                                     .x_row = groups,
                                     .rows = rows,
                                     .inputs = groups,
                                     .weights = weight.part(),
                                     .c = c.data(),
                                     .c_row = width,
                                     .before = before.data(),
                                     .before_row = 0});
  EXPECT_TRUE(c.intact());
  return {c.data(), c.data() + rows * width};
}

/// Whatever the number of rows, with numbers at the ends of their ranges, too, and a row that is not finite.
TYPED_TEST(ByteDots, GiveTheSameBitsByEveryInstruction) {
  using Number = std::optional<int>;
  constexpr Index most = 9;
  for (const Number byte : {Number{}, Number{0x80}, Number{0x7F}, Number{0}, Number{0xFF}})
    for (const Number number : {Number{}, Number{-127}, Number{127}})
      for (const Index groups : {1, 2, 10}) {
        SCOPED_TRACE(testing::Message() << "byte " << byte.value_or(-1) << ", number " << number.value_or(0));
        const StoredWeight weight = panel_of_bytes<TypeParam>(groups, byte);
        const auto x = groups_of(most * groups, number);
        std::vector<float> all;  // rows, by the first product
        by_every_instruction<TypeParam>([&](kernel::GroupProduct multiply) {
          for (Index rows = most; rows > 0; --rows) {
            const auto got = product_of(multiply, x, rows, weight);
            if (all.empty()) all = got;
            const float* const last = all.data() + (most - rows) * width;
            ASSERT_EQ(std::memcmp(got.data(), last, got.size() * sizeof(float)), 0) << rows << " rows";
          }
        });
      }
}

/// Numbers at the ends of their ranges: sums of pairs in 16 bits would saturate.
TEST(ByteDotsOfInt8, DoNotSaturate) {
  by_every_instruction<kernel::Int8>([](kernel::GroupProduct multiply) {
    for (const float sign : {1.F, -1.F}) {
      StoredWeight weight(WeightFormat::int8, width, group);
      for (Index o = 0; o < width; ++o) weight.set_row(o, std::vector<float>(as_size(group), 127.F).data());
      const auto x = rounded(Isa::baseline, std::vector<float>(as_size(2 * group), sign * 127));
      std::vector<float> zeros(as_size(width)), c(as_size(2 * width));
      multiply(WeightProduct<InputGroup>{.x = x.data(),
                                         .x_row = 1,
                                         .rows = 2,
                                         .inputs = 1,
                                         .weights = weight.part(),
                                         .c = c.data(),
                                         .c_row = width,
                                         .before = zeros.data(),
                                         .before_row = 0});
      for (const float sum : c) EXPECT_EQ(sum, sign * 127 * 127 * 32);
    }
  });
}

TEST(ByteDots, AreUsedUnlessTurnedOff) {
  on_every_isa([](Isa isa) {
    attn::set_byte_dots(false);
    EXPECT_FALSE(attn::byte_dots(isa));
    attn::set_byte_dots(true);
    EXPECT_EQ(attn::byte_dots(isa), attn::detail::cpu_has_byte_dots(isa));
  });
}

// ---- Pairs of bfloat16 ------------------------------------------------------------------------------------------------

/// Rows of bfloat16 [rows][in], and their numbers.
struct Bfloat16Rows {
  Bfloat16Rows(Index rows, Index in, unsigned seed) : bits(as_size(rows * in)), numbers(as_size(rows * in)) {
    const auto x = numbers_between<float>(-2, 2, rows * in, seed);
    const auto& codec = kernel::codec_of<kernel::Bfloat16>(Isa::baseline);
    codec.store(bits.data(), in, x.data(), in, rows, in);
    codec.load(numbers.data(), in, bits.data(), in, rows, in);
  }
  std::vector<kernel::Bfloat16> bits;
  std::vector<float> numbers;
};

TEST(Pairs, LieSideBySide) {
  on_every_isa([](Isa isa) {
    for (const Index in : {1, 2, 3, 8, 9}) {
      const Bfloat16Rows weights(in, width, 1);
      Fenced<kernel::BfloatPair> pairs(attn::detail::ceil_div(in, 2), width, width);
      kernel::pair_arithmetic_of(isa).interleave(pairs.data(), width, weights.bits.data(), width, in, width);
      for (Index i = 0; i < in + in % 2; ++i)
        for (Index o = 0; o < width; ++o) {
          const std::uint32_t half = pairs(i / 2, o).bits >> (i % 2 * 16) & 0xFFFFU;
          ASSERT_EQ(half, i < in ? weights.bits[as_size(i * width + o)].bits : 0) << "input " << i << " of " << in;
        }
      ASSERT_TRUE(pairs.intact());
    }
  });
}

/// Few rows, which read weights as they are stored, give the bits of many, which read a copy; both are the formula.
TEST(Pairs, AreMultipliedAsTheyAre) {
  on_every_isa([](Isa isa) {
    if (!attn::detail::cpu_has_bf16_dots(isa)) return;
    for (const Index rows : {1, 2, 7, 8, 9, 17})
      for (const Index in : {1, 2, 31, 64}) {
        SCOPED_TRACE(testing::Message() << rows << " rows of " << in);
        const Index x_row = in + 3, c_row = width + 1;
        const Bfloat16Rows weights(in, width, 2), x(rows, x_row, 3);
        const auto before = numbers_between<float>(-9, 9, rows * c_row, 4);
        std::vector<kernel::BfloatPair> pairs(as_size(attn::detail::ceil_div(in, 2) * width));
        kernel::pair_arithmetic_of(isa).interleave(pairs.data(), width, weights.bits.data(), width, in, width);
        Fenced<float> stored(rows, width, c_row), copied(rows, width, c_row);
        kernel::PairProduct product{.x = x.bits.data(),
                                    .x_row = x_row,
                                    .rows = rows,
                                    .inputs = in,
                                    .weights = weights.bits.data(),
                                    .c = stored.data(),
                                    .c_row = c_row,
                                    .before = before.data(),
                                    .before_row = c_row};
        kernel::pair_arithmetic_of(isa).multiply(product);
        product.pairs = pairs.data(), product.c = copied.data();
        kernel::pair_arithmetic_of(isa).multiply(product);
        for (Index r = 0; r < rows; ++r)
          for (Index o = 0; o < width; ++o) {
            ASSERT_TRUE(same_bits(stored(r, o), copied(r, o))) << r << ", " << o;
            double sum = double{before[as_size(r * c_row + o)]}, size = std::abs(sum);
            for (Index i = 0; i < in; ++i) {
              const double term =
                  double{x.numbers[as_size(r * x_row + i)]} * double{weights.numbers[as_size(i * width + o)]};
              sum += term, size += std::abs(term);
            }
            ASSERT_NEAR(double{stored(r, o)}, sum, static_cast<double>(in + 2) * 0x1p-24 * size);
          }
        ASSERT_TRUE(stored.intact() && copied.intact());
      }
  });
}

}  // namespace
