// Rows of keys and values in every format: loaded, stored, and multiplied as they are.
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
using attn_test::numbers_between;
using attn_test::on_every_isa;
using attn_test::whole_numbers;
using kernel::ScaledBytes;

/// A format of rows, as rows of A.
template <class A_, class Storage_>
struct Format {
  using A = A_;
  using Storage = Storage_;
  static const kernel::RowFormat<A>& of(Isa isa) { return kernel::row_format_of<A, Storage>(isa); }
};
using Formats =
    testing::Types<Format<float, float>, Format<double, double>, Format<float, kernel::Bfloat16>,
                   Format<float, kernel::Half>, Format<float, ScaledBytes>, Format<double, kernel::Bfloat16>,
                   Format<double, kernel::Half>, Format<double, ScaledBytes>>;

/// Rows of whole numbers from -8 to 8, the first of each row 127, so that every format holds them exactly.
template <class F>
struct Rows {
  using A = typename F::A;

  Rows(Isa isa, Index count, Index size_, unsigned seed)
      : size(size_), row(F::of(isa).row_bytes(size_) + 8), numbers(whole_numbers<float>(count * size_, seed)) {
    const auto& format = F::of(isa);
    memory.resize(as_size(std::max<Index>(count, 1) * row), std::byte{0x7B});
    for (Index t = 0; t < count; ++t) {
      float* const from = numbers.data() + t * size;
      if (size > 0) from[0] = 127;
      std::byte* const to = memory.data() + t * row;
      if (format.store != nullptr) {
        format.store(to, from, size);
      } else {
        std::vector<A> same(from, from + size);
        std::memcpy(to, same.data(), as_size(size) * sizeof(A));
      }
    }
  }
  [[nodiscard]] double at(Index t, Index i) const { return double{numbers[as_size(t * size + i)]}; }

  Index size, row;
  std::vector<float> numbers;
  std::vector<std::byte> memory;
};

template <class F>
class RowFormat : public testing::Test {};
TYPED_TEST_SUITE(RowFormat, Formats);

TYPED_TEST(RowFormat, IsReadInPlaceUnlessItBecomesDouble) {
  using A = typename TypeParam::A;
  on_every_isa([](Isa isa) {
    const auto& format = TypeParam::of(isa);
    const bool in_place = std::is_same_v<A, float> || !format.converted;
    EXPECT_EQ(format.score_rows != nullptr, in_place);
    EXPECT_EQ(format.weigh_rows != nullptr, in_place);
  });
}

TYPED_TEST(RowFormat, LoadsWhatItStored) {
  using A = typename TypeParam::A;
  on_every_isa([](Isa isa) {
    for (const Index size : {1, 3, 4, 5, 8, 15, 16, 17, 33, 64, 65, 200}) {
      const Rows<TypeParam> rows(isa, 3, size, 1);
      Fenced<A> to(3, size, size + 5);
      TypeParam::of(isa).load(to.data(), to.stride(), rows.memory.data(), rows.row, 3, size);
      for (Index t = 0; t < 3; ++t)
        for (Index i = 0; i < size; ++i) ASSERT_EQ(static_cast<double>(to(t, i)), rows.at(t, i)) << t << ", " << i;
      ASSERT_TRUE(to.intact());
    }
  });
}

TYPED_TEST(RowFormat, StoresNothingBesideTheRow) {
  on_every_isa([](Isa isa) {
    for (const Index size : {1, 3, 4, 5, 16, 17, 40}) {
      const Rows<TypeParam> rows(isa, 2, size, 1);
      for (Index i = TypeParam::of(isa).row_bytes(size); i < rows.row; ++i)
        ASSERT_EQ(rows.memory[as_size(i)], std::byte{0x7B}) << "byte " << i << " of a row of " << size;
    }
  });
}

#if ATTN_TEST_CAN_GUARD
TYPED_TEST(RowFormat, ReadsNothingBesideTheRow) {
  using A = typename TypeParam::A;
  at_both_ends([](GuardAt where) {
    on_every_isa([=](Isa isa) {
      for (const Index size : {1, 3, 4, 5, 16, 17, 40}) {
        const Rows<TypeParam> rows(isa, 1, size, 1);
        const Index bytes = TypeParam::of(isa).row_bytes(size);
        const GuardedCopy<std::byte> row(rows.memory.data(), bytes, where);
        std::vector<A> to(as_size(size));
        TypeParam::of(isa).load(to.data(), size, row.data(), bytes, 1, size);
        for (Index i = 0; i < size; ++i) ASSERT_EQ(static_cast<double>(to[as_size(i)]), rows.at(0, i));
      }
    });
  });
}
#endif

TYPED_TEST(RowFormat, ScoresEveryRowAndKey) {
  using A = typename TypeParam::A;
  on_every_isa([](Isa isa) {
    if (TypeParam::of(isa).score_rows == nullptr) return;  // rows that are always copied
    const Index lanes = kernel::arithmetic_of<A>(isa).lanes;
    for (Index count = 1; count <= 5; ++count)
      for (Index keys = 1; keys <= 2 * lanes + 1; ++keys)
        for (const Index D : {lanes, 3 * lanes})
          for (const Index ahead : {0, 512}) {
            const Rows<TypeParam> k(isa, keys, D, 2);
            const auto q = whole_numbers<A>(count * D, 1);
            const Index width = attn::detail::round_up(keys, lanes);
            Fenced<A> scores(count, width, width + 3);
            TypeParam::of(isa).score_rows({.scores = scores.data(),
                                           .scores_row = scores.stride(),
                                           .q = q.data(),
                                           .rows = count,
                                           .k = k.memory.data(),
                                           .k_row = k.row,
                                           .keys = keys,
                                           .size = D,
                                           .scale = A{0.25},
                                           .ahead = ahead});
            for (Index r = 0; r < count; ++r)
              for (Index t = 0; t < keys; ++t) {
                double sum = 0;
                for (Index d = 0; d < D; ++d) sum += static_cast<double>(q[as_size(r * D + d)]) * k.at(t, d);
                ASSERT_EQ(static_cast<double>(scores(r, t)), sum * 0.25) << "row " << r << ", key " << t << ", D " << D;
              }
            ASSERT_TRUE(scores.intact()) << "something was written beyond the last vector of a row";
          }
  });
}

