// Products cut into tiles: any number of rows, columns up to a panel, prefetches.
#include "support.hpp"

namespace {

namespace kernel = attn::kernel;
using attn_test::Accumulators;
using attn_test::all_befores;
using attn_test::Before;
using attn_test::Index;
using attn_test::Isa;
using attn_test::on_every_isa;
using attn_test::ProductCase;

template <class A>
class Gemm : public testing::Test {};
TYPED_TEST_SUITE(Gemm, Accumulators);

/// multiply() of one shape, as the attention and the linear layer call it.
template <class A>
void check_multiply(Isa isa, typename ProductCase<A>::Shape shape, const kernel::Prefetch& ahead) {
  const auto& arithmetic = kernel::arithmetic_of<A>(isa);
  ProductCase<A> test(shape, arithmetic.lanes);
  kernel::multiply(arithmetic, test.product(), shape.rows, shape.columns, ahead);
  test.check();
}

TYPED_TEST(Gemm, EveryNumberOfRowsIsMultiplied) {
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<TypeParam>(isa);
    for (Index rows = 0; rows <= 3 * arithmetic.tile_rows() + 1; ++rows)
      for (const Before before : all_befores)
        for (const bool transposed : {false, true})
          ASSERT_NO_FATAL_FAILURE(check_multiply<TypeParam>(isa,
                                                            {.rows = rows,
                                                             .columns = arithmetic.panel_columns(),
                                                             .depth = 11,
                                                             .transposed = transposed,
                                                             .before = before,
                                                             .factors = true,
                                                             .c_row = arithmetic.panel_columns()},
                                                            {}));
  });
}

TYPED_TEST(Gemm, EveryNumberOfColumnsIsMultiplied) {
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<TypeParam>(isa);
    for (Index columns = 1; columns <= arithmetic.panel_columns(); ++columns)
      for (const Index c_row : {arithmetic.panel_columns(), arithmetic.panel_columns() + 9})
        ASSERT_NO_FATAL_FAILURE(check_multiply<TypeParam>(isa,
                                                          {.rows = arithmetic.tile_rows() + 2,
                                                           .columns = columns,
                                                           .depth = 7,
                                                           .transposed = false,
                                                           .before = Before::rows,
                                                           .factors = true,
                                                           .c_row = c_row},
                                                          {}));
  });
}

TYPED_TEST(Gemm, PrefetchedRowsLeaveTheProductAlone) {
  const std::vector<TypeParam> rows_ahead(64 * 100);
  on_every_isa([&](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<TypeParam>(isa);
    for (const Index depth : {0, 1, 16, 65})
      for (const Index rows : {Index{1}, arithmetic.tile_rows(), 4 * arithmetic.tile_rows() + 3})
        for (const Index ahead : {0, 1, 5, 64})
          for (const Index size : {1, 17, 100})
            ASSERT_NO_FATAL_FAILURE(
                check_multiply<TypeParam>(isa,
                                          {.rows = rows,
                                           .columns = arithmetic.lanes + 1,
                                           .depth = depth,
                                           .transposed = false,
                                           .before = Before::one_row,
                                           .factors = true,
                                           .c_row = arithmetic.panel_columns()},
                                          kernel::Prefetch::of(rows_ahead.data(), 100, size, ahead)));
  });
}

TEST(Prefetch, CountsInBytes) {
  const double rows[12] = {};
  const auto prefetch = kernel::Prefetch::of(rows + 2, 5, 3, 2);
  EXPECT_EQ(prefetch.row, reinterpret_cast<const char*>(rows + 2));
  EXPECT_EQ(prefetch.stride, 40);
  EXPECT_EQ(prefetch.size, 24);
  EXPECT_EQ(prefetch.rows, 2);
}

TEST(CrowdsL1, StridesOfWholeKilobytesDoWhereManyPanelsReadThem) {
  EXPECT_TRUE(kernel::crowds_l1(1024, 6));
  EXPECT_TRUE(kernel::crowds_l1(3072, 100));
  EXPECT_FALSE(kernel::crowds_l1(1024, 5));
  EXPECT_FALSE(kernel::crowds_l1(1536, 100));
}

TEST(AliasesInCache, StridesOfWhole8KBDo) {
  EXPECT_TRUE(kernel::aliases_in_cache(8192));
  EXPECT_TRUE(kernel::aliases_in_cache(3 * 8192));
  EXPECT_FALSE(kernel::aliases_in_cache(4096));
  EXPECT_FALSE(kernel::aliases_in_cache(8196));
}

}  // namespace
