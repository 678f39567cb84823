// Transposition of every size around a vector, on each instruction set.
#include "support.hpp"

#include "../guarded_memory.hpp"

namespace {

namespace kernel = attn::kernel;
using attn_test::Accumulators;
using attn_test::at_both_ends;
using attn_test::Fenced;
using attn_test::GuardAt;
using attn_test::GuardedCopy;
using attn_test::Index;
using attn_test::Isa;
using attn_test::numbers_between;
using attn_test::on_every_isa;
using attn_test::same_bits;
using attn_test::to;

template <class A>
class Transpose : public testing::Test {};
TYPED_TEST_SUITE(Transpose, Accumulators);

/// The transpose of `rows` x `columns` numbers, read from `from`.
template <class A>
void check_transpose(Isa isa, Index rows, Index columns, const A* from, Index from_row) {
  const auto& arithmetic = kernel::arithmetic_of<A>(isa);
  SCOPED_TRACE(testing::Message() << rows << " x " << columns);
  const Index width = arithmetic.padded(rows);
  Fenced<A> to(columns, width, width + 3);
  arithmetic.transpose(to.data(), to.stride(), from, from_row, rows, columns);
  for (Index column = 0; column < columns; ++column)
    for (Index row = 0; row < width; ++row)
      ASSERT_TRUE(same_bits(to(column, row), row < rows ? from[row * from_row + column] : A{0}))
          << "row " << row << ", column " << column << ": " << to(column, row);
  ASSERT_TRUE(to.intact()) << "something was written outside";
}

TYPED_TEST(Transpose, EverySizeUpToThreeVectors) {
  on_every_isa([](Isa isa) {
    const Index most = 2 * kernel::arithmetic_of<TypeParam>(isa).lanes + 1;
    for (Index rows = 0; rows <= most; ++rows)
      for (Index columns = 0; columns <= most; ++columns) {
        const Index from_row = columns + 3;
        const auto from = numbers_between<TypeParam>(1, 2, most * from_row, 1);  // none is 0, as the fill is
        ASSERT_NO_FATAL_FAILURE(check_transpose(isa, rows, columns, from.data(), from_row));
      }
  });
}

TYPED_TEST(Transpose, KeepsTheBitsOfSpecialNumbers) {
  using Limits = std::numeric_limits<TypeParam>;
  on_every_isa([](Isa isa) {
    const TypeParam from[] = {-TypeParam{0},        Limits::infinity(),   -Limits::infinity(),
                              Limits::quiet_NaN(),  Limits::denorm_min(), Limits::max(),
                              -Limits::quiet_NaN(), TypeParam{1},         -Limits::denorm_min()};
    ASSERT_NO_FATAL_FAILURE(check_transpose(isa, 3, 3, from, 3));
    ASSERT_NO_FATAL_FAILURE(check_transpose(isa, 9, 1, from, 1));
  });
}

#if ATTN_TEST_CAN_GUARD
TYPED_TEST(Transpose, ReadsNothingBesideItsRows) {
  at_both_ends([](GuardAt where) {
    on_every_isa([=](Isa isa) {
      const Index lanes = kernel::arithmetic_of<TypeParam>(isa).lanes;
      for (const Index rows : {Index{1}, lanes - 1, lanes, lanes + 1})
        for (const Index columns : {Index{1}, lanes - 1, lanes, lanes + 1}) {
          const auto numbers = numbers_between<TypeParam>(1, 2, rows * columns, 2);
          const GuardedCopy<TypeParam> from(numbers.data(), std::ssize(numbers), where);
          ASSERT_NO_FATAL_FAILURE(
              check_transpose(isa, rows, columns, static_cast<const TypeParam*>(from.data()), columns));
        }
    });
  });
}
#endif

}  // namespace
