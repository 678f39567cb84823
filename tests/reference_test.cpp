// The oracle itself: attn::reference against the formula written once more, with tensors of scores in between.

#include "support.hpp"

namespace {

using attn::AttentionOptions;
using attn::Index;
using attn::Position;
using attn_test::Answer;
using attn_test::by_reference;
using attn_test::difference;
using attn_test::filled;
using attn_test::for_each_position;
using attn_test::Inputs;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::PlainMask;
using attn_test::PlainScore;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_score;
using attn_test::Sizes;

/// softmax(score(q kT * scale) + mask), dropped, times v, all steps as whole tensors in double.
Answer formula(const Inputs<double>& in, const PlainMask& mask, const PlainScore& score,
               const AttentionOptions& options) {
  const Sizes& n = in.n;
  Answer a{filled<double, 4>({n.B, n.H, n.S, n.Dv}, 0.0), filled<double, 3>({n.B, n.H, n.S}, 0.0),
           filled<double, 4>(n.scores(), 0.0)};
  const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(n.D)));
  const auto key_value_head = [&](Position at) { return at.head * n.G / n.H; };

  for_each_position(n, options.query_start, [&](Position at) {
    double dot = 0;
    for (Index d = 0; d < n.D; ++d)
      dot += in.q(at.batch, at.head, at.row, d) * in.k(at.batch, key_value_head(at), at.key, d);
    const double e = std::exp(score(dot * scale, at) + mask(at));  // scores are small: no need to subtract the largest
    a.weights(at.batch, at.head, at.row, at.key) = e;
    a.log_sum_exp(at.batch, at.head, at.row) += e;
  });
  for_each_position(n, options.query_start, [&](Position at) {
    double& p = a.weights(at.batch, at.head, at.row, at.key);
    const double sum = a.log_sum_exp(at.batch, at.head, at.row);
    p = sum > 0 ? p / sum : 0;
    if (options.dropout > 0) {
      const auto plane = static_cast<std::uint32_t>(at.batch * n.H + at.head);
      const std::array<std::uint32_t, 2> key{static_cast<std::uint32_t>(options.seed),
                                             static_cast<std::uint32_t>(options.seed >> 32)};
      const auto words = attn::philox4x32(
          {static_cast<std::uint32_t>(at.key / 4), static_cast<std::uint32_t>(at.row), plane, options.call}, key);
      const double threshold = std::floor(options.dropout * 0x1p32);
      p *= words[static_cast<std::size_t>(at.key % 4)] < threshold ? 0 : 0x1p32 / (0x1p32 - threshold);
    }
    for (Index d = 0; d < n.Dv; ++d)
      a.output(at.batch, at.head, at.row, d) += p * in.v(at.batch, key_value_head(at), at.key, d);
  });
  for (Index i = 0; i < a.log_sum_exp.size(); ++i) a.log_sum_exp.data()[i] = std::log(a.log_sum_exp.data()[i]);
  return a;
}

template <class M, class F>
void expect_reference(const Inputs<double>& in, const M& mask, const F& score, const PlainMask& plain_mask,
                      const PlainScore& plain_score = same_score, const AttentionOptions& options = {}) {
  SCOPED_TRACE(testing::Message() << in.n);
  const Answer got = by_reference(in, mask, score, options), expected = formula(in, plain_mask, plain_score, options);
  EXPECT_LT(difference(got.output, expected.output).largest, 1e-13);
  EXPECT_LT(difference(got.log_sum_exp, expected.log_sum_exp).largest, 1e-13);
  EXPECT_LT(difference(got.weights, expected.weights).largest, 1e-14);
}

TEST(Reference, MatchesTheFormulaWithoutAMask) {
  unsigned seed = 0;
  for (const Sizes& n : many_sizes())
    expect_reference(random_inputs<double>(n, ++seed), attn::NoMask{}, attn::NoScore{}, keep_all);
}

TEST(Reference, MatchesTheFormulaUnderMasks) {
  unsigned seed = 0;
  for (const Sizes& n : many_sizes()) {
    const auto in = random_inputs<double>(n, ++seed);
    const std::vector<Index> lengths(static_cast<std::size_t>(n.B), n.T - n.T / 3);
    expect_reference(in, attn::Causal{} & attn::SlidingWindow(9) & attn::Padding(lengths), attn::NoScore{},
                     [=](Position at) {
                       const Index query = at.row + n.T - n.S;
                       return only_if(at.key <= query && at.key > query - 9 && at.key < n.T - n.T / 3);
                     });
    const auto bias = random_tensor<double, 2>({n.S, n.T}, ++seed);
    expect_reference(in, attn::AdditiveMask(bias), attn::NoScore{}, [&](Position at) { return bias(at.row, at.key); });
  }
}

TEST(Reference, AppliesScoresScaleAndQueryStart) {
  const Sizes n{.B = 2, .H = 6, .G = 3, .S = 11, .T = 30, .D = 7, .Dv = 4};
  const std::vector<Index> start{3, -2};
  AttentionOptions options;
  options.scale = 0.3;
  options.query_start = start;
  expect_reference(
      random_inputs<double>(n, 1), attn::Causal{}, attn::SoftCap(2.F),
      [&](Position at) { return only_if(at.key <= start[static_cast<std::size_t>(at.batch)] + at.row); },
      [](double x, Position) { return 2 * std::tanh(x / 2); }, options);
}

TEST(Reference, DropsByPosition) {
  const Sizes n{.B = 2, .H = 4, .G = 2, .S = 11, .T = 30, .D = 7, .Dv = 4};
  AttentionOptions options;
  options.dropout = 0.3;
  options.seed = 0x123456789ABCDEFULL;
  options.call = 5;
  expect_reference(random_inputs<double>(n, 2), attn::NoMask{}, attn::NoScore{}, keep_all, same_score, options);
}

}  // namespace
