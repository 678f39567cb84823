// What a user's mask and score function are asked: positions that exist, scores that are real, keys that the mask keeps.
#include "support.hpp"

#include <map>
#include <mutex>
#include <tuple>

namespace {

using attn::Block;
using attn::Causal;
using attn::Coverage;
using attn::Index;
using attn::NoMask;
using attn::NoScore;
using attn::Position;
using attn_test::ask_oracle;
using attn_test::by_reference;
using attn_test::difference;
using attn_test::expect_attention;
using attn_test::for_each_position;
using attn_test::infinity;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::same_score;
using attn_test::Sizes;

using Place = std::tuple<int, int, int, int>;  // batch, head, row, key
Place place_of(Position at) { return {at.batch, at.head, at.row, at.key}; }

/// What a callable was asked, from several threads.
struct Calls {
  std::mutex mutex;
  std::map<Place, std::vector<float>> scores;

  void add(Position at, float score) {
    const std::lock_guard lock(mutex);
    scores[place_of(at)].push_back(score);
  }
};

/// Sizes with tails in rows and keys: decoding, less than a panel, more than one.
std::vector<Sizes> sizes_with_tails() {
  return {{.B = 1, .H = 1, .G = 1, .S = 5, .T = 5, .D = 3, .Dv = 2},
          {.B = 2, .H = 4, .G = 2, .S = 1, .T = 300, .D = 4, .Dv = 3},
          {.B = 1, .H = 2, .G = 1, .S = 3, .T = 67, .D = 4, .Dv = 3},
          {.B = 2, .H = 2, .G = 2, .S = 50, .T = 67, .D = 4, .Dv = 3},
          {.B = 1, .H = 1, .G = 1, .S = 101, .T = 130, .D = 4, .Dv = 3}};
}

/// The score function is asked about every pair that the mask keeps, with its score, and about no other.
template <class M>
void expect_real_scores(const M& mask) {
  for (const Sizes& n : sizes_with_tails()) {
    SCOPED_TRACE(testing::Message() << n);
    const auto in = random_inputs<float>(n, 51);
    Calls calls;
    const auto score = [&calls](float x, Position at) {
      calls.add(at, x);
      return x;
    };
    (void)attn::scaled_dot_product_attention(in.q, in.k, in.v, mask, score);
    std::size_t kept = 0;
    for_each_position(n, {}, [&](Position at) {
      const auto found = calls.scores.find(place_of(at));
      ASSERT_EQ(found != calls.scores.end(), mask.keep(at)) << "row " << at.row << ", key " << at.key;
      if (!mask.keep(at)) return;
      ++kept;
      double dot = 0;
      for (Index d = 0; d < n.D; ++d)
        dot += static_cast<double>(in.q(at.batch, at.head, at.row, d)) *
               static_cast<double>(in.k(at.batch, at.head / (n.H / n.G), at.key, d));
      for (const float x : found->second) ASSERT_NEAR(x, dot / std::sqrt(static_cast<double>(n.D)), 1e-5);
    });
    EXPECT_EQ(calls.scores.size(), kept) << "it was asked about positions that do not exist";
  }
}

TEST(AttentionCallables, AScoreFunctionSeesRealScores) { expect_real_scores(NoMask{}); }

TEST(AttentionCallables, AScoreFunctionSeesKeptKeysUnderACausalMask) { expect_real_scores(Causal{}); }

TEST(AttentionCallables, AScoreFunctionSeesKeptKeysInAWindow) { expect_real_scores(attn::SlidingWindow(7, 2)); }

TEST(AttentionCallables, AScoreFunctionSeesKeptKeysOfAPredicate) {
  expect_real_scores(attn::as_mask([](Position at) { return (at.key + at.row) % 5 == 2; }));
  expect_real_scores(attn::as_mask([](Position at) { return at.key == 40; }));
}

TEST(AttentionCallables, AScoreFunctionMayIndexATableByDistance) {
  const Sizes n{.B = 1, .H = 2, .G = 1, .S = 61, .T = 61, .D = 8, .Dv = 4};
  const auto in = random_inputs<float>(n, 52);
  std::vector<float> table;
  for (int i = 0; i < 61; ++i) table.push_back(0.25F * std::sin(static_cast<float>(i)));
  const auto score = [&table](float x, Position at) {
    return x + table.at(static_cast<std::size_t>(at.query - at.key));
  };
  expect_attention(
      in, Causal{}, score, [](Position at) { return only_if(at.key <= at.row); },
      [&](double x, Position at) {
        return at.key <= at.row ? x + static_cast<double>(table.at(static_cast<std::size_t>(at.row - at.key))) : x;
      });
}

/// A causal mask with a bias that has no value for keys after the query, and that calls blocks full.
struct Biased {
  const std::vector<float>* table;

  bool keep(Position at) const { return at.key <= at.query; }
  Coverage cover(Block block) const { return Causal{}.cover(block); }
  float bias(Position at) const { return table->at(static_cast<std::size_t>(at.query - at.key)); }
};

TEST(AttentionCallables, ABiasIsAddedInBlocksThatAreKeptInFull) {
  std::vector<float> table;
  for (int i = 0; i < 400; ++i) table.push_back(1.5F * std::cos(static_cast<float>(i)));
  for (const Index S : {1, 4, 70, 300}) {
    const Sizes n{.B = 1, .H = 2, .G = 1, .S = S, .T = 300, .D = 8, .Dv = 4};
    const auto expected = [&](Position at) {
      const Index distance = at.row + n.T - n.S - at.key;
      return distance < 0 ? -infinity : static_cast<double>(table[static_cast<std::size_t>(distance)]);
    };
    const auto in = random_inputs<float>(n, 53);
    expect_attention(in, Biased{&table}, NoScore{}, expected);
    expect_attention(in, Biased{&table} & attn::SlidingWindow(300), NoScore{}, expected);
    const auto by_definition = by_reference(in, Biased{&table}, NoScore{}, {});
    const auto exact = ask_oracle(in, expected, same_score, {}).exact;
    EXPECT_LE(difference(by_definition.output, exact.output).largest, 1e-5);
  }
}

}  // namespace
