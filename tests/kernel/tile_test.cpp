// The tiles of products, scores of few rows and scaled rows: each function of the table, on each instruction set.
#include "support.hpp"

#include "../guarded_memory.hpp"

namespace {

namespace kernel = attn::kernel;
using attn_test::Accumulators;
using attn_test::all_befores;
using attn_test::as_size;
using attn_test::at_both_ends;
using attn_test::Before;
using attn_test::Fenced;
using attn_test::GuardAt;
using attn_test::GuardedCopy;
using attn_test::Index;
using attn_test::Isa;
using attn_test::numbers_between;
using attn_test::on_every_isa;
using attn_test::ProductCase;
using attn_test::whole_numbers;

template <class A>
class Tile : public testing::Test {};
TYPED_TEST_SUITE(Tile, Accumulators);

/// Calls f(rows, columns, tile, lanes) for all tiles of an instruction set.
template <class A, class F>
void for_each_tile(Isa isa, const F& f) {
  const auto& arithmetic = kernel::arithmetic_of<A>(isa);
  for (const auto& tiles : arithmetic.panel_tiles) {
    f(tiles.rows, tiles.columns, tiles.whole, arithmetic.lanes);
    f(Index{1}, tiles.columns, tiles.one, arithmetic.lanes);
  }
}

TYPED_TEST(Tile, TablesHoldOneTwoAndThreeVectors) {
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<TypeParam>(isa);
    for (Index i = 0; i < 3; ++i) EXPECT_EQ(arithmetic.panel_tiles[i].columns, (i + 1) * arithmetic.lanes);
    EXPECT_EQ(kernel::panel_width<TypeParam> % arithmetic.panel_columns(), 0);
  });
}

TYPED_TEST(Tile, IsTheProductForEveryStartAndStride) {
  on_every_isa([](Isa isa) {
    for_each_tile<TypeParam>(isa, [](Index rows, Index columns, auto tile, Index lanes) {
      for (const Index depth : {0, 1, 2, 3, 8, 33})
        for (const bool transposed : {false, true})
          for (const Before before : all_befores) {
            ProductCase<TypeParam> test({.rows = rows,
                                         .columns = columns,
                                         .depth = depth,
                                         .transposed = transposed,
                                         .before = before,
                                         .factors = true,
                                         .c_row = columns + 7},
                                        lanes);
            tile(test.product(), nullptr, -1);
            ASSERT_NO_FATAL_FAILURE(test.check());
          }
    });
  });
}

TYPED_TEST(Tile, PrefetchesLeaveTheProductAlone) {
  std::vector<char> lines(64 * 40);
  on_every_isa([&](Isa isa) {
    for_each_tile<TypeParam>(isa, [&](Index rows, Index columns, auto tile, Index lanes) {
      for (const Index mask : {0, 1, 3, 15}) {
        ProductCase<TypeParam> test({.rows = rows,
                                     .columns = columns,
                                     .depth = 37,
                                     .transposed = false,
                                     .before = Before::itself,
                                     .factors = true,
                                     .c_row = columns},
                                    lanes);
        tile(test.product(), lines.data(), mask);
        ASSERT_NO_FATAL_FAILURE(test.check());
      }
    });
  });
}

TYPED_TEST(Tile, StaysWithinTheBarOfSumsOfRealNumbers) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    for_each_tile<A>(isa, [](Index rows, Index columns, auto tile, Index) {
      constexpr Index depth = 77;
      const auto a = numbers_between<A>(-1, 1, rows * depth, 1), b = numbers_between<A>(-1, 1, depth * columns, 2);
      const auto before = numbers_between<A>(-1, 1, rows * columns, 3), factor = numbers_between<A>(0, 1, columns, 4);
      Fenced<A> c(rows, columns, columns);
      tile({.a = a.data(),
            .a_row = depth,
            .b = b.data(),
            .b_row = columns,
            .depth = depth,
            .c = c.data(),
            .c_row = columns,
            .before = before.data(),
            .before_row = columns,
            .factor = factor.data()},
           nullptr, -1);
      for (Index r = 0; r < rows; ++r)
        for (Index n = 0; n < columns; ++n) {
          double sum = 0, size = 0;
          const auto add = [&](A x, A y) {
            sum += static_cast<double>(x) * static_cast<double>(y);
            size += std::abs(static_cast<double>(x) * static_cast<double>(y));
          };
          for (Index i = 0; i < depth; ++i) add(a[as_size(r * depth + i)], b[as_size(i * columns + n)]);
          add(before[as_size(r * columns + n)], factor[as_size(n)]);
          // Each term is rounded as a product, then with each sum it is part of; half an epsilon each, twice for the oracle.
          const double bar = (depth + 2) * static_cast<double>(std::numeric_limits<A>::epsilon()) * size;
          ASSERT_NEAR(static_cast<double>(c(r, n)), sum, bar) << "row " << r << ", column " << n;
        }
    });
  });
}

