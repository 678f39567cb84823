#include "support.hpp"

namespace {

using attn::Causal;
using attn::Coverage;
using attn::detail::length_seen;
using attn_test::Index;
using attn_test::infinity;
using attn_test::Position;
using attn_test::Tensor;

constexpr Index S = 37;

/// From the first to the last key that any query sees, by asking for every score.
template <class M>
Index plain_length(const M& mask, Index batch, Index heads) {
  Index first = S, last = -1;
  for (Index h = 0; h < heads; ++h)
    for (Index s = 0; s < S; ++s)
      for (Index t = 0; t < S; ++t) {
        const Position at{static_cast<std::int32_t>(batch), static_cast<std::int32_t>(h), static_cast<std::int32_t>(s),
                          static_cast<std::int32_t>(s), static_cast<std::int32_t>(t)};
        bool seen = mask.keep(at);
        if constexpr (attn::detail::HasBias<M>) seen = seen && static_cast<double>(mask.bias(at)) != -infinity;
        if (seen) first = std::min(first, t), last = std::max(last, t);
      }
  return std::max<Index>(last - first + 1, 0);
}

template <class M>
void expect_plain_length(const M& mask, Index batches, Index heads) {
  for (Index b = 0; b < batches; ++b)
    EXPECT_EQ((length_seen<float>(mask, b, heads, S)), plain_length(mask, b, heads)) << "batch entry " << b;
}

TEST(SequenceLength, IsTheWholeLengthWithoutPadding) {
  EXPECT_EQ((length_seen<float>(attn::NoMask{}, 0, 2, S)), S);
  EXPECT_EQ((length_seen<float>(Causal{}, 0, 2, S)), S);
  EXPECT_EQ((length_seen<float>(Causal{} & attn::SlidingWindow(3), 0, 2, S)), S);
  EXPECT_EQ((length_seen<float>(attn::NoMask{}, 0, 1, 1)), 1);
}

TEST(SequenceLength, IsWhatPaddingSaysInAnyJoinedMask) {
  const std::vector<Index> lengths{0, 1, 2, 17, S - 1, S};
  const attn::Padding padding(lengths);
  for (Index b = 0; b < std::ssize(lengths); ++b) {
    const Index expected = lengths[static_cast<std::size_t>(b)];
    EXPECT_EQ((length_seen<float>(padding, b, 3, S)), expected);
    EXPECT_EQ((length_seen<float>(Causal{} & padding, b, 3, S)), expected);
    EXPECT_EQ((length_seen<float>(
                  Causal{} & padding & [](Position) { return true; }, b, 3, S)),
              expected);
  }
}

TEST(SequenceLength, IsFoundInTensorsThatPadAtEitherEnd) {
  Tensor<bool, 4> keep(4, 1, 1, S);
  Tensor<float, 4> bias(4, 1, 1, S);
  for (Index b = 0; b < 4; ++b)
    for (Index t = 0; t < S; ++t) {
      keep(b, 0, 0, t) = b == 0 ? t < 10 : b == 1 ? t >= 10 : b == 2 ? t >= 5 && t < 9 : false;
      bias(b, 0, 0, t) = keep(b, 0, 0, t) ? 0.F : -static_cast<float>(infinity);
    }
  for (const auto& [b, length] : {std::pair<Index, Index>{0, 10}, {1, S - 10}, {2, 4}, {3, 0}}) {
    EXPECT_EQ((length_seen<float>(attn::KeepMask(keep), b, 2, S)), length);
    EXPECT_EQ((length_seen<float>(attn::AdditiveMask(bias), b, 2, S)), length);
    EXPECT_EQ((length_seen<float>(Causal{} & attn::AdditiveMask(bias), b, 2, S)), length);
  }
}

TEST(SequenceLength, CountsKeysThatOneHeadAloneSees) {
  const auto head_1 = attn::as_mask([](Position at) { return at.key < (at.head == 1 ? 20 : 6); });
  const auto head_2 = attn::as_mask([](Position at) { return at.key >= (at.head == 2 ? 3 : 9); });
  EXPECT_EQ((length_seen<float>(head_1, 0, 3, S)), 20);
  EXPECT_EQ((length_seen<float>(head_1, 0, 1, S)), 6);
  EXPECT_EQ((length_seen<float>(head_2, 0, 3, S)), S - 3);
}

TEST(SequenceLength, CountsKeysWithAFiniteFiller) {
  Tensor<float, 1> bias(S);
  bias.setConstant(-1e9F);
  EXPECT_EQ((length_seen<float>(attn::AdditiveMask(bias), 0, 1, S)), S);
}

TEST(SequenceLength, IsWhatAskingForEveryScoreGives) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 20; ++trial) {
    Tensor<bool, 4> keep(2, 2, S, S);
    const Index from = static_cast<Index>(random() % S), to = from + static_cast<Index>(random() % 20);
    for (Index i = 0; i < keep.size(); ++i) keep.data()[i] = i % S >= from && i % S < to && random() % 200 == 0;
    expect_plain_length(attn::KeepMask(keep), 2, 2);
    expect_plain_length(Causal{} & attn::KeepMask(keep), 2, 2);
  }
}

/// Counts how often it is asked for one score.
struct Counted {
  attn::Padding padding;
  Index* asked;
  [[nodiscard]] bool keep(Position at) const { return ++*asked, padding.keep(at); }
  [[nodiscard]] Coverage cover(attn::Block block) const { return padding.cover(block); }
};

TEST(SequenceLength, AsksForNoScoreIfTheMaskKnowsItsBlocks) {
  const std::vector<Index> lengths{17};
  Index asked = 0;
  EXPECT_EQ((length_seen<float>(Counted{attn::Padding(lengths), &asked}, 0, 4, S)), 17);
  EXPECT_EQ(asked, 0);
}

}  // namespace
