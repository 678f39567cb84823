// Linear layers whose weights are stored in fewer bits.
#include "module_support.hpp"

#include <limits>
#include <vector>

namespace {

using attn::Index;
using attn::Linear;
using attn::Tensor;
using attn::View;
using attn::WeightFormat;
using attn_test::cast;
using attn_test::difference;
using attn_test::expect_error;
using attn_test::filled;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::to;

constexpr WeightFormat formats[] = {WeightFormat::bfloat16, WeightFormat::half, WeightFormat::int8, WeightFormat::int4};

/// Dot products of bytes as they are found, and off; as found again at the end.
template <class F>
void with_and_without_byte_dots(const F& f) {
  for (const bool on : {true, false}) {
    SCOPED_TRACE(testing::Message() << "byte dots: " << on);
    attn::set_byte_dots(on);
    f();
  }
  attn::set_byte_dots(true);
}

/// The inputs that a format multiplies by: rounded, group by group, where there are groups.
Tensor<double, 2> inputs_of(WeightFormat format, const Tensor<float, 2>& x) {
  auto rounded = cast<double>(x);
  if (!is_grouped(format)) return rounded;
  const Index in = x.dimension(1);
  std::vector<attn::kernel::InputGroup> groups(static_cast<std::size_t>(attn::detail::ceil_div(in, 32)));
  for (Index row = 0; row < x.dimension(0); ++row) {
    attn::kernel::weight_reader_of<attn::kernel::Int8>(attn::active_isa())
        .round_inputs(groups.data(), x.data() + row * in, in);
    for (Index i = 0; i < in; ++i) {
      const auto& group = groups[static_cast<std::size_t>(i / 32)];
      rounded(row, i) = group.number[i % 32] * double{group.scale};
    }
  }
  return rounded;
}
/// The plain formula, summed up in A.
template <class A>
Tensor<A, 2> plain(const Tensor<double, 2>& x, const Tensor<double, 2>& weight, const Tensor<double, 1>& bias) {
  Tensor<A, 2> y(x.dimension(0), weight.dimension(0));
  for (Index r = 0; r < y.dimension(0); ++r)
    for (Index o = 0; o < y.dimension(1); ++o) {
      A sum = bias.size() > 0 ? static_cast<A>(bias(o)) : A{0};
      for (Index i = 0; i < x.dimension(1); ++i) sum += static_cast<A>(x(r, i)) * static_cast<A>(weight(o, i));
      y(r, o) = sum;
    }
  return y;
}

/// The bar: twice the error of the plain formula in float, over the same weights and inputs.
template <class T>
void expect_formula(WeightFormat format, Index rows, Index in, Index out, bool bias) {
  SCOPED_TRACE(testing::Message() << weight_format_name(format) << ", " << rows << " rows, " << in << " to " << out);
  Linear<T> linear(in, out, bias, 1);
  linear.store_weights(format);
  const auto x = random_tensor<T, 2>({rows, in}, 2);
  const auto got = linear.forward(x);
  const auto inputs = inputs_of(format, cast<float>(x));
  const auto weight = cast<double>(linear.weight());
  const auto exact = plain<double>(inputs, weight, cast<double>(linear.bias()));
  const auto in_float = plain<float>(inputs, weight, cast<double>(linear.bias()));
  const double storage = std::is_same_v<T, Eigen::half> ? 0x1p-11 : std::is_same_v<T, Eigen::bfloat16> ? 0x1p-8 : 0;
  // What the formula rounds in a single output may be 0 by chance: some roundings of its terms are allowed for.
  const double terms = attn_test::magnitude(
      plain<double>(inputs.abs(), weight.abs(), cast<double>(Tensor<float, 1>(cast<float>(linear.bias()).abs()))));
  const double bar = 2 * difference(in_float, exact).largest + 0x1p-22 * terms + storage * attn_test::magnitude(exact);
  EXPECT_LE(difference(got, exact).largest, bar);
}

TEST(LinearFormats, ComputeTheFormulaOverWhatTheyHold) {
  with_and_without_byte_dots([] {
    for (const WeightFormat format : formats)
      for (const Index rows : {1, 2, 3, 7, 8, 9, 33, 200})
        for (const Index in : {1, 31, 32, 33, 100, 700})
          for (const Index out : {1, 48, 101}) {
            expect_formula<float>(format, rows, in, out, (rows + in + out) % 2 == 0);
            if (HasFailure()) return;
          }
    for (const WeightFormat format : formats)
      for (const Index rows : {1, 5, 40}) expect_formula<float>(format, rows, 2100, 50, true);  // several parts
  });
}

/// Outputs of half and bfloat16 round once more; weights that are read back round to them, which half's do not hide.
TEST(LinearFormats, ServeActivationsOfEveryType) {
  with_and_without_byte_dots([] {
    for (const Index rows : {1, 8, 70}) {
      expect_formula<double>(WeightFormat::int8, rows, 70, 50, true);
      expect_formula<double>(WeightFormat::bfloat16, rows, 70, 50, false);
      expect_formula<Eigen::half>(WeightFormat::bfloat16, rows, 70, 50, true);
      expect_formula<Eigen::bfloat16>(WeightFormat::half, rows, 70, 50, true);
      expect_formula<Eigen::half>(WeightFormat::int4, rows, 70, 50, true);
      expect_formula<Eigen::bfloat16>(WeightFormat::int8, rows, 70, 50, true);
    }
  });
}

TEST(LinearFormats, MultiplyByMatricesWhereTheCpuHasThem) {
  const attn::Isa isa = attn::active_isa();
  for (const WeightFormat format : formats) {
    const attn::kernel::WeightReader& reader = attn::detail::reader_of(format, isa);
    attn::set_byte_dots(false);
    EXPECT_EQ(attn::detail::group_product_of(reader, isa), nullptr);
    attn::set_byte_dots(true);
    const bool matrices = attn::detail::cpu_has_byte_matrices(), dots = attn::byte_dots(isa);
    const auto expected = matrices ? reader.multiply_groups_by_matrices : dots ? reader.multiply_groups : nullptr;
    EXPECT_EQ(attn::detail::group_product_of(reader, isa), expected);
    EXPECT_EQ(expected != nullptr, dots && is_grouped(format));
  }
}

TEST(LinearFormats, GiveARowTheSameBitsInAnyCompany) {
  with_and_without_byte_dots([] {
    for (const WeightFormat format : formats) {
      Linear<float> linear(4096 / 8 + 64, 70, true, 1);
      linear.store_weights(format);
      const auto x = random_tensor<float, 2>({300, linear.in_features()}, 2);
      const auto all = linear.forward(x);
      for (const Index rows : {1, 2, 5, 8, 9, 100}) {
        Tensor<float, 2> part(rows, x.dimension(1));
        std::copy_n(x.data() + 7 * x.dimension(1), part.size(), part.data());
        const auto got = linear.forward(part);
        for (Index i = 0; i < got.size(); ++i)
          ASSERT_EQ(got.data()[i], all.data()[7 * 70 + i]) << weight_format_name(format) << ", " << rows << " rows";
      }
    }
  });
}

TEST(LinearFormats, DoNotDependOnTheNumberOfThreads) {
  for (const WeightFormat format : formats)
    for (const Index rows : {1, 5, 200}) {
      Linear<float> linear(300, 500, true, 1);
      linear.store_weights(format);
      const auto x = random_tensor<float, 2>({rows, 300}, 2);
      attn::SerialExecutor serial;
      const auto expected = [&] {
        const attn::UseExecutor use(serial);
        return linear.forward(x);
      }();
      for (const int threads : {2, 3, 5}) {
        attn::ThreadPool pool(threads);
        const attn::UseExecutor use(pool);
        EXPECT_TRUE(same_bits(linear.forward(x), expected)) << weight_format_name(format) << ", " << threads;
      }
    }
}

TEST(LinearFormats, KeepNanAndInfinityInTheirRow) {
  with_and_without_byte_dots([] {
    for (const WeightFormat format : formats)
      for (const float special : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        Linear<float> linear(100, 60, true, 1);
        linear.store_weights(format);
        auto x = random_tensor<float, 2>({9, 100}, 2);
        const auto before = linear.forward(x);
        x(4, 50) = special;
        const auto y = linear.forward(x);
        for (Index r = 0; r < 9; ++r)
          for (Index o = 0; o < 60; ++o) {
            if (r == 4)
              EXPECT_FALSE(std::isfinite(y(r, o)));
            else
              EXPECT_EQ(y(r, o), before(r, o));
          }
      }
  });
}

TEST(LinearFormats, GiveTheBiasForRowsOfZeros) {
  with_and_without_byte_dots([] {
    for (const WeightFormat format : formats) {
      Linear<float> linear(50, 60, true, 1);
      linear.store_weights(format);
      const auto y = linear.forward(filled<float, 2>({3, 50}, 0.F));
      for (Index i = 0; i < y.size(); ++i) EXPECT_EQ(y.data()[i], linear.bias()(i % 60));
    }
  });
}

TEST(LinearFormats, LeaveAlonePaddingBetweenRows) {
  for (const WeightFormat format : formats) {
    Linear<float> linear(64, 50, true, 1);
    linear.store_weights(format);
    const auto x = random_tensor<float, 2>({5, 70}, 2);
    auto y = filled<float, 2>({5, 60}, 7.F);
    linear.forward_into(View<float, 2>(y.data(), {5, 50}, {60, 1}), View<const float, 2>(x.data(), {5, 64}, {70, 1}));
    for (Index r = 0; r < 5; ++r)
      for (Index o = 50; o < 60; ++o) EXPECT_EQ(y(r, o), 7.F);
  }
}

// ---- Layers of bfloat16, whose inputs and weights are multiplied in pairs ---------------------------------------------

TEST(Bf16Dots, ComputeTheFormula) {
  using Eigen::bfloat16;
  for (const bool on : {false, true}) {
    SCOPED_TRACE(testing::Message() << "pairs: " << on);
    attn::set_bf16_dots(on);
    EXPECT_EQ(attn::bf16_dots(), on && attn::detail::cpu_has_bf16_dots(attn::active_isa()));
    for (const Index rows : {1, 3, 8, 9, 70, 300})
      for (const Index in : {1, 37, 700, 1111})
        for (const Index out : {1, 48, 100}) {
          const Linear<bfloat16> linear(in, out, (rows + in) % 2 == 0, 1);
          const auto x = random_tensor<bfloat16, 2>({rows, in}, 2);
          const auto weight = cast<double>(linear.weight());
          const auto exact = plain<double>(cast<double>(x), weight, cast<double>(linear.bias()));
          ASSERT_LE(difference(linear.forward(x), exact).largest, 0x1p-8 * attn_test::magnitude(exact) + 1e-5)
              << rows << " rows, " << in << " to " << out;
        }
  }
}

TEST(Bf16Dots, GiveARowTheSameBitsInAnyCompany) {
  attn::set_bf16_dots(true);
  const Linear<Eigen::bfloat16> linear(601, 70, true, 1);
  const auto x = random_tensor<Eigen::bfloat16, 2>({300, 601}, 2);
  const auto all = linear.forward(x);
  for (const Index rows : {1, 2, 8, 9, 100}) {
    Tensor<Eigen::bfloat16, 2> part(rows, 601);
    std::copy_n(x.data() + 7 * 601, part.size(), part.data());
    const auto got = linear.forward(part);
    for (Index i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], all.data()[7 * 70 + i]) << rows << " rows";
  }
}