TYPED_TEST(Tile, NanAndInfinityReachTheirRowAlone) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    for_each_tile<A>(isa, [](Index rows, Index columns, auto tile, Index) {
      constexpr Index depth = 5;
      for (Index bad = 0; bad < rows; ++bad) {
        std::vector<A> a(as_size(rows * depth), A{1}), b(as_size(depth * columns), A{1}),
            factor(as_size(columns), A{1});
        a[as_size(bad * depth + depth - 1)] = std::numeric_limits<A>::quiet_NaN();
        Fenced<A> c(rows, columns, columns);
        tile({.a = a.data(),
              .a_row = depth,
              .b = b.data(),
              .b_row = columns,
              .depth = depth,
              .c = c.data(),
              .c_row = columns,
              .factor = factor.data()},
             nullptr, -1);
        for (Index r = 0; r < rows; ++r)
          for (Index n = 0; n < columns; ++n) {
            if (r == bad)
              ASSERT_TRUE(std::isnan(c(r, n))) << "row " << r << ", column " << n;
            else
              ASSERT_EQ(c(r, n), A{depth}) << "row " << r << ", column " << n;
          }
      }
    });
  });
}

#if ATTN_TEST_CAN_GUARD
TYPED_TEST(Tile, ReadsNothingBesideItsOperands) {
  at_both_ends([](GuardAt where) {
    on_every_isa([=](Isa isa) {
      for_each_tile<TypeParam>(isa, [=](Index rows, Index columns, auto tile, Index lanes) {
        for (const bool transposed : {false, true}) {
          ProductCase<TypeParam> test({.rows = rows,
                                       .columns = columns,
                                       .depth = 6,
                                       .transposed = transposed,
                                       .before = Before::nothing,
                                       .factors = true,
                                       .c_row = columns},
                                      lanes);
          const GuardedCopy<TypeParam> a(test.a().data(), std::ssize(test.a()), where);
          const GuardedCopy<TypeParam> b(test.b().data(), std::ssize(test.b()), where);
          const GuardedCopy<TypeParam> factor(test.factor().data(), std::ssize(test.factor()), where);
          auto product = test.product();
          product.a = a.data(), product.b = b.data(), product.factor = factor.data();
          tile(product, nullptr, -1);
          ASSERT_NO_FATAL_FAILURE(test.check());
        }
      });
    });
  });
}
#endif

template <class A>
class ScaleRows : public testing::Test {};
TYPED_TEST_SUITE(ScaleRows, Accumulators);

TYPED_TEST(ScaleRows, MultipliesEachColumnByItsFactor) {
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<TypeParam>(isa);
    for (const Index rows : {0, 1, 2, 5})
      for (Index n = 0; n <= 4 * arithmetic.lanes; n += arithmetic.lanes) {
        const auto before = whole_numbers<TypeParam>(rows * n, 1), factor = whole_numbers<TypeParam>(n, 2);
        Fenced<TypeParam> x(rows, n, n + 3);
        x.fill(before);
        ASSERT_TRUE(arithmetic.scale_rows(x.data(), x.stride(), rows, n, factor.data()));
        for (Index i = 0; i < rows * n; ++i)
          ASSERT_EQ(x(i / n, i % n), before[as_size(i)] * factor[as_size(i % n)]) << i << " of " << rows << " x " << n;
        ASSERT_TRUE(x.intact());
      }
  });
}

TYPED_TEST(ScaleRows, SaysWhereverAProductIsNotFinite) {
  using A = TypeParam;
  using Limits = std::numeric_limits<A>;
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    const Index rows = 3, n = 2 * arithmetic.lanes;
    const std::vector<A> twos(as_size(n), A{2});
    for (const A bad : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), -Limits::quiet_NaN(),
                        Limits::max(), Limits::lowest()})  // twice the largest number is infinite
      for (Index at = 0; at < rows * n; ++at) {
        std::vector<A> x(as_size(rows * n), A{-3});
        x[as_size(at)] = bad;
        ASSERT_FALSE(arithmetic.scale_rows(x.data(), n, rows, n, twos.data())) << bad << " at " << at;
      }
  });
}

TYPED_TEST(ScaleRows, CallsTheLargestNumbersFinite) {
  using A = TypeParam;
  on_every_isa([](Isa isa) {
    const auto& arithmetic = kernel::arithmetic_of<A>(isa);
    const Index n = arithmetic.lanes;
    const std::vector<A> ones(as_size(n), A{1});
    for (const A large : {std::numeric_limits<A>::max(), std::numeric_limits<A>::lowest()}) {
      std::vector<A> x(as_size(n), large);
      EXPECT_TRUE(arithmetic.scale_rows(x.data(), n, 1, n, ones.data())) << large;
    }
  });
}

}  // namespace
