// Rows of keys or values, read in place or copied: each row once, and none that was not asked for.
#include <attn/kernel/row_source.hpp>

#include "support.hpp"

#include "../guarded_memory.hpp"

namespace {

namespace kernel = attn::kernel;
using attn_test::Accumulators;
using attn_test::as_size;
using attn_test::at_both_ends;
using attn_test::Fenced;
using attn_test::GuardAt;
using attn_test::GuardedCopy;
using attn_test::Index;
using attn_test::Isa;
using attn_test::on_every_isa;
using attn_test::Storages;
using attn_test::stored;
using attn_test::whole_numbers;

constexpr Index keys = 24, step = 8;

template <class Storage>
const std::byte* bytes_of(const Storage* memory) {
  return reinterpret_cast<const std::byte*>(memory);
}

/// A source of rows over memory of its own, and scratch memory that shows which rows have been copied.
template <class Storage>
struct Source {
  using A = kernel::AccumulatorOf<Storage>;
  using Rows = kernel::RowSource<A>;

  Source(Isa isa, Index size_, bool copied, Index slots)
      : size(size_),
        padded(kernel::arithmetic_of<A>(isa).padded(size_)),
        stride(size_ + 5),
        shape{.stride = stride * Index{sizeof(Storage)},
              .size = size_,
              .copied = copied,
              .padded = padded,
              .width = padded + 3,
              .step = step,
              .slots = slots},
        numbers(whole_numbers<double>(keys * stride, 1)),
        memory(stored<Storage>(numbers)),
        scratch_memory(as_size(size_of_scratch(isa)), std::byte{0xA5}),
        scratch(scratch_memory.data()),
        rows(kernel::row_format_of<A, Storage>(isa), shape, scratch) {
    rows.begin({bytes_of(memory.data())});
  }

  /// Copies of rows `begin` to before `end` are the memory's rows, and end in zeros.
  void check_copies(typename Rows::Rows copies, Index begin, Index end) const {
    ASSERT_EQ(copies.stride, shape.width);
    for (Index t = begin; t < end; ++t) {
      const A* const row = copies.first + (t - begin) * copies.stride;
      for (Index i = 0; i < size; ++i)
        ASSERT_EQ(static_cast<double>(row[i]), numbers[as_size(t * stride + i)]) << "key " << t << ", " << i;
      for (Index i = size; i < padded; ++i) ASSERT_EQ(row[i], A{0}) << "key " << t << ", " << i;
      for (Index i = padded; i < shape.width; ++i)
        ASSERT_TRUE(Fenced<A>::is_sentinel(row[i])) << "key " << t << ", " << i << " was written";
    }
  }
  /// Whether nothing has been copied to the place of a row, by its distance from a row that has been.
  [[nodiscard]] bool is_unset(const A* row) const {
    return std::all_of(row, row + shape.width, [](const A& x) { return Fenced<A>::is_sentinel(x); });
  }
  /// Makes another number of everything in memory.
  void change_memory() { std::fill(memory.begin(), memory.end(), stored<Storage>(99)); }

  Index size, padded;
  Index stride;  // in elements
  typename Rows::Shape shape;
  std::vector<double> numbers;
  std::vector<Storage> memory;
  std::vector<std::byte> scratch_memory;
  attn::detail::Scratch scratch;
  Rows rows;

 private:
  [[nodiscard]] Index size_of_scratch(Isa isa) const {
    attn::detail::Scratch measured;
    Rows(kernel::row_format_of<A, Storage>(isa), shape, measured);
    return measured.size();
  }
};

template <class Storage>
class RowSource : public testing::Test {};
TYPED_TEST_SUITE(RowSource, Storages);

TYPED_TEST(RowSource, CopiesEndInZerosUpToAWholeVector) {
  on_every_isa([](Isa isa) {
    for (const Index size : {1, 3, 4, 8, 15, 16, 21}) {
      Source<TypeParam> source(isa, size, true, 3);
      for (const Index t : {0, 8, 16})
        ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(t, t, t + step), t, t + step));
    }
  });
}

TYPED_TEST(RowSource, ReadsEachRowOnce) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, true, 1);
    const auto first = source.rows.rows(8, 8, 11);
    const auto longer = source.rows.rows(8, 8, 13);
    ASSERT_EQ(first.first, longer.first);
    source.change_memory();
    ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(8, 8, 13), 8, 13));
    ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(8, 10, 12), 10, 12));
    ASSERT_EQ(static_cast<double>(source.rows.rows(8, 8, 14).first[5 * source.shape.width]), 99.0);
    ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(8, 8, 14), 8, 13));
  });
}

TYPED_TEST(RowSource, ReadsNoRowAfterThoseAskedFor) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, true, 1);
    const auto rows = source.rows.rows(8, 8, 12);
    for (Index t = 12; t < 16; ++t)
      ASSERT_TRUE(source.is_unset(rows.first + (t - 8) * rows.stride)) << "key " << t << " was read";
  });
}