TYPED_TEST(RowFormat, AveragesAnyVectorsOfElements) {
  using A = typename TypeParam::A;
  on_every_isa([](Isa isa) {
    if (TypeParam::of(isa).weigh_rows == nullptr) return;
    const Index lanes = kernel::arithmetic_of<A>(isa).lanes;
    for (Index size = lanes; size <= 17 * lanes; size += lanes)
      for (const Index count : {1, 2, 3, 4, 5, 7, 9})
        for (const Index keys : {0, 1, 5})
          for (const Index ahead : {0, 512}) {
            const Rows<TypeParam> v(isa, keys, size, 3);
            const auto weights = whole_numbers<A>(count * 8, 4), before = whole_numbers<A>(count * size, 5);
            Fenced<A> y(count, size, size);
            y.fill(before);
            TypeParam::of(isa).weigh_rows({.y = y.data(),
                                           .weights = weights.data(),
                                           .weights_row = 8,
                                           .rows = count,
                                           .v = v.memory.data(),
                                           .v_row = v.row,
                                           .keys = keys,
                                           .size = size,
                                           .ahead = ahead});
            for (Index r = 0; r < count; ++r)
              for (Index i = 0; i < size; ++i) {
                auto sum = static_cast<double>(before[as_size(r * size + i)]);
                for (Index t = 0; t < keys; ++t) sum += static_cast<double>(weights[as_size(r * 8 + t)]) * v.at(t, i);
                ASSERT_EQ(static_cast<double>(y(r, i)), sum) << "row " << r << ", element " << i << " of " << size;
              }
            ASSERT_TRUE(y.intact());
          }
  });
}

#if ATTN_TEST_CAN_GUARD
TYPED_TEST(RowFormat, ScoresAndAveragesReadNoRowBesideThoseAskedFor) {
  using A = typename TypeParam::A;
  at_both_ends([](GuardAt where) {
    on_every_isa([=](Isa isa) {
      if (TypeParam::of(isa).score_rows == nullptr) return;
      const Index lanes = kernel::arithmetic_of<A>(isa).lanes, size = 2 * lanes;
      for (Index keys = 1; keys <= lanes + 1; ++keys) {
        const Rows<TypeParam> rows(isa, keys, size, 3);
        const GuardedCopy<std::byte> memory(rows.memory.data(),
                                            (keys - 1) * rows.row + TypeParam::of(isa).row_bytes(size), where);
        std::vector<A> q(as_size(size), A{1}), scores(as_size(keys + lanes)), y(as_size(size), A{0});
        TypeParam::of(isa).score_rows({.scores = scores.data(),
                                       .scores_row = keys + lanes,
                                       .q = q.data(),
                                       .rows = 1,
                                       .k = memory.data(),
                                       .k_row = rows.row,
                                       .keys = keys,
                                       .size = size});
        TypeParam::of(isa).weigh_rows({.y = y.data(),
                                       .weights = scores.data(),
                                       .weights_row = keys,
                                       .rows = 1,
                                       .v = memory.data(),
                                       .v_row = rows.row,
                                       .keys = keys,
                                       .size = size});
        double sum = 0;
        for (Index d = 0; d < size; ++d) sum += rows.at(0, d);
        ASSERT_EQ(static_cast<double>(scores[0]), sum);
      }
    });
  });
}
#endif

// ---- Rows in 8 bits ---------------------------------------------------------------------------------------------------

TEST(ScaledRows, AreTheNearestMultiplesOfTheirScale) {
  on_every_isa([](Isa isa) {
    const auto& format = kernel::row_format_of<float, ScaledBytes>(isa);
    for (const Index n : {1, 5, 16, 33, 128})
      for (const double size : {1e-20, 1.0, 3e30}) {
        const auto x = numbers_between<float>(-size, size, n, 5);
        std::vector<std::byte> row(as_size(format.row_bytes(n)));
        format.store(row.data(), x.data(), n);
        float scale;
        std::memcpy(&scale, row.data() + attn::detail::round_up(n, 4), sizeof scale);
        for (Index i = 0; i < n; ++i) {
          const double number = static_cast<std::int8_t>(row[as_size(i)]);
          ASSERT_LE(std::abs(double{x[as_size(i)]} - number * double{scale}), 0.5001 * double{scale})
              << i << " of " << n;
          ASSERT_LE(std::abs(number), 127);
        }
      }
  });
}

TEST(ScaledRows, AreTheSameOnEveryInstructionSet) {
  const auto x = numbers_between<float>(-3, 3, 77, 6);
  const auto stored = [&](Isa isa) {
    const auto& format = kernel::row_format_of<float, ScaledBytes>(isa);
    std::vector<std::byte> row(as_size(format.row_bytes(77)));
    format.store(row.data(), x.data(), 77);
    return row;
  };
  const auto expected = stored(Isa::baseline);
  on_every_isa([&](Isa isa) { EXPECT_EQ(stored(isa), expected); });
}

}  // namespace