// ---- What a layer holds -----------------------------------------------------------------------------------------------

TEST(StoreWeights, RoundsTheWeightAndSaysSo) {
  for (const WeightFormat format : formats) {
    Linear<float> linear(100, 60, true, 1);
    const auto before = linear.weight();
    EXPECT_EQ(linear.weight_format(), WeightFormat::native);
    linear.store_weights(format);
    EXPECT_EQ(linear.weight_format(), format);
    EXPECT_EQ(linear.in_features(), 100);
    EXPECT_EQ(linear.out_features(), 60);
    const double error = difference(linear.weight(), before).largest;
    EXPECT_GT(error, 0);
    EXPECT_LT(error, format == WeightFormat::int4 ? 0.02 : 0.001);  // weights are within 0.1
    Tensor<float, 1> row(100);
    linear.weight_row(59, row);
    for (Index i = 0; i < 100; ++i) EXPECT_EQ(row(i), linear.weight()(59, i));
  }
}

TEST(StoreWeights, RoundsAlikeOnAnyNumberOfThreads) {
  for (const WeightFormat format : formats) {
    const auto stored_on = [&](attn::Executor& executor) {
      const attn::UseExecutor use(executor);
      Linear<float> linear(1000, 700, true, 1);
      linear.store_weights(format);
      return linear.weight();
    };
    attn::SerialExecutor serial;
    attn::ThreadPool pool(3);
    EXPECT_TRUE(same_bits(stored_on(serial), stored_on(pool))) << weight_format_name(format);
  }
}

