// scaled_dot_product_attention against PyTorch: grouped heads, masks, score functions, output and log-sum-exp.
#include "torch_support.hpp"

namespace {

using attn::Index;
using attn::Tensor;
using attn_test::Bar;
using attn_test::to_tensor;
using attn_test::torch_cases;
using attn_test::TorchCase;
using attn_test::with_mask;

template <class T>
class TorchCore : public testing::Test {};
TYPED_TEST_SUITE(TorchCore, attn_test::FloatAndDouble);

template <class T>
struct Core {
  const TorchCase& c;
  Bar& output;
  Bar& log_sum_exp;
  Tensor<T, 4> q = to_tensor<T, 4>(c.tensor("q")), k = to_tensor<T, 4>(c.tensor("k")),
               v = to_tensor<T, 4>(c.tensor("v"));

  template <class M, class F>
  void expect(const M& mask, const F& score) const {
    attn::AttentionOptions options;
    options.scale = c.param<double>("scale");
    options.log_sum_exp = true;
    const auto result = attn::scaled_dot_product_attention(q, k, v, mask, score, options);
    output.expect(c, result.output, to_tensor<double, 4>(c.tensor("output")));
    const auto lse = to_tensor<double, 3>(c.tensor("lse"));
    const auto plain =
        attn_test::by_reference(attn_test::Inputs<T>{{q.dimension(0), q.dimension(1), k.dimension(1), q.dimension(2),
                                                      k.dimension(2), q.dimension(3), v.dimension(3)},
                                                     q,
                                                     k,
                                                     v},
                                mask, score, options);
    log_sum_exp.expect(c, result.log_sum_exp, lse, "lse", attn_test::max_difference(plain.log_sum_exp, lse));
  }

  /// Without score functions: each mask in its own type.
  void with_plain_scores() const {
    const bool causal = c.param<bool>("causal");
    const auto window = c.param<Index>("window");
    if (c.has_tensor("mask")) {
      with_mask<T>(c, "mask", [&](const auto& tensor) {
        const attn::AdditiveMask mask(tensor);
        if (causal)
          expect(mask & attn::Causal{}, attn::NoScore{});
        else
          expect(mask, attn::NoScore{});
      });
    } else if (window > 0) {
      ASSERT_TRUE(causal);
      expect(attn::SlidingWindow(window), attn::NoScore{});  // a window without keys ahead is causal
    } else if (causal) {
      expect(attn::Causal{}, attn::NoScore{});
    } else {
      expect(attn::NoMask{}, attn::NoScore{});
    }
  }

  /// With score functions: one type of mask for all, to be short.
  template <class F>
  void with_score(const F& score) const {
    Tensor<T, 4> zero(1, 1, 1, 1);
    zero.setZero();
    const auto run = [&](const auto& tensor) {
      const auto window = c.param<Index>("window");
      const auto behind = window > 0 ? window : Index{1} << 20, ahead = c.param<bool>("causal") ? 0 : Index{1} << 20;
      expect(attn::AdditiveMask(tensor) & attn::SlidingWindow(behind, ahead), score);
    };
    if (c.has_tensor("mask"))
      with_mask<T>(c, "mask", run);
    else
      run(zero);
  }
};

TYPED_TEST(TorchCore, GivesItsOutputAndItsLogSumExp) {
  const std::string type = attn_test::type_name<TypeParam>;
  Bar output("core " + type), log_sum_exp("core log-sum-exp " + type);
  for (const TorchCase& c : torch_cases("core")) {
    const Core<TypeParam> core{c, output, log_sum_exp};
    const auto cap = c.param<float>("softcap");
    const attn::Alibi alibi(c.param<Index>("H"));
    if (cap > 0.F && c.param<bool>("alibi"))
      core.with_score(attn::Chain{attn::SoftCap(cap), alibi});
    else if (cap > 0.F)
      core.with_score(attn::SoftCap(cap));
    else if (c.param<bool>("alibi"))
      core.with_score(alibi);
    else
      core.with_plain_scores();
  }
}

// PyTorch gives NaN there; attn's convention, stored in the case, is output 0 and log-sum-exp -inf.
TYPED_TEST(TorchCore, GivesZeroAndMinusInfinityForARowWithoutKeys) {
  int empty = 0;
  for (const TorchCase& c : torch_cases("core")) {
    if (c.param<int>("empty_rows") == 0) continue;
    const auto q = to_tensor<TypeParam, 4>(c.tensor("q")), k = to_tensor<TypeParam, 4>(c.tensor("k")),
               v = to_tensor<TypeParam, 4>(c.tensor("v"));
    attn::AttentionOptions options;
    options.log_sum_exp = true;
    const auto result = attn::scaled_dot_product_attention(q, k, v, attn::Causal{}, attn::NoScore{}, options);
    for (Index i = 0; i < result.log_sum_exp.size(); ++i) {
      if (result.log_sum_exp.data()[i] != -attn_test::infinity) continue;
      ++empty;
      for (Index d = 0; d < v.dimension(3); ++d) EXPECT_EQ(result.output.data()[i * v.dimension(3) + d], TypeParam(0));
    }
    EXPECT_EQ(empty, c.param<int>("empty_rows"));
  }
  EXPECT_GT(empty, 0);
}

// At distance 1, ALiBi turns a score of 0 into minus the slope.
TEST(TorchAlibi, GivesItsSlopes) {
  for (const TorchCase& c : torch_cases("core")) {
    if (!c.has_tensor("slopes")) continue;
    const auto slopes = c.tensor("slopes").values;
    const attn::Alibi alibi(std::ssize(slopes));
    for (std::size_t h = 0; h < slopes.size(); ++h)
      EXPECT_NEAR(alibi(0.0, {.head = static_cast<std::int32_t>(h), .query = 1}), -slopes[h], 1e-7 * slopes[h])
          << c << ", head " << h;
  }
}

}  // namespace
