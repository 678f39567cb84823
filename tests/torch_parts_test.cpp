// Linear, Softmax and Rotary against PyTorch.
#include "torch_support.hpp"

namespace {

using attn::Index;
using attn::Tensor;
using attn_test::Bar;
using attn_test::max_difference;
using attn_test::to_tensor;
using attn_test::torch_cases;
using attn_test::TorchCase;

template <class T>
class TorchParts : public testing::Test {
 protected:
  /// layer(x) against the case's output, in the rank of the case.
  template <class Layer>
  static void expect(Bar& bar, const TorchCase& c, const Layer& layer) {
    const auto in_rank = [&]<int Rank>() {
      bar.expect(c, layer(to_tensor<T, Rank>(c.tensor("x"))), to_tensor<double, Rank>(c.tensor("output")));
    };
    switch (c.param<int>("rank")) {
      case 1:
        return in_rank.template operator()<1>();
      case 2:
        return in_rank.template operator()<2>();
      case 3:
        return in_rank.template operator()<3>();
      case 4:
        return in_rank.template operator()<4>();
      default:
        FAIL() << c;
    }
  }
};
TYPED_TEST_SUITE(TorchParts, attn_test::FloatAndDouble);

TYPED_TEST(TorchParts, LinearGivesItsOutput) {
  Bar bar(std::string("linear ") + attn_test::type_name<TypeParam>);
  for (const TorchCase& c : torch_cases("linear")) {
    attn::Linear<TypeParam> layer(c.param<Index>("in"), c.param<Index>("out"), c.param<bool>("bias"));
    layer.set_weight(to_tensor<TypeParam, 2>(c.tensor("w")));
    if (layer.has_bias()) layer.set_bias(to_tensor<TypeParam, 1>(c.tensor("b")));
    this->expect(bar, c, layer);
  }
}

TYPED_TEST(TorchParts, SoftmaxGivesItsOutput) {
  Bar bar(std::string("softmax ") + attn_test::type_name<TypeParam>);
  for (const TorchCase& c : torch_cases("softmax")) this->expect(bar, c, attn::Softmax<TypeParam>());
}

// ---- Rotary ----

attn::RotaryConfig config_of(const TorchCase& c, attn::RotaryLayout layout) {
  attn::RotaryConfig config{.layout = layout, .theta = c.param<double>("theta")};
  const auto factor = [&] { return c.param<double>("factor"); };
  std::optional<double> attention_factor;
  if (c.has_param("attention_factor_given") && c.param<bool>("attention_factor_given"))
    attention_factor = c.param<double>("attention_factor");
  const std::string type = c.param("type");
  if (type == "linear") config.scaling = attn::LinearScaling{factor()};
  if (type == "dynamic") config.scaling = attn::DynamicNtkScaling{factor(), c.param<Index>("max_position")};
  if (type == "llama3")
    config.scaling = attn::Llama3Scaling{factor(), c.param<double>("low_freq_factor"),
                                         c.param<double>("high_freq_factor"), c.param<Index>("original_max_position")};
  if (type == "yarn")
    config.scaling = attn::YarnScaling{factor(),
                                       c.param<Index>("original_max_position"),
                                       c.param<double>("beta_fast"),
                                       c.param<double>("beta_slow"),
                                       attention_factor,
                                       c.param<bool>("truncate")};
  if (type == "longrope")
    config.scaling = attn::LongRopeScaling{
        c.param<std::vector<double>>("short_factor"), c.param<std::vector<double>>("long_factor"),
        c.param<Index>("original_max_position"),
        c.param<double>("max_position") / c.param<double>("original_max_position"), attention_factor};
  return config;
}
Index length_of(const TorchCase& c) { return c.has_param("seq_len") ? c.param<Index>("seq_len") : 0; }

TEST(TorchRotary, GivesItsFrequencies) {
  for (const TorchCase& c : torch_cases("rotary")) {
    const auto expected = c.tensor("inv_freq").values;
    std::vector<double> frequencies(expected.size());
    attn::Rotary(c.param<Index>("D"), config_of(c, attn::RotaryLayout::half_split))
        .frequencies(length_of(c), frequencies);
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_NEAR(frequencies[i], expected[i], 1e-13 * expected[i]) << c << ", pair " << i;
  }
}

TEST(TorchRotary, GivesItsAttentionFactors) {
  for (const TorchCase& c : torch_cases("rotary")) {
    const double expected = c.has_param("attention_factor") ? c.param<double>("attention_factor") : 1.0;
    EXPECT_NEAR(attn::Rotary(c.param<Index>("D"), config_of(c, attn::RotaryLayout::half_split)).attention_factor(),
                expected, 1e-14)
        << c;
  }
}

// PyTorch's float32 has its tables wrong by 1e-3 at position 131071; ours are computed in double and rounded once, so
// the bar is tighter than twice its error: 3 float roundings of a sum of two products (2^-24 each, of size at most
// sqrt(2) * attention factor), whatever the position. With double tensors the rounded tables remain.
TEST(TorchRotary, RotatesHeadsInBothLayouts) {
  double worst = 0.0;
  for (const TorchCase& c : torch_cases("rotary"))
    for (const auto& [layout, name] :
         {std::pair{attn::RotaryLayout::half_split, "half_split"}, {attn::RotaryLayout::interleaved, "interleaved"}}) {
      const attn::Rotary rotary(c.param<Index>("D"), config_of(c, layout));
      const auto q = to_tensor<float, 4>(c.tensor("q"));
      const auto expected = to_tensor<double, 4>(c.tensor(name));
      const auto positions = c.param<std::vector<Index>>("positions");
      const std::array<Index, 1> length{length_of(c)};
      for (Index s = 0; s < std::ssize(positions); ++s) {
        const Index position = positions[static_cast<std::size_t>(s)];
        Tensor<float, 4> x(1, 2, 1, q.dimension(3));
        Tensor<double, 4> wide(x.dimensions()), exact(x.dimensions());
        for (Index h = 0; h < 2; ++h)
          for (Index d = 0; d < q.dimension(3); ++d) {
            x(0, h, 0, d) = q(0, h, s, d);
            exact(0, h, 0, d) = expected(0, h, s, d);
          }
        wide = x.template cast<double>();
        const std::array<Index, 1> start{position};
        rotary.apply(x, start, length);
        rotary.apply(wide, start, length);
        const double size = std::sqrt(2.0) * rotary.attention_factor() * 0x1p-24;
        EXPECT_LE(max_difference(x, exact), 3.0 * size) << c << ", " << name << ", position " << position;
        EXPECT_LE(max_difference(wide, exact), 1.01 * size) << c << ", double, " << name << ", position " << position;
        worst = std::max(worst, max_difference(x, exact) / c.torch_max_error(name));
      }
    }
  EXPECT_LE(worst, 2.0);
  std::printf("[ PyTorch  ] rotary float: worst ratio to PyTorch's own error %.3g\n", worst);
  RecordProperty("rotary float", std::to_string(worst));
}

}  // namespace