TEST(StoreWeights, IsExactOnWhatItHasRounded) {
  for (const WeightFormat format : formats) {
    Linear<float> linear(100, 60, true, 1);
    linear.store_weights(format);
    const auto rounded = linear.weight();
    linear.store_weights(WeightFormat::native);
    EXPECT_EQ(linear.weight_format(), WeightFormat::native);
    EXPECT_TRUE(same_bits(linear.weight(), rounded));
    linear.store_weights(format);
    EXPECT_LE(difference(linear.weight(), rounded).largest, 1e-7) << weight_format_name(format);
  }
}

TEST(StoreWeights, TakesTheLayersOwnTypeForNative) {
  Linear<Eigen::half> half(10, 20);
  half.store_weights(WeightFormat::half);
  EXPECT_EQ(half.weight_format(), WeightFormat::native);
  Linear<Eigen::bfloat16> bfloat16(10, 20);
  bfloat16.store_weights(WeightFormat::bfloat16);
  EXPECT_EQ(bfloat16.weight_format(), WeightFormat::native);
  bfloat16.store_weights(WeightFormat::half);
  EXPECT_EQ(bfloat16.weight_format(), WeightFormat::half);
}

TEST(StoreWeights, ShowsInLayersThatShareTheWeight) {
  Linear<float> a(40, 30, true, 1), b(40, 30, true, 2);
  b.share(a);
  const Linear<float> copy = a;
  a.store_weights(WeightFormat::int8);
  EXPECT_EQ(b.weight_format(), WeightFormat::int8);
  EXPECT_EQ(copy.weight_format(), WeightFormat::native);
  const auto x = random_tensor<float, 2>({3, 40}, 3);
  EXPECT_TRUE(same_bits(a(x), b(x)));
  EXPECT_TRUE(same_bits(Linear<float>(a)(x), a(x)));
}

