// Attention of bfloat16 that is multiplied in pairs, on CPUs that have the instruction.

#include "support.hpp"

namespace {

using attn::AttentionOptions;
using attn::Causal;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::scaled_dot_product_attention;
using attn::SlidingWindow;
using attn::Tensor;
using attn_test::expect_attention;
using attn_test::Inputs;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::same_bits;
using attn_test::same_score;
using attn_test::Sizes;
using attn_test::to;
using Eigen::bfloat16;

/// Multiplies in pairs, whatever is best on this CPU.
class AttentionInPairs : public testing::Test {
 protected:
  void SetUp() override {
    attn::set_bf16_dots(true);
    if (!attn::bf16_dots()) GTEST_SKIP() << "this CPU or instruction set has no products of bfloat16 in pairs";
  }
};

Tensor<bfloat16, 4> without_pairs(const Inputs<bfloat16>& in) {
  attn::set_bf16_dots(false);
  auto y = scaled_dot_product_attention(in.q, in.k, in.v).output;
  attn::set_bf16_dots(true);
  return y;
}

TEST_F(AttentionInPairs, AreUsedWhereTheHeadSizeIsEven) {
  for (const Index D : {1, 2, 7, 16, 130, 161}) {
    const auto in = random_inputs<bfloat16>({.B = 1, .H = 2, .G = 1, .S = 70, .T = 90, .D = D, .Dv = 33}, 1);
    EXPECT_EQ(same_bits(scaled_dot_product_attention(in.q, in.k, in.v).output, without_pairs(in)), D % 2 != 0) << D;
  }
}

TEST_F(AttentionInPairs, MatchTheOracle) {
  unsigned seed = 6100;
  for (Sizes n : many_sizes()) {
    n.D += n.D % 2;
    const auto in = random_inputs<bfloat16>(n, ++seed);
    expect_attention(in, NoMask{}, NoScore{}, keep_all);
    AttentionOptions options{.dropout = 0.2, .seed = 3};
    options.weights = true;
    expect_attention(
        in, Causal{}, attn::SoftCap(2.F), [=](Position at) { return only_if(at.key <= at.row + n.T - n.S); },
        [](double x, Position) { return 2 * std::tanh(x / 2); }, options);
  }
}

/// Keys from `begin` to before `end`, both of which may be odd, in panels that see them all.
TEST_F(AttentionInPairs, TakeKeysWhosePartnerIsNotSeen) {
  const Sizes n{.B = 1, .H = 1, .G = 1, .S = 50, .T = 140, .D = 8, .Dv = 21};
  auto in = random_inputs<bfloat16>(n, 1);
  const auto nan = static_cast<bfloat16>(std::numeric_limits<float>::quiet_NaN());
  for (const Index begin : {0, 1, 2, 63, 64, 65})
    for (const Index end : {begin + 1, begin + 2, begin + 3, begin + 64, Index{131}}) {
      SCOPED_TRACE(testing::Message() << "keys " << begin << " to " << end);
      struct Span {
        Index begin, end;
        [[nodiscard]] bool keep(Position at) const { return at.key >= begin && at.key < end; }
        [[nodiscard]] attn::Coverage cover(const attn::Block& block) const {
          if (block.last.key < begin || block.first.key >= end) return attn::Coverage::empty;
          return block.first.key >= begin && block.last.key < end ? attn::Coverage::full : attn::Coverage::mixed;
        }
      };
      auto hidden = in;
      for (Index t = 0; t < n.T; ++t)
        for (Index d = 0; d < n.Dv && (t < begin || t >= end); ++d) hidden.v(0, 0, t, d) = nan;
      const auto expected = scaled_dot_product_attention(in.q, in.k, in.v, Span{begin, end}).output;
      EXPECT_TRUE(same_bits(scaled_dot_product_attention(in.q, in.k, hidden.v, Span{begin, end}).output, expected));
      expect_attention(in, Span{begin, end}, NoScore{},
                       [=](Position at) { return only_if(at.key >= begin && at.key < end); });
    }
}

TEST_F(AttentionInPairs, NeverReadValuesPastAPaddingLength) {
  const Sizes n{.B = 2, .H = 2, .G = 1, .S = 60, .T = 90, .D = 16, .Dv = 16};
  auto in = random_inputs<bfloat16>(n, 1);
  for (const Index length : {1, 2, 33, 64, 65, 89}) {
    const std::vector<Index> lengths{length, n.T};
    const auto expected = scaled_dot_product_attention(in.q, in.k, in.v, Padding(lengths)).output;
    auto dirty = in;
    for (Index t = length; t < n.T; ++t)
      for (Index d = 0; d < n.D; ++d)
        dirty.k(0, 0, t, d) = dirty.v(0, 0, t, d) = static_cast<bfloat16>(std::numeric_limits<float>::quiet_NaN());
    EXPECT_TRUE(same_bits(scaled_dot_product_attention(dirty.q, dirty.k, dirty.v, Padding(lengths)).output, expected))
        << length;
  }
}

TEST_F(AttentionInPairs, GiveTheSameBitsFromAnyLayoutAndThreads) {
  const Sizes n{.B = 2, .H = 4, .G = 2, .S = 130, .T = 201, .D = 18, .Dv = 22};
  const auto in = random_inputs<bfloat16>(n, 1);
  const auto mask = Causal{} & SlidingWindow(77);
  const auto expected = scaled_dot_product_attention(in.q, in.k, in.v, mask).output;
  for (const Index more : {1, 2, 3}) {  // rows that lie apart, at odd distances too
    const auto apart = [&](const Tensor<bfloat16, 4>& x, std::vector<bfloat16>& memory) {
      const Index row = x.dimension(3) + more, head = x.dimension(2) * row + more;
      memory.resize(static_cast<std::size_t>(x.dimension(0) * x.dimension(1) * head));
      const attn::View<bfloat16, 4> view(memory.data(), attn::detail::shape_of(x),
                                         {x.dimension(1) * head, head, row, 1});
      for (Index b = 0; b < x.dimension(0); ++b)
        for (Index h = 0; h < x.dimension(1); ++h)
          for (Index s = 0; s < x.dimension(2); ++s)
            for (Index d = 0; d < x.dimension(3); ++d) view(b, h, s, d) = x(b, h, s, d);
      return view;
    };
    std::vector<bfloat16> q, k, v;
    EXPECT_TRUE(
        same_bits(scaled_dot_product_attention(apart(in.q, q), apart(in.k, k), apart(in.v, v), mask).output, expected));
  }
  for (const int threads : {1, 2, 5}) {
    attn::ThreadPool pool(threads);
    const attn::UseExecutor use(pool);
    EXPECT_TRUE(same_bits(scaled_dot_product_attention(in.q, in.k, in.v, mask).output, expected)) << threads;
  }
}

TEST_F(AttentionInPairs, GiveTheSameBitsFromACacheInPages) {
  const Sizes n{.B = 1, .H = 4, .G = 2, .S = 150, .T = 150, .D = 16, .Dv = 24};
  const auto in = random_inputs<bfloat16>(n, 1);
  const auto expected = scaled_dot_product_attention(in.q, in.k, in.v, Causal{}).output;
  for (const attn::KvCacheOptions& options : {attn::KvCacheOptions{}, attn::KvCacheOptions{.page = 64}}) {
    attn::KvCache<bfloat16> cache(1, n.G, 200, n.D, n.Dv, options);
    cache.append(in.k, in.v);
    EXPECT_TRUE(same_bits(scaled_dot_product_attention(in.q, cache, Causal{}).output, expected));
  }
  attn::KvCache<bfloat16> bytes(1, n.G, 200, n.D, n.Dv, attn::CacheFormat::int8, attn::CacheFormat::native);
  bytes.append(in.k, in.v);  // keys in another format are not multiplied in pairs
  EXPECT_LE(attn_test::difference(scaled_dot_product_attention(in.q, bytes, Causal{}).output,
                                  attn_test::cast<double>(expected))
                .largest,
            0.05);
}

}  // namespace
