// What masks and score functions do to scores in panels and lines, and what trim() leaves of a block.
#include "support.hpp"

#include <attn/mask.hpp>
#include <attn/score.hpp>

#include <array>

namespace {

namespace kernel = attn::kernel;
using attn::Block;
using attn::Coverage;
using attn::Position;
using attn_test::Accumulators;
using attn_test::as_size;
using attn_test::Fenced;
using attn_test::Index;
using attn_test::Isa;
using attn_test::on_every_isa;
using attn_test::whole_numbers;

// ---- trim -------------------------------------------------------------------------------------------------------

constexpr std::int32_t grid_rows = 6, grid_keys = 9;

/// Calls f(block) for every block of a small grid: all batch entries, where queries stand, rows and keys.
template <class F>
void for_each_block(const F& f) {
  const auto at = [](std::int32_t batch, std::int32_t start, std::int32_t row, std::int32_t key) {
    return Position{.batch = batch, .head = 0, .row = row, .query = start + row, .key = key};
  };
  for (std::int32_t batch = 0; batch < 3; ++batch)
    for (const std::int32_t start : {0, 3, 8})
      for (std::int32_t row = 0; row < grid_rows; ++row)
        for (std::int32_t last_row = row; last_row < grid_rows; ++last_row)
          for (std::int32_t key = 0; key < grid_keys; ++key)
            for (std::int32_t last_key = key; last_key < grid_keys; ++last_key)
              f(Block{at(batch, start, row, key), at(batch, start, last_row, last_key)});
}

/// Whether a mask keeps this key for any query of the block, or for all of them.
template <class M>
std::array<bool, 2> any_and_all(const M& mask, const Block& block, std::int32_t key) {
  bool any = false, all = true;
  for (Position at = block.first; at.row <= block.last.row; ++at.row, ++at.query) {
    at.key = key;
    any = any || mask.keep(at), all = all && mask.keep(at);
  }
  return {any, all};
}

/// trim() of every block, by the mask's `keep`; `exact`: whether the mask's `cover` knows all that is empty or full.
template <class M>
void check_trim(const M& mask, bool exact) {
  const attn::NoScore score;
  const auto rules = kernel::rules_of<float>(Isa::baseline, mask, score);
  for_each_block([&](const Block& block) {
    if (testing::Test::HasFatalFailure()) return;
    SCOPED_TRACE(testing::Message() << "batch " << block.first.batch << ", queries " << block.first.query << " to "
                                    << block.last.query << ", keys " << block.first.key << " to " << block.last.key);
    std::int32_t first = grid_keys, last = -1;
    bool full = true;
    for (std::int32_t key = block.first.key; key <= block.last.key; ++key) {
      const auto [any, all] = any_and_all(mask, block, key);
      full = full && all;
      if (any) first = std::min(first, key), last = key;
    }
    const kernel::Trimmed rest = kernel::trim(rules, block);
    if (rest.empty) {
      ASSERT_EQ(last, -1) << "a kept key was cut off";
      return;
    }
    ASSERT_FALSE(exact && last == -1) << "nothing remains";
    ASSERT_LE(rest.block.first.key, first);
    ASSERT_GE(rest.block.last.key, last);
    ASSERT_EQ(rest.block.first.row, block.first.row);
    ASSERT_EQ(rest.block.last.row, block.last.row);
    ASSERT_EQ(rest.block.last.query, block.last.query);
    if (!rest.masked) {
      ASSERT_TRUE(full) << "the mask would not be asked";
      ASSERT_EQ(rest.block.last.key - rest.block.first.key, block.last.key - block.first.key);
    }
    if (exact) {
      ASSERT_EQ(rest.masked, !full);
      ASSERT_EQ(rest.block.first.key, first);
      ASSERT_EQ(rest.block.last.key, last);
    }
  });
}

/// The same against a search key by key for what the mask's `cover` calls empty.
template <class M>
void check_search(const M& mask) {
  const attn::NoScore score;
  const auto rules = kernel::rules_of<float>(Isa::baseline, mask, score);
  for_each_block([&](const Block& block) {
    if (mask.cover(block) != Coverage::mixed || testing::Test::HasFatalFailure()) return;
    const auto is_empty = [&](std::int32_t first, std::int32_t last) {
      Block part = block;
      part.first.key = first, part.last.key = last;
      return mask.cover(part) == Coverage::empty;
    };
    std::int32_t first = block.first.key, last = block.last.key;
    while (last >= first && is_empty(last, block.last.key)) --last;
    while (first < last && is_empty(block.first.key, first)) ++first;
    const kernel::Trimmed rest = kernel::trim(rules, block);
    ASSERT_EQ(rest.empty, first > last);
    ASSERT_TRUE(rest.masked);
    ASSERT_EQ(rest.block.first.key, first);
    ASSERT_EQ(rest.block.last.key, last);
  });
}

const std::array<Index, 3> lengths = {4, 0, grid_keys};

TEST(Trim, LeavesTheKeysThatCausalKeeps) {
  check_trim(attn::Causal{}, true);
  check_trim(attn::Causal{.align = attn::Align::top_left}, true);
}

TEST(Trim, LeavesTheKeysOfAWindow) {
  check_trim(attn::SlidingWindow(1), true);
  check_trim(attn::SlidingWindow(3), true);
  check_trim(attn::SlidingWindow(2, 2), true);
}

TEST(Trim, CutsPaddingOff) { check_trim(attn::Padding(lengths), true); }

TEST(Trim, LeavesAllOfABlockThatNoMaskCuts) {
  check_trim(attn::NoMask{}, true);
  check_trim(attn::Predicate{[](Position at) { return (at.key + at.row) % 3 != 0; }}, false);
}

TEST(Trim, CutsNoKeyThatJoinedMasksKeep) {
  check_trim(attn::Causal{} & attn::Padding(lengths), false);
  check_trim(attn::Causal{} & attn::SlidingWindow(2) & attn::Padding(lengths), false);
}

TEST(Trim, FindsWhatASearchKeyByKeyFinds) {
  check_search(attn::Causal{});
  check_search(attn::SlidingWindow(3));
  check_search(attn::Padding(lengths));
  check_search(attn::Causal{} & attn::Padding(lengths));
  check_search(attn::SlidingWindow(2, 1) & attn::Padding(lengths));
}

// ---- Panels and lines -------------------------------------------------------------------------------------------

/// Keeps a pattern without order, and says of every block exactly what it keeps of it.
struct Pattern {
  [[nodiscard]] static bool keep(Position at) {
    return at.key % 5 == 3 || (at.key % 5 != 4 && (at.row * 7 + at.key * 3) % 4 != 0);  // all of a key, none, or some
  }
  [[nodiscard]] static Coverage cover(const Block& block) {
    bool any = false, all = true;
    for (std::int32_t key = block.first.key; key <= block.last.key; ++key) {
      const auto [any_of_key, all_of_key] = any_and_all(Pattern{}, block, key);
      any = any || any_of_key, all = all && all_of_key;
    }
    return all ? Coverage::full : any ? Coverage::mixed : Coverage::empty;
  }
};
struct BiasedPattern : Pattern {
  [[nodiscard]] static float bias(Position at) { return static_cast<float>(at.row - 3 * at.key); }
};

/// A score function that remembers whether it was asked about a score that does not exist, or that the mask drops.
struct Asked {
  Block block;
  bool masked;
  bool* wrong;

