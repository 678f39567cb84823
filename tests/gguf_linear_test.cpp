// Layers and norms from GGUF files: which format a weight gets, and that it is what the file says, to the bit.
#include <attn/io/gguf_linear.hpp>

#include "gguf_support.hpp"
#include "module_support.hpp"

#include <cstring>
#include <vector>

namespace {

using attn::GgufFile;
using attn::GgufType;
using attn::Index;
using attn::Linear;
using attn::Tensor;
using attn::WeightFormat;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::gguf::Bytes;
using attn_test::gguf::bytes_of;
using attn_test::gguf::Writer;

constexpr Index out = 101, in = 256;  // two panels and a part of one

/// A weight [out,in] of a type, as random bytes whose exponents are small.
Bytes weight_of(GgufType type) {
  const attn::detail::GgufTypeFacts& facts = *attn::detail::find_gguf_type(static_cast<std::uint32_t>(type));
  Bytes bytes(static_cast<std::size_t>(out * in) / facts.block * facts.bytes);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>((i * 2654435761U >> 13) % 60);
  return bytes;
}
Bytes file_with(GgufType type) {
  return Writer()
      .add_tensor("padding", GgufType::f32, {1}, bytes_of({1.F}))
      .add_tensor("w", type, {out, in}, weight_of(type))
      .bytes();
}

TEST(GgufLinear, KeepsAWeightInAsManyBitsAsTheFile) {
  const struct {
    GgufType type;
    WeightFormat format;
  } cases[] = {{GgufType::f32, WeightFormat::native},  {GgufType::f64, WeightFormat::native},
               {GgufType::f16, WeightFormat::half},    {GgufType::bf16, WeightFormat::bfloat16},
               {GgufType::q8_0, WeightFormat::int8},   {GgufType::q4_0, WeightFormat::int4},
               {GgufType::q4_k, WeightFormat::native}, {GgufType::q6_k, WeightFormat::native},
               {GgufType::q5_0, WeightFormat::native}};
  for (const auto& [type, format] : cases) {
    const Bytes bytes = file_with(type);
    const GgufFile file(bytes);
    Linear<float> linear(in, out);
    load_weight(linear, file, "w");
    EXPECT_EQ(linear.weight_format(), format) << gguf_type_name(type);
    EXPECT_TRUE(same_bits(linear.weight(), file.read<float, 2>("w"))) << gguf_type_name(type);
  }
}

TEST(GgufLinear, TakesTheLayersOwnTypeAsItIs) {
  const Bytes halves = file_with(GgufType::f16), brains = file_with(GgufType::bf16), eight = file_with(GgufType::q8_0);
  Linear<Eigen::half> half(in, out);
  load_weight(half, GgufFile(halves), "w");
  EXPECT_EQ(half.weight_format(), WeightFormat::native);
  EXPECT_TRUE(same_bits(half.weight(), GgufFile(halves).read<Eigen::half, 2>("w")));
  load_weight(half, GgufFile(brains), "w");
  EXPECT_EQ(half.weight_format(), WeightFormat::bfloat16);
  Linear<double> wide(in, out);
  load_weight(wide, GgufFile(eight), "w");
  EXPECT_EQ(wide.weight_format(), WeightFormat::int8);
}

TEST(GgufLinear, ReplacesAnyFormatByThatOfTheFile) {
  Linear<float> linear(in, out);
  for (const GgufType type : {GgufType::q8_0, GgufType::f32, GgufType::q4_0, GgufType::q4_k, GgufType::f16}) {
    const Bytes bytes = file_with(type);
    load_weight(linear, GgufFile(bytes), "w");
    EXPECT_TRUE(same_bits(linear.weight(), GgufFile(bytes).read<float, 2>("w"))) << gguf_type_name(type);
  }
}

TEST(GgufLinear, LoadsFloatsThatAreNotAligned) {
  Bytes bytes = file_with(GgufType::f32);
  bytes.insert(bytes.begin(), std::byte{0});
  const GgufFile file(std::span<const std::byte>(bytes).subspan(1));
  Linear<float> linear(in, out);
  load_weight(linear, file, "w");
  EXPECT_TRUE(same_bits(linear.weight(), file.read<float, 2>("w")));
}

TEST(GgufLinear, LoadsTheSameOnAnyNumberOfThreads) {
  const Bytes bytes = file_with(GgufType::q8_0);
  const auto loaded_on = [&](attn::Executor& executor) {
    const attn::UseExecutor use(executor);
    Linear<float> linear(in, out);
    load_weight(linear, GgufFile(bytes), "w");
    return linear.weight();
  };
  attn::SerialExecutor serial;
  attn::ThreadPool pool(3);
  EXPECT_TRUE(same_bits(loaded_on(serial), loaded_on(pool)));
}

TEST(GgufLinear, MultipliesByStoredBlocksAsByTheirNumbers) {
  const Bytes bytes = file_with(GgufType::q8_0);
  Linear<float> stored(in, out, false);
  load_weight(stored, GgufFile(bytes), "w");
  const Linear<float> native(GgufFile(bytes).read<float, 2>("w"));
  const auto x = random_tensor<float, 2>({3, in}, 1);
  const double size = attn_test::magnitude(attn_test::cast<double>(native(x)));
  EXPECT_LE(attn_test::difference(stored(x), native(x)).largest, 0.02 * size);  // inputs are rounded to 8 bits
  EXPECT_GT(size, 0);
}

TEST(GgufLinear, RefusesOtherShapesAndLeavesTheLayerAlone) {
  const Bytes bytes = file_with(GgufType::q2_k);
  const GgufFile file(bytes);
  Linear<float> turned(out, in), linear(in, out);
  const auto before = linear.weight();
  expect_error([&] { load_weight(turned, file, "w"); },
               {"[attn::load_weight] w, expected [out,in] [256,101], got [101,256]"});
  expect_error([&] { load_weight(linear, file, "w"); }, {"expected a type that attn reads, got Q2_K"});
  expect_error([&] { load_weight(linear, file, "padding"); }, {"expected [out,in] [101,256], got [1]"});
  expect_error([&] { load_weight(linear, file, "v"); }, {"got v"});
  EXPECT_TRUE(same_bits(linear.weight(), before));
}

TEST(GgufLinear, LoadsBiasesAndNorms) {
  const Bytes bytes = Writer().add_tensor("b", GgufType::f32, {2}, bytes_of({3.F, 4.F})).bytes();
  const GgufFile file(bytes);
  Linear<float> linear(5, 2), without(5, 2, false);
  load_bias(linear, file, "b");
  EXPECT_EQ(linear.bias()(1), 4.F);
  expect_error([&] { load_bias(without, file, "b"); }, {"this layer has no bias"});
  attn::RmsNorm<float> norm(2);
  load_weight(norm, file, "b");
  EXPECT_EQ(norm.weight()(0), 3.F);
  attn::RmsNorm<float> longer(3);
  expect_error([&] { load_weight(longer, file, "b"); }, {"weight [size]", "got [2]"});
}

TEST(SetStoredWeight, TakesRowsOfNumbersOf16Bits) {
  for (const WeightFormat format : {WeightFormat::half, WeightFormat::bfloat16})
    for (const Index inputs : {1, 31, 70})
      for (const Index outputs : {1, 16, 47, 48, 49, 130}) {
        Linear<float> expected(inputs, outputs, false, 1), linear(inputs, outputs, false, 2);
        expected.store_weights(format);
        const auto weight = expected.weight();
        Bytes rows;
        for (Index i = 0; i < weight.size(); ++i) {
          std::uint16_t bits = 0;
          const Eigen::half half(weight.data()[i]);
          const Eigen::bfloat16 brain(weight.data()[i]);
          const void* const from = format == WeightFormat::half ? static_cast<const void*>(&half) : &brain;
          std::memcpy(&bits, from, 2);
          attn_test::gguf::put(rows, bits);
        }
        linear.set_stored_weight(format, rows);
        EXPECT_EQ(linear.weight_format(), format);
        EXPECT_TRUE(same_bits(linear.weight(), weight)) << inputs << " to " << outputs;
        const auto x = random_tensor<float, 2>({3, inputs}, 1);
        EXPECT_TRUE(same_bits(linear(x), expected(x)));  // unused outputs of a panel are zeros, too
      }
}

TEST(SetStoredWeight, RefusesRowsThatDoNotFit) {
  Linear<float> linear(64, 30);
  Linear<Eigen::half> half(64, 30);
  const Bytes rows(100);
  expect_error([&] { linear.set_stored_weight(WeightFormat::half, rows); },
               {"[attn::Linear::set_stored_weight]", "expected 3840 bytes of half, got 100"});
  expect_error([&] { linear.set_stored_weight(WeightFormat::int8, rows); }, {"expected 2040 bytes of int8, got 100"});
  expect_error([&] { linear.set_stored_weight(WeightFormat::native, rows); }, {"set_weight takes, got native"});
  expect_error([&] { half.set_stored_weight(WeightFormat::half, rows); }, {"set_weight takes, got native"});
  EXPECT_EQ(linear.weight_format(), WeightFormat::native);
}

}  // namespace