TEST(StoreWeights, KeepsTheFormatWhenTheWeightIsSet) {
  Linear<float> linear(40, 30, true, 1);
  linear.store_weights(WeightFormat::int8);
  const auto weight = random_tensor<float, 2>({30, 40}, 2);
  linear.set_weight(weight);
  EXPECT_EQ(linear.weight_format(), WeightFormat::int8);
  EXPECT_LE(difference(linear.weight(), weight).largest, 0.5 / 127 * 1.8);
}

TEST(StoreWeights, RefusesWhatAFormatCannotHold) {
  Linear<float> linear(40, 30, true, 1);
  auto weight = linear.weight();
  weight(7, 9) = 1e9F;
  linear.set_weight(weight);
  for (const WeightFormat format : {WeightFormat::half, WeightFormat::int8, WeightFormat::int4}) {
    const std::string name(weight_format_name(format));
    expect_error([&] { linear.store_weights(format); },
                 {"[attn::Linear::store_weights]", "expected numbers that " + name, "1e+09 of output 7, input 9"});
    EXPECT_TRUE(same_bits(linear.weight(), weight));
    EXPECT_EQ(linear.weight_format(), WeightFormat::native);
  }
  linear.store_weights(WeightFormat::bfloat16);
  linear.set_weight(random_tensor<float, 2>({30, 40}, 1));
  linear.store_weights(WeightFormat::int8);
  weight(7, 9) = std::numeric_limits<float>::quiet_NaN();
  const auto before = linear.weight();
  expect_error([&] { linear.set_weight(weight); }, {"[attn::Linear::set_weight]", "int8 can hold, got nan"});
  EXPECT_TRUE(same_bits(linear.weight(), before));
}

TEST(StoreWeights, RefusesAFormatThatDoesNotExist) {
  Linear<float> linear(40, 30);
  expect_error([&] { linear.store_weights(static_cast<WeightFormat>(9)); },
               {"[attn::Linear::store_weights]", "native, bfloat16, half, int8 or int4", "WeightFormat(9)"});
  const Linear<float> taken = std::move(linear);
  expect_error([&] { linear.store_weights(WeightFormat::int8); }, {"[attn::Linear::store_weights]", "moved from"});
}

TEST(StoreWeights, MakesALayerRefuseToTrain) {
  Linear<float> linear(40, 30);
  const auto x = random_tensor<float, 2>({3, 40}, 1), grad_y = random_tensor<float, 2>({3, 30}, 2);
  static_cast<void>(linear.backward(grad_y, x));
  linear.store_weights(WeightFormat::int8);
  const auto expect_refusal = [](const auto& train) {
    expect_error(train, {"store_weights(WeightFormat::native)", "got int8"});
  };
  expect_refusal([&] { static_cast<void>(linear.backward(grad_y, x)); });
  expect_refusal([&] { linear.add_gradients(grad_y, x); });
  expect_refusal([&] { static_cast<void>(linear.parameters()); });
  EXPECT_EQ(difference(linear.weight_gradient(), filled<float, 2>({30, 40}, 0.F)).largest, 0);
  linear.store_weights(WeightFormat::native);
  static_cast<void>(linear.backward(grad_y, x));
}