TYPED_TEST(RowSource, ReadsNoRowBeforeThoseAskedFor) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, true, 1);
    const auto rows = source.rows.rows(8, 11, 13);
    ASSERT_NO_FATAL_FAILURE(source.check_copies(rows, 11, 13));
    for (Index t = 8; t < 11; ++t)
      ASSERT_TRUE(source.is_unset(rows.first - (11 - t) * rows.stride)) << "key " << t << " was read";
    const auto earlier = source.rows.rows(8, 9, 10);
    ASSERT_NO_FATAL_FAILURE(source.check_copies(earlier, 9, 10));
    ASSERT_TRUE(source.is_unset(earlier.first + earlier.stride)) << "key 10, between them, was read";
    ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(8, 8, 16), 8, 16));
  });
}

TYPED_TEST(RowSource, SeveralSlotsKeepTheirSteps) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, true, 3);
    for (const Index t : {0, 8, 16}) source.rows.rows(t, t, t + step);
    source.change_memory();
    for (const Index t : {16, 0, 8})
      ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(t, t, t + step), t, t + step));
  });
}

TYPED_TEST(RowSource, OneSlotIsReadAgainForAnotherStep) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, true, 1);
    const auto first = source.rows.rows(0, 0, step);
    const auto second = source.rows.rows(8, 8, 16);
    ASSERT_EQ(first.first, second.first);
    ASSERT_NO_FATAL_FAILURE(source.check_copies(second, 8, 16));
    ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(0, 0, step), 0, step));
    source.rows.rows(8, 8, 16);
    source.change_memory();
    const auto changed = source.rows.rows(0, 0, 2);
    for (Index t = 0; t < 2; ++t) ASSERT_EQ(static_cast<double>(changed.first[t * changed.stride]), 99.0);
  });
}

TYPED_TEST(RowSource, AnotherHeadIsReadAnew) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, true, 3), other(isa, 5, true, 3);
    other.change_memory();
    source.rows.rows(8, 8, 16);
    source.rows.begin({bytes_of(other.memory.data())});
    const auto rows = source.rows.rows(8, 8, 16);
    for (Index t = 0; t < step; ++t) ASSERT_EQ(static_cast<double>(rows.first[t * rows.stride]), 99.0) << t;
  });
}

TYPED_TEST(RowSource, TheSameHeadKeepsItsCopies) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, true, 3);
    source.rows.rows(8, 8, 16);
    source.change_memory();
    source.rows.begin({bytes_of(source.memory.data())});
    ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(8, 8, 16), 8, 16));
  });
}

TYPED_TEST(RowSource, PrefetchesCopiesWhereThereAreAny) {
  on_every_isa([](Isa isa) {
    using A = typename Source<TypeParam>::A;
    Source<TypeParam> source(isa, 5, true, 3);
    const auto rows = source.rows.rows(8, 8, 12);
    const kernel::Prefetch copies = source.rows.ahead(8, 10, 2), memory = source.rows.ahead(8, 12, 3);
    EXPECT_EQ(copies.row, reinterpret_cast<const char*>(rows.first + 2 * rows.stride));
    EXPECT_EQ(copies.stride, source.shape.width * Index{sizeof(A)});
    EXPECT_EQ(copies.rows, 2);
    EXPECT_EQ(memory.row, reinterpret_cast<const char*>(source.memory.data() + 12 * source.stride));
    EXPECT_EQ(memory.stride, source.shape.stride);
    EXPECT_EQ(memory.size, source.size * Index{sizeof(TypeParam)});
    EXPECT_EQ(memory.rows, 3);
  });
}

TYPED_TEST(RowSource, PrefetchesBeyondAStepComeFromMemory) {
  Source<TypeParam> source(Isa::baseline, 5, true, 3);
  source.rows.rows(8, 8, 16);
  for (const Index begin : {16, 17, 8 + 64, 8 + 69})
    EXPECT_EQ(source.rows.ahead(8, begin, 1).row,
              reinterpret_cast<const char*>(source.memory.data()) + begin * source.shape.stride);
}

template <class A>
class RowSourceInPlace : public testing::Test {};
TYPED_TEST_SUITE(RowSourceInPlace, Accumulators);

TYPED_TEST(RowSourceInPlace, GivesTheMemoryItself) {
  on_every_isa([](Isa isa) {
    Source<TypeParam> source(isa, 5, false, 1);
    EXPECT_EQ(source.scratch.size(), 0);
    const auto rows = source.rows.rows(8, 10, 12);
    EXPECT_EQ(rows.first, source.memory.data() + 10 * source.stride);
    EXPECT_EQ(rows.stride, source.stride);
  });
}

#if ATTN_TEST_CAN_GUARD
TYPED_TEST(RowSource, ReadsNothingBesideTheRowsAskedFor) {
  at_both_ends([](GuardAt where) {
    on_every_isa([=](Isa isa) {
      Source<TypeParam> source(isa, 5, true, 1);
      const Index stride = source.stride, begin = 11, end = 14, size = (end - begin - 1) * stride + source.size;
      const GuardedCopy<TypeParam> three(source.memory.data() + begin * stride, size, where);
      source.rows.begin({bytes_of(three.data() - begin * stride)});
      ASSERT_NO_FATAL_FAILURE(source.check_copies(source.rows.rows(8, begin, end), begin, end));
    });
  });
}
#endif

}  // namespace