  template <class A>
  A operator()(A score, Position at) const {
    const bool inside = at.row >= block.first.row && at.row <= block.last.row && at.key >= block.first.key &&
                        at.key <= block.last.key && at.query - at.row == block.first.query - block.first.row &&
                        at.batch == block.first.batch && at.head == block.first.head;
    if (!inside || (masked && !Pattern::keep(at))) *wrong = true;
    return score * A{2} + static_cast<A>(at.row) - static_cast<A>(at.query + at.key);
  }
};

template <class A, class M, class F>
A expected_score(const M& mask, const F& score, A x, Position at, bool masked) {
  if (masked && !mask.keep(at)) return kernel::masked_score<A>;
  x = score(x, at);
  if constexpr (attn::detail::HasBias<M>) x += static_cast<A>(mask.bias(at));
  return x;
}

Block block_of(Index keys, Index rows) {
  const Position first{.batch = 1, .head = 2, .row = 5, .query = 105, .key = 10};
  Position last = first;
  last.row += static_cast<std::int32_t>(rows - 1), last.query += static_cast<std::int32_t>(rows - 1);
  last.key += static_cast<std::int32_t>(keys - 1);
  return {first, last};
}
Position place(const Block& block, Index key, Index row) {
  Position at = block.first;
  at.row += static_cast<std::int32_t>(row), at.query += static_cast<std::int32_t>(row);
  at.key += static_cast<std::int32_t>(key);
  return at;
}

/// The panel function on every number of rows. make_score(block) is the score function.
template <class A, class M, class MakeScore>
void check_panel(const M& mask, const MakeScore& make_score, bool masked) {
  on_every_isa([&](Isa isa) {
    const Index width = kernel::arithmetic_of<A>(isa).panel_columns(), keys = 11;
    for (Index rows = 1; rows <= width; ++rows) {
      const Block block = block_of(keys, rows);
      const auto score = make_score(block);
      const auto rules = kernel::rules_of<A>(isa, mask, score);
      const auto numbers = whole_numbers<A>(keys * width, 1);
      Fenced<A> scores(keys, width, width);
      scores.fill(numbers);
      rules.panel(rules, scores.data(), keys, rows, block.first, masked);
      for (Index t = 0; t < keys; ++t)
        for (Index row = 0; row < rows; ++row)
          ASSERT_EQ(scores(t, row),
                    expected_score(mask, score, numbers[as_size(t * width + row)], place(block, t, row), masked))
              << rows << " rows: row " << row << ", key " << t;
      ASSERT_TRUE(scores.intact());
    }
  });
}

/// The line function on every number of keys.
template <class A, class M, class MakeScore>
void check_line(const M& mask, const MakeScore& make_score, bool masked) {
  on_every_isa([&](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    for (Index keys = 1; keys <= 3 * arithmetic.lanes; ++keys) {
      const Block block = block_of(keys, 1);
      const auto score = make_score(block);
      const auto rules = kernel::rules_of<A>(isa, mask, score);
      const Index width = arithmetic.padded(keys);
      const auto numbers = whole_numbers<A>(width, 2);
      Fenced<A> scores(1, width, width);
      scores.fill(numbers);
      rules.line(rules, scores.data(), keys, block.first, masked);
      for (Index t = 0; t < keys; ++t)
        ASSERT_EQ(scores(0, t), expected_score(mask, score, numbers[as_size(t)], place(block, t, 0), masked))
            << keys << " keys: key " << t;
      ASSERT_TRUE(scores.intact());
    }
  });
}

template <class A>
class RulesOnScores : public testing::Test {};
TYPED_TEST_SUITE(RulesOnScores, Accumulators);

const auto no_score = [](const Block&) { return attn::NoScore{}; };

TYPED_TEST(RulesOnScores, AMaskAloneDropsScores) {
  check_panel<TypeParam>(Pattern{}, no_score, true);
  check_line<TypeParam>(Pattern{}, no_score, true);
}

TYPED_TEST(RulesOnScores, AScoreFunctionSeesOnlyKeptScores) {
  bool wrong = false;
  const auto asked = [&](const Block& block) { return Asked{block, true, &wrong}; };
  check_panel<TypeParam>(Pattern{}, asked, true);
  check_line<TypeParam>(Pattern{}, asked, true);
  EXPECT_FALSE(wrong) << "asked about a score that does not exist or that the mask drops";
}

TYPED_TEST(RulesOnScores, WithoutAMaskEveryScoreIsAskedAbout) {
  bool wrong = false;
  const auto asked = [&](const Block& block) { return Asked{block, false, &wrong}; };
  check_panel<TypeParam>(attn::NoMask{}, asked, false);
  check_line<TypeParam>(attn::NoMask{}, asked, false);
  EXPECT_FALSE(wrong) << "asked about a score that does not exist";
}

TYPED_TEST(RulesOnScores, ABiasIsAddedToWhatTheScoreFunctionGives) {
  bool wrong = false;
  const auto asked = [&](const Block& block) { return Asked{block, true, &wrong}; };
  check_panel<TypeParam>(BiasedPattern{}, no_score, true);
  check_line<TypeParam>(BiasedPattern{}, no_score, true);
  check_panel<TypeParam>(BiasedPattern{}, asked, true);
  check_line<TypeParam>(BiasedPattern{}, asked, true);
  EXPECT_FALSE(wrong) << "asked about a score that does not exist or that the mask drops";
}

TYPED_TEST(RulesOnScores, MinusInfinityIsMaskedAndTheLowestIsNot) {
  using A = TypeParam;
  const auto extreme = [](A score, Position at) {
    return at.key % 3 == 0 ? -std::numeric_limits<A>::infinity() : at.key % 3 == 1 ? kernel::masked_score<A> : score;
  };
  const A above = std::nextafter(kernel::masked_score<A>, A{0});
  const attn::NoMask mask;
  on_every_isa([&](Isa isa) {
    const auto rules = kernel::rules_of<A>(isa, mask, extreme);
    const Index width = kernel::arithmetic_of<A>(isa).panel_columns(), keys = kernel::arithmetic_of<A>(isa).lanes;
    for (const Index rows : {width, width - 1}) {
      std::vector<A> panel(as_size(3 * width), A{5}), line(as_size(keys), A{5});
      rules.panel(rules, panel.data(), 3, rows, Position{}, false);
      rules.line(rules, line.data(), keys, Position{}, false);
      for (Index t = 0; t < 3; ++t)
        for (Index row = 0; row < rows; ++row)
          ASSERT_EQ(panel[as_size(t * width + row)], t == 0 ? kernel::masked_score<A> : t == 1 ? above : A{5});
      for (Index t = 0; t < keys; ++t)
        ASSERT_EQ(line[as_size(t)], t % 3 == 0 ? kernel::masked_score<A> : t % 3 == 1 ? above : A{5}) << t;
    }
  });
}

TEST(RulesOf, ABiasIsNeverSkipped) {
  struct Everything : attn::NoMask {
    static float bias(Position) { return 1; }
  } const biased;
  const attn::NoMask plain;
  const attn::NoScore score;
  const Block block = block_of(4, 4);
  const auto rules = kernel::rules_of<float>(Isa::baseline, biased, score);
  const auto plain_rules = kernel::rules_of<float>(Isa::baseline, plain, score);
  EXPECT_EQ(rules.cover(rules, block), Coverage::mixed);
  EXPECT_EQ(plain_rules.cover(plain_rules, block), Coverage::full);
  EXPECT_FALSE(rules.has_score);
}

}  // namespace
