// Masks by themselves: what they keep, and that cover() says of blocks what keep() says of their scores.

#include "support.hpp"

namespace {

using attn::AdditiveMask;
using attn::Align;
using attn::Block;
using attn::Causal;
using attn::Coverage;
using attn::Index;
using attn::KeepMask;
using attn::LeftPadding;
using attn::NoMask;
using attn::Padding;
using attn::Position;
using attn::SlidingWindow;
using attn::Tensor;
using attn::View;
using attn_test::error_of;
using attn_test::random_tensor;
using attn_test::reads;
using attn_test::Sizes;

constexpr Position at(std::int32_t row, std::int32_t query, std::int32_t key) { return {0, 0, row, query, key}; }

// The core of the masks is constant expressions.
static_assert(Causal{}.keep(at(0, 4, 4)) && !Causal{}.keep(at(0, 4, 5)));
static_assert(Causal{Align::top_left}.keep(at(0, 4, 0)) && !Causal{Align::top_left}.keep(at(0, 4, 1)));
static_assert(SlidingWindow(1).keep(at(0, 4, 4)) && !SlidingWindow(1).keep(at(0, 4, 3)));
static_assert((Causal{} & SlidingWindow(2)).keep(at(0, 4, 3)) && !(Causal{} & SlidingWindow(2)).keep(at(0, 4, 2)));

TEST(Mask, WindowKeepsItsWidthAndTheKeysAhead) {
  const SlidingWindow mask(3, 2);
  std::string kept;
  for (std::int32_t key = 0; key < 12; ++key) kept += mask.keep(at(0, 6, key)) ? '1' : '0';
  EXPECT_EQ(kept, "000011111000");
}

TEST(Mask, UnlimitedWindowKeepsEverything) {
  constexpr auto far = std::numeric_limits<std::int32_t>::max();
  const SlidingWindow mask = SlidingWindow::unlimited();
  EXPECT_TRUE(mask.keep(at(0, far, 0)));
  EXPECT_TRUE(mask.keep(at(0, -far, far)));
  EXPECT_EQ(mask.cover({at(0, -far, 0), at(0, far, far)}), Coverage::full);
}

TEST(Mask, WindowsAtTheLimitsOfTheirTypesDoNotOverflow) {
  constexpr auto far = std::numeric_limits<std::int32_t>::max();
  const SlidingWindow narrow(1), wide(Index{1} << 40, Index{1} << 40);
  EXPECT_FALSE(narrow.keep(at(0, -far, far)));
  EXPECT_EQ(narrow.cover({at(0, -far, far - 1), at(0, -far, far)}), Coverage::empty);
  EXPECT_EQ(wide.cover({at(0, -far, 0), at(0, far, far)}), Coverage::full);
}

TEST(Mask, LeftPaddingWithoutNumbersKeepsEverything) {
  EXPECT_TRUE(LeftPadding().keep(at(0, 0, 0)));
  EXPECT_EQ(LeftPadding().cover({at(0, 0, 0), at(9, 9, 1 << 30)}), Coverage::full);
}

TEST(Mask, PaddingWithoutLengthsKeepsEverything) {
  EXPECT_TRUE(Padding().keep(at(0, 0, 1 << 30)));
  EXPECT_EQ(Padding().cover({at(0, 0, 0), at(9, 9, 1 << 30)}), Coverage::full);
}

TEST(Mask, AxesOfTensorsAlignAtTheRight) {
  Tensor<bool, 2> keep(3, 4);      // [S,T]
  Tensor<float, 3> bias(2, 1, 4);  // [H,1,T]
  for (Index i = 0; i < 12; ++i) keep.data()[i] = i % 5 != 0;
  for (Index i = 0; i < 8; ++i) bias.data()[i] = static_cast<float>(i);
  for (std::int32_t b = 0; b < 2; ++b)
    for (std::int32_t h = 0; h < 2; ++h)
      for (std::int32_t s = 0; s < 3; ++s)
        for (std::int32_t t = 0; t < 4; ++t) {
          const Position where{b, h, s, s + 1, t};
          EXPECT_EQ(KeepMask(keep).keep(where), keep(s, t));
          EXPECT_EQ(AdditiveMask(bias).bias(where), bias(h, 0, t));
        }
}

// ---- Views whose elements do not lie packed: KeepMask, AdditiveMask and ScoreBias read by strides ----

constexpr Sizes grid{.B = 2, .H = 3, .S = 4, .T = 5};

/// Axes of [B,H,S,T], the last `Rank` of them, that lie in memory in the order `order`, `gap` elements apart.
template <class T, int Rank>
View<const T, Rank> strided(const T* memory, const std::array<std::size_t, std::size_t{Rank}>& order, Index gap) {
  const std::array<Index, 4> whole = grid.scores();
  typename View<const T, Rank>::Sizes shape{}, stride{};
  std::copy_backward(whole.begin() + (4 - Rank), whole.end(), shape.end());
  for (std::size_t i = order.size(); i-- > 0; gap *= shape[order[i]] + 1) stride[order[i]] = gap;
  return {memory, shape, stride};
}

/// The masks and the bias made of this view hold, at every position, what the view does.
template <int Rank>
void expect_read_by_strides(const std::array<std::size_t, std::size_t{Rank}>& order, Index gap) {
  const auto numbers = random_tensor<float, 1>({4000}, 1);
  std::vector<char> flags;
  for (Index i = 0; i < numbers.size(); ++i) flags.push_back(numbers(i) > 0.F ? 1 : 0);
  const auto bias = strided<float, Rank>(numbers.data(), order, gap);
  const auto keep = strided<bool, Rank>(reinterpret_cast<const bool*>(flags.data()), order, gap);
  for (std::int32_t b = 0; b < grid.B; ++b)
    for (std::int32_t h = 0; h < grid.H; ++h)
      for (std::int32_t s = 0; s < grid.S; ++s)
        for (std::int32_t t = 0; t < grid.T; ++t) {
          const std::array<Index, 4> index{b, h, s, t};
          Index offset = 0;
          for (int axis = 0; axis < Rank; ++axis)
            offset += index[static_cast<std::size_t>(4 - Rank + axis)] * bias.stride(axis);
          const Position where{b, h, s, s + 1, t};
          ASSERT_EQ(AdditiveMask(bias).bias(where), numbers(offset));
          ASSERT_EQ(attn::ScoreBias(bias)(0.F, where), numbers(offset));
          ASSERT_EQ(KeepMask(keep).keep(where), flags[static_cast<std::size_t>(offset)] != 0);
        }
}

TEST(StridedMask, MayHaveItsAxesInAnyOrder) {
  for (const Index gap : {1, 3}) {
    expect_read_by_strides<1>({0}, gap);
    expect_read_by_strides<2>({0, 1}, gap);
    expect_read_by_strides<2>({1, 0}, gap);  // transposed
    for (const auto& order : {std::array<std::size_t, 3>{0, 1, 2}, {2, 1, 0}, {1, 2, 0}})
      expect_read_by_strides<3>(order, gap);
    for (const auto& order : {std::array<std::size_t, 4>{0, 1, 2, 3}, {3, 2, 1, 0}, {0, 1, 3, 2}, {2, 0, 3, 1}})
      expect_read_by_strides<4>(order, gap);
  }
}

TEST(StridedMask, RepeatsAnAxisOfSize1WhateverItsStride) {
  const auto numbers = random_tensor<float, 1>({100}, 1);
  const View<const float, 3> bias(numbers.data(), {3, 1, 5}, {17, 999, 2});  // [H,1,T]
  for (std::int32_t h = 0; h < grid.H; ++h)
    for (std::int32_t s = 0; s < grid.S; ++s)
      for (std::int32_t t = 0; t < grid.T; ++t) {
        const Position where{1, h, s, s + 1, t};
        ASSERT_EQ(AdditiveMask(bias).bias(where), numbers(17 * h + 2 * t));
        ASSERT_EQ(attn::ScoreBias(bias)(0.F, where), numbers(17 * h + 2 * t));
      }
}

TEST(Mask, JoinedAdditiveMasksAddTheirBiases) {
  Tensor<float, 1> a(2), b(2);
  a.setValues({1, 2});
  b.setValues({10, 20});
  EXPECT_EQ((AdditiveMask(a) & AdditiveMask(b)).bias(at(0, 0, 1)), 22.F);
  EXPECT_EQ((AdditiveMask(a) & Causal{}).bias(at(0, 0, 1)), 2.F);
  EXPECT_EQ((Causal{} & AdditiveMask(b)).bias(at(0, 0, 1)), 20.F);
  static_assert(!attn::detail::HasBias<decltype(Causal{} & SlidingWindow(2))>);
}

// Added in half, these two finite numbers would give -inf.
TEST(Mask, JoinedBiasesOfHalfAreAddedInFloat) {
  Tensor<Eigen::half, 1> a(1), b(1);
  a.setConstant(Eigen::half(-60000.F));
  b.setConstant(Eigen::half(-60000.F));
  EXPECT_EQ(static_cast<float>((AdditiveMask(a) & AdditiveMask(b)).bias(at(0, 0, 0))),
            2 * static_cast<float>(Eigen::half(-60000.F)));
}

/// A boolean tensor of 4 rows of 2^31 - 1 keys, of which one element exists.
struct LargeBits {
  static constexpr int NumDimensions = 2, Layout = Eigen::RowMajor;
  static constexpr Index keys = std::numeric_limits<std::int32_t>::max();
  const bool* memory;
  [[nodiscard]] const bool* data() const { return memory; }
  [[nodiscard]] static Index dimension(int axis) { return axis == 0 ? 4 : keys; }
};

TEST(Mask, OffsetsAre64Bit) {
  const bool target = true;
  const auto begin = reinterpret_cast<std::uintptr_t>(&target) - static_cast<std::uintptr_t>(3 * LargeBits::keys + 5);
  EXPECT_TRUE(KeepMask(LargeBits{reinterpret_cast<const bool*>(begin)}).keep(at(3, 3, 5)));
}

TEST(Mask, ViewsMayHaveAnyStrides) {
  Tensor<float, 2> bias(8, 6);
  for (Index i = 0; i < 48; ++i) bias.data()[i] = static_cast<float>(i);
  const View<const float, 2> turned(bias.data(), {3, 4}, {2, 6});  // every second column, columns as rows
  const View<const float, 4> repeated(bias.data(), {2, 2, 3, 4}, {0, 24, 0, 1});
  for (std::int32_t b = 0; b < 2; ++b)
    for (std::int32_t h = 0; h < 2; ++h)
      for (std::int32_t s = 0; s < 3; ++s)
        for (std::int32_t t = 0; t < 4; ++t) {
          EXPECT_EQ(AdditiveMask(turned).bias({b, h, s, s, t}), turned(s, t));
          EXPECT_EQ(AdditiveMask(repeated).bias({b, h, s, s, t}), repeated(b, h, s, t));
        }
}

TEST(Mask, TensorsOfImpossibleShapesAreRefused) {
  const bool bits[1] = {true};
  const auto refuse = [&](Index rows, Index columns) {
    return error_of([&] { static_cast<void>(KeepMask(attn::TensorMap<const bool, 2>(bits, rows, columns))); });
  };
  EXPECT_TRUE(reads(refuse(-1, -4), {"[attn::View] mask or bias", "negative", "got [-1,-4]"}));
  EXPECT_TRUE(reads(refuse(Index{1} << 32, Index{1} << 32), {"[attn::View] mask or bias", "memory can hold"}));
}

// ---- cover() ----------------------------------------------------------------------------------------------------

struct Truth {
  bool any = false, all = true;
};
template <class M>
Truth truth_of(const M& mask, const Block& block) {
  Truth truth;
  for (std::int32_t i = 0; i <= block.last.row - block.first.row; ++i)
    for (std::int32_t t = block.first.key; t <= block.last.key; ++t) {
      const bool keep = mask.keep({block.first.batch, block.first.head, block.first.row + i, block.first.query + i, t});
      truth.any |= keep;
      truth.all &= keep;
    }
  return truth;
}

/// Over random blocks: empty means nothing is kept, full that all is; `exact`: it also says so whenever it is so.
template <class M>
void expect_cover_agrees_with_keep(const M& mask, bool exact) {
  std::mt19937 random(5);
  const auto below = [&](unsigned n) { return static_cast<std::int32_t>(random() % n); };
  int seen[3] = {0, 0, 0};
  for (int i = 0; i < 4000; ++i) {
    Block block;
    block.first = {below(3), below(2), below(60), 0, below(60)};
    block.first.query = block.first.row + below(40) - 20;
    block.last = block.first;
    const std::int32_t rows = below(12), keys = below(12);
    block.last.row += rows;
    block.last.query += rows;
    block.last.key += keys;

    const Truth truth = truth_of(mask, block);
    const Coverage cover = mask.cover(block);
    ++seen[static_cast<int>(cover)];
    const std::string where = testing::PrintToString(
        std::array{block.first.batch, block.first.row, block.first.query, block.first.key, rows, keys});
    const Coverage best = !truth.any ? Coverage::empty : truth.all ? Coverage::full : Coverage::mixed;
    ASSERT_TRUE(cover == best || (cover == Coverage::mixed && !exact)) << where;
  }
  if (!exact || seen[static_cast<int>(Coverage::full)] == 4000) return;
  for (const int count : seen) EXPECT_GT(count, 100) << "the blocks tried tell too little";
}

const std::array<Index, 3> lengths{0, 17, 41};

TEST(MaskCover, OfNoMaskIsFull) { expect_cover_agrees_with_keep(NoMask{}, true); }
TEST(MaskCover, AgreesWithKeepForCausal) { expect_cover_agrees_with_keep(Causal{}, true); }
TEST(MaskCover, AgreesWithKeepForCausalTopLeft) { expect_cover_agrees_with_keep(Causal{Align::top_left}, true); }
TEST(MaskCover, AgreesWithKeepForSlidingWindow) {
  expect_cover_agrees_with_keep(SlidingWindow(15), true);
  expect_cover_agrees_with_keep(SlidingWindow(17, 3), true);
  expect_cover_agrees_with_keep(SlidingWindow(7, 30), true);
  expect_cover_agrees_with_keep(SlidingWindow(1), false);  // too narrow to fill a block of any size
  expect_cover_agrees_with_keep(SlidingWindow::unlimited(), true);
}
TEST(MaskCover, AgreesWithKeepForPadding) { expect_cover_agrees_with_keep(Padding(lengths), true); }
TEST(MaskCover, AgreesWithKeepForLeftPadding) { expect_cover_agrees_with_keep(LeftPadding(lengths), true); }
TEST(MaskCover, AgreesWithKeepForKeepMask) {
  Tensor<bool, 2> keep(71, 71);
  for (Index i = 0; i < keep.size(); ++i) keep.data()[i] = i % 3 != 0;
  expect_cover_agrees_with_keep(KeepMask(keep), false);
}
TEST(MaskCover, AgreesWithKeepForAdditiveMask) {
  const auto bias = random_tensor<float, 2>({71, 71}, 1);
  expect_cover_agrees_with_keep(AdditiveMask(bias), false);
}
TEST(MaskCover, AgreesWithKeepForCallables) {
  const auto odd = [](Position p) { return (p.key - p.query) % 2 != 0; };
  expect_cover_agrees_with_keep(attn::as_mask(odd), false);
}
TEST(MaskCover, AgreesWithKeepForJoinedMasks) {
  const auto odd = [](Position p) { return (p.key - p.query) % 2 != 0; };
  expect_cover_agrees_with_keep(Causal{} & SlidingWindow(15), false);
  expect_cover_agrees_with_keep(SlidingWindow(15) & Causal{}, false);
  expect_cover_agrees_with_keep(Causal{} & Padding(lengths), false);
  expect_cover_agrees_with_keep(Causal{} & SlidingWindow(15) & Padding(lengths), false);
  expect_cover_agrees_with_keep(Causal{} & (SlidingWindow(15) & Padding(lengths)), false);
  expect_cover_agrees_with_keep(Causal{} & odd, false);
  expect_cover_agrees_with_keep(odd & Padding(lengths), false);
  expect_cover_agrees_with_keep(Causal{} & LeftPadding(lengths), false);
}

TEST(MaskCover, OfJoinedMasksIsEmptyWhereOneIsAndFullWhereBothAre) {
  const auto mask = Causal{} & SlidingWindow(20);
  EXPECT_EQ(mask.cover({at(0, 10, 11), at(3, 13, 20)}), Coverage::mixed);
  EXPECT_EQ(mask.cover({at(0, 10, 14), at(3, 13, 20)}), Coverage::empty);  // all after the queries
  EXPECT_EQ(mask.cover({at(0, 50, 0), at(3, 53, 20)}), Coverage::empty);   // all before the window
  EXPECT_EQ(mask.cover({at(0, 10, 0), at(3, 13, 10)}), Coverage::full);
}

TEST(AdditiveMask, IsAddedToAnotherInTheWiderOfBothTypes) {
  Tensor<float, 1> in_float(1);
  Tensor<double, 1> in_double(1);
  in_float.setConstant(0.25F);
  in_double.setConstant(0.1);
  EXPECT_EQ((AdditiveMask(in_float) & AdditiveMask(in_double)).bias(Position{}), 0.25 + 0.1);
  EXPECT_EQ((AdditiveMask(in_double) & AdditiveMask(in_float)).bias(Position{}), 0.25 + 0.1);
}

}  // namespace
