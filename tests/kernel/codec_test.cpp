// How rows of a stored type become rows of the accumulator and back, of every size; conversion_test.cpp has the values.
#include "support.hpp"

#include "../guarded_memory.hpp"

namespace {

namespace kernel = attn::kernel;
using attn_test::as_size;
using attn_test::at_both_ends;
using attn_test::Fenced;
using attn_test::GuardAt;
using attn_test::GuardedCopy;
using attn_test::Index;
using attn_test::Isa;
using attn_test::on_every_isa;
using attn_test::same_bits;
using attn_test::Storages;
using attn_test::stored;
using attn_test::to;
using attn_test::whole_numbers;

template <class Storage>
class Codec : public testing::Test {};
TYPED_TEST_SUITE(Codec, Storages);

/// Calls f(rows, n) for sizes around one and two of the widest vectors.
template <class F>
void for_each_size(const F& f) {
  for (const Index rows : {0, 1, 2, 3, 17})
    for (const Index n : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33}) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << n);
      f(rows, n);
      if (testing::Test::HasFailure()) return;
    }
}

TYPED_TEST(Codec, LoadsRowsOfEverySize) {
  using A = kernel::AccumulatorOf<TypeParam>;
  on_every_isa([](Isa isa) {
    for_each_size([=](Index rows, Index n) {
      const Index from_row = n + 3;
      const auto numbers = whole_numbers<double>(rows * from_row, 1);
      const auto from = stored<TypeParam>(numbers);
      Fenced<A> to(rows, n, n + 5);
      kernel::codec_of<TypeParam>(isa).load(to.data(), to.stride(), from.data(), from_row, rows, n);
      for (Index row = 0; row < rows; ++row)
        for (Index i = 0; i < n; ++i)
          ASSERT_EQ(static_cast<double>(to(row, i)), numbers[as_size(row * from_row + i)]) << row << ", " << i;
      ASSERT_TRUE(to.intact());
    });
  });
}

TYPED_TEST(Codec, StoresRowsOfEverySize) {
  using A = kernel::AccumulatorOf<TypeParam>;
  on_every_isa([](Isa isa) {
    for_each_size([=](Index rows, Index n) {
      const Index from_row = n + 3;
      const auto from = whole_numbers<A>(rows * from_row, 2);
      Fenced<TypeParam> to(rows, n, n + 5);
      kernel::codec_of<TypeParam>(isa).store(to.data(), to.stride(), from.data(), from_row, rows, n);
      for (Index row = 0; row < rows; ++row)
        for (Index i = 0; i < n; ++i)
          ASSERT_TRUE(same_bits(to(row, i), stored<TypeParam>(static_cast<double>(from[as_size(row * from_row + i)]))))
              << row << ", " << i;
      ASSERT_TRUE(to.intact());
    });
  });
}

TYPED_TEST(Codec, LoadsTransposedRowsOfEverySize) {
  using A = kernel::AccumulatorOf<TypeParam>;
  on_every_isa([](Isa isa) {
    const Index lanes = kernel::arithmetic_of<A>(isa).lanes;
    for_each_size([=](Index rows, Index n) {
      const Index from_row = n + 3, width = attn::detail::round_up(rows, lanes);
      const auto numbers = whole_numbers<double>(rows * from_row, 3);
      const auto from = stored<TypeParam>(numbers);
      Fenced<A> to(n, width, width + 5);
      kernel::codec_of<TypeParam>(isa).load_transposed(to.data(), to.stride(), from.data(), from_row, rows, n);
      for (Index i = 0; i < n; ++i)
        for (Index row = 0; row < width; ++row)
          ASSERT_EQ(static_cast<double>(to(i, row)), row < rows ? numbers[as_size(row * from_row + i)] : 0.0)
              << row << ", " << i;
      ASSERT_TRUE(to.intact());
    });
  });
}

#if ATTN_TEST_CAN_GUARD
TYPED_TEST(Codec, ReadsNothingBesideItsRows) {
  using A = kernel::AccumulatorOf<TypeParam>;
  at_both_ends([](GuardAt where) {
    on_every_isa([=](Isa isa) {
      const auto& codec = kernel::codec_of<TypeParam>(isa);
      for_each_size([&](Index rows, Index n) {
        const auto numbers = whole_numbers<double>(rows * n, 4);
        const auto packed = stored<TypeParam>(numbers);
        const GuardedCopy<TypeParam> from(packed.data(), std::ssize(packed), where);
        Fenced<A> wide(rows, n, n), turned(n, attn::detail::round_up(rows, 16), attn::detail::round_up(rows, 16));
        codec.load(wide.data(), n, from.data(), n, rows, n);
        codec.load_transposed(turned.data(), turned.stride(), from.data(), n, rows, n);
        const GuardedCopy<A> sums(wide.data(), rows * n, where);
        Fenced<TypeParam> back(rows, n, n);
        codec.store(back.data(), n, sums.data(), n, rows, n);
        for (Index i = 0; i < rows * n; ++i) {
          ASSERT_EQ(static_cast<double>(wide.data()[i]), numbers[as_size(i)]) << i;
          ASSERT_EQ(static_cast<double>(turned(i % n, i / n)), numbers[as_size(i)]) << i;
          ASSERT_TRUE(same_bits(back.data()[i], packed[as_size(i)])) << i;
        }
      });
    });
  });
}
#endif

}  // namespace