TEST(SetQuantisedWeight, TakesBlocksAndTellsThemByTheirSize) {
  for (const WeightFormat format : {WeightFormat::int8, WeightFormat::int4}) {
    const Index bytes = attn::StoredWeight::block_bytes(format);
    std::vector<std::byte> blocks(static_cast<std::size_t>(30 * 2 * bytes));
    for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<std::byte>(i * 37 % 101);
    Linear<float> linear(64, 30);
    linear.set_quantised_weight(blocks);
    EXPECT_EQ(linear.weight_format(), format);
    const auto expected = attn::StoredWeight::of_rows(format, 1, 64, blocks.data() + 29 * 2 * bytes);
    std::vector<float> row(64);
    expected.get_row(0, row.data());
    for (Index i = 0; i < 64; ++i) EXPECT_EQ(linear.weight()(29, i), row[static_cast<std::size_t>(i)]);
  }
}

TEST(SetQuantisedWeight, RefusesBlocksThatDoNotFit) {
  Linear<float> linear(64, 30);
  const std::vector<std::byte> blocks(100);
  expect_error([&] { linear.set_quantised_weight(blocks); },
               {"[attn::Linear::set_quantised_weight]", "2040 bytes of Q8_0", "1080 of Q4_0", "got 100"});
  EXPECT_EQ(linear.weight_format(), WeightFormat::native);
}

/// Inputs that do not fill the last block: what lies past them is 0, and must be.
TEST(SetQuantisedWeight, TakesBlocksThatAreNotFull) {
  for (const WeightFormat format : {WeightFormat::int8, WeightFormat::int4})
    for (const Index inputs : {1, 15, 17, 31, 33, 50, 63}) {
      SCOPED_TRACE(testing::Message() << weight_format_name(format) << ", " << inputs << " inputs");
      Linear<float> linear(inputs, 50, false, 1), other(inputs, 50, false, 2);
      linear.store_weights(format);
      std::vector<std::byte> blocks = linear.quantised_weight();
      other.set_quantised_weight(blocks);
      EXPECT_TRUE(same_bits(other.weight(), linear.weight()));
      for (const Index rows : {1, 20}) {
        const auto x = random_tensor<float, 2>({rows, inputs}, 3);
        EXPECT_TRUE(same_bits(other(x), linear(x))) << rows << " rows";
      }
      // the block of output 49 that ends the weight; its last input is in the last byte, of int4 in the upper half
      blocks.back() ^= std::byte{0x20};
      expect_error([&] { other.set_quantised_weight(blocks); },
                   {"[attn::Linear::set_quantised_weight]", "0 past input " + std::to_string(inputs - 1), "output 49"});
      expect_error([&] { other.set_stored_weight(format, blocks); },
                   {"[attn::Linear::set_stored_weight]", "output 49"});
      EXPECT_TRUE(same_bits(other.weight(), linear.weight()));
    }
}

TEST(QuantisationError, IsThatOfTheFormat) {
  Linear<float> linear(512, 256, false, 1);
  linear.set_weight(random_tensor<float, 2>({256, 512}, 1));
  double last = 0;
  for (const WeightFormat format :
       {WeightFormat::native, WeightFormat::half, WeightFormat::bfloat16, WeightFormat::int8, WeightFormat::int4}) {
    const attn::QuantisationError error = quantisation_error(linear, format);
    EXPECT_GE(error.root_mean_square, last) << weight_format_name(format);
    EXPECT_GE(error.largest, 0.3 * error.root_mean_square);
    last = error.root_mean_square;
  }
  EXPECT_EQ(quantisation_error(linear, WeightFormat::native).largest, 0);
  // Uniform weights: a step is 2 / 254 of the largest, the error uniform within half of it.
  EXPECT_NEAR(quantisation_error(linear, WeightFormat::int8).root_mean_square, 1 / 127.0 / 2, 3e-4);
  EXPECT_EQ(linear.weight_format(), WeightFormat::native);
  linear.set_weight(filled<float, 2>({256, 512}, 0.F));
  EXPECT_EQ(quantisation_error(linear, WeightFormat::int4).root_mean_square, 0);
}

}  // namespace
