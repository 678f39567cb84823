// Factors of dropout, and weights dropped in panels and in lines, against the rule asked one element at a time.
#include <attn/kernel/dropout.hpp>

#include "support.hpp"

namespace {

namespace kernel = attn::kernel;
using attn::DropoutRule;
using attn::Position;
using attn_test::Accumulators;
using attn_test::as_size;
using attn_test::Fenced;
using attn_test::Index;
using attn_test::Isa;
using attn_test::numbers_between;
using attn_test::on_every_isa;
using kernel::DropoutPlace;

template <class A>
class DropoutFactors : public testing::Test {};
TYPED_TEST_SUITE(DropoutFactors, Accumulators);

const DropoutRule rules[] = {
    DropoutRule(0.5, 7, 0),
    DropoutRule(0.1, 0xFEDCBA9876543210U, 3),
    DropoutRule(0x1p-32, 1, 0xFFFFFFFFU),
    DropoutRule(1.0, 5, 2),
};

template <class A>
A expected_factor(const DropoutRule& rule, std::uint32_t column, std::uint32_t row, std::uint32_t plane) {
  return rule.keep(column, row, plane) ? static_cast<A>(rule.scale) : A{0};
}

template <class A>
void check_factors(Isa isa, const DropoutRule& rule, DropoutPlace first, DropoutPlace step) {
  SCOPED_TRACE(testing::Message() << "from column " << first.column << ", row " << first.row << ", plane "
                                  << first.plane << " by " << step.column << ", " << step.row);
  Fenced<A> factors(1, kernel::dropout_group, kernel::dropout_group);
  kernel::arithmetic_of<A>(isa).dropout_factors(factors.data(), rule, first, step);
  for (std::uint32_t i = 0; i < 16; ++i)
    for (std::uint32_t w = 0; w < 4; ++w)
      ASSERT_EQ(factors(0, w * 16 + i),
                expected_factor<A>(rule, first.column + i * step.column + w, first.row + i * step.row, first.plane))
          << "group " << i << ", column " << w;
  ASSERT_TRUE(factors.intact());
}

TYPED_TEST(DropoutFactors, AreWhatTheRuleSaysOfEachPlace) {
  on_every_isa([](Isa isa) {
    for (const DropoutRule& rule : rules)
      for (const DropoutPlace first : {DropoutPlace{0, 0, 0}, DropoutPlace{52, 9, 4}, DropoutPlace{4, 1U << 31, 77}})
        for (const DropoutPlace step : {DropoutPlace{4, 0, 0}, DropoutPlace{0, 1, 0}, DropoutPlace{8, 3, 0}})
          ASSERT_NO_FATAL_FAILURE(check_factors<TypeParam>(isa, rule, first, step));
  });
}

TYPED_TEST(DropoutFactors, ColumnsReachTheEndOf32Bits) {
  on_every_isa([](Isa isa) {
    for (const std::uint32_t column : {0x7FFFFFE0U, 0x80000000U, 0xFFFFFFC0U})  // across 2^31, from it, up to 2^32
      ASSERT_NO_FATAL_FAILURE(check_factors<TypeParam>(isa, rules[0], {column, 6, 1}, {4, 0, 0}));
  });
}

TYPED_TEST(DropoutFactors, RowsAndPlanesReachTheEndOf32Bits) {
  on_every_isa([](Isa isa) {
    for (const std::uint32_t row : {0x7FFFFFFAU, 0xFFFFFFF0U, 0xFFFFFFFAU})  // the last goes on with row 0
      ASSERT_NO_FATAL_FAILURE(check_factors<TypeParam>(isa, rules[0], {12, row, 0xFFFFFFFFU}, {0, 1, 0}));
  });
}

TEST(DropoutIndex, CountsEachOfTheGroupOnce) {
  std::vector<int> count(as_size(kernel::dropout_group));
  for (Index i = 0; i < kernel::dropout_group; ++i) ++count[as_size(kernel::dropout_index(i))];
  for (const int times : count) EXPECT_EQ(times, 1);
  EXPECT_EQ(kernel::dropout_index(0), 0);
  EXPECT_EQ(kernel::dropout_index(1), 16);
  EXPECT_EQ(kernel::dropout_index(4), 1);
}

template <class A>
class Drop : public testing::Test {};
TYPED_TEST_SUITE(Drop, Accumulators);

constexpr Index heads = 3;
/// The word that names a plane: all heads of a batch entry, one after the other.
std::uint32_t plane_of(Position at) { return static_cast<std::uint32_t>(at.batch * std::int32_t{heads} + at.head); }

TYPED_TEST(Drop, PanelFollowsTheRuleFromAnyKey) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    for (const std::int32_t key : {0, 1, 2, 3, 66})
      for (const Index keys : {1, 2, 3, 5, 64})
        for (Index rows = arithmetic.lanes; rows <= arithmetic.panel_columns(); rows += arithmetic.lanes) {
          const Position first{.batch = 2, .head = 1, .row = 35, .query = 1000, .key = key};
          const auto weights = numbers_between<A>(1, 2, keys * rows, 1);
          Fenced<A> p(keys, rows, arithmetic.panel_columns());
          p.fill(weights);
          kernel::drop_panel(arithmetic, p.data(), p.stride(), keys, rows, rules[0], first, heads);
          SCOPED_TRACE(testing::Message() << keys << " keys from " << key << ", " << rows << " rows");
          for (Index t = 0; t < keys; ++t)
            for (Index row = 0; row < rows; ++row)
              ASSERT_EQ(p(t, row), weights[as_size(t * rows + row)] *
                                       expected_factor<A>(rules[0], static_cast<std::uint32_t>(key + t),
                                                          static_cast<std::uint32_t>(35 + row), plane_of(first)))
                  << "key " << t << ", row " << row;
          ASSERT_TRUE(p.intact());
        }
  });
}

TYPED_TEST(Drop, LineFollowsTheRuleFromAnyKey) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    for (const std::int32_t key : {0, 1, 2, 3, 66})
      for (const Index keys : {0, 1, 2, 3, 61, 62, 63, 64, 65, 130}) {
        const Position first{.batch = 1, .head = 2, .row = 4, .query = 1000, .key = key};
        const auto weights = numbers_between<A>(1, 2, keys, 1);
        Fenced<A> p(1, keys, keys);
        p.fill(weights);
        kernel::drop_line(kernel::arithmetic_of<A>(isa), p.data(), keys, rules[1], first, heads);
        SCOPED_TRACE(testing::Message() << keys << " keys from " << key);
        for (Index t = 0; t < keys; ++t)
          ASSERT_EQ(p(0, t), weights[as_size(t)] *
                                 expected_factor<A>(rules[1], static_cast<std::uint32_t>(key + t), 4, plane_of(first)))
              << "key " << t;
        ASSERT_TRUE(p.intact());
      }
  });
}

TYPED_TEST(Drop, PanelAndLineDropTheSameWeights) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    const Index keys = 71, rows = arithmetic.panel_columns();
    Position first{.batch = 1, .head = 0, .row = 9, .query = 9, .key = 5};
    std::vector<A> panel(as_size(keys * rows), A{1});
    kernel::drop_panel(arithmetic, panel.data(), rows, keys, rows, rules[0], first, heads);
    for (Index row = 0; row < rows; ++row, ++first.row) {
      std::vector<A> line(as_size(keys), A{1});
      kernel::drop_line(arithmetic, line.data(), keys, rules[0], first, heads);
      for (Index t = 0; t < keys; ++t) ASSERT_EQ(line[as_size(t)], panel[as_size(t * rows + row)]) << row << ", " << t;
    }
  });
}

}  // namespace
