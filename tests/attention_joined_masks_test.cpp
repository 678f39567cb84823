// Masks joined by & in attention, against the same written in plain code, over many sizes.

#include "support.hpp"

namespace {

using attn::AdditiveMask;
using attn::Causal;
using attn::Index;
using attn::KeepMask;
using attn::NoScore;
using attn::Padding;
using attn::Position;
using attn::SlidingWindow;
using attn::Tensor;
using attn_test::expect_attention;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::Sizes;

bool causal(const Sizes& n, Position at) { return at.key <= at.row + n.T - n.S; }
bool window(const Sizes& n, Position at, Index width) { return at.key > at.row + n.T - n.S - width; }

std::vector<Index> some_lengths(const Sizes& n) {
  std::vector<Index> lengths;
  for (Index b = 0; b < n.B; ++b) lengths.push_back(n.T - (n.T / 3) * (b % 3));
  return lengths;
}
bool live(const std::vector<Index>& lengths, Position at) {
  return at.key < lengths[static_cast<std::size_t>(at.batch)];
}

TEST(JoinedMask, MatchesCausalAndWindow) {
  unsigned seed = 2100;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), Causal{} & SlidingWindow(21, 5), NoScore{},
                     [=](Position at) { return only_if(causal(n, at) && window(n, at, 21)); });
}

TEST(JoinedMask, MatchesCausalAndPadding) {
  unsigned seed = 2200;
  for (const Sizes& n : many_sizes()) {
    const auto lengths = some_lengths(n);
    expect_attention(random_inputs<float>(n, ++seed), Causal{} & Padding(lengths), NoScore{},
                     [&](Position at) { return only_if(causal(n, at) && live(lengths, at)); });
  }
}

TEST(JoinedMask, MatchesCausalWindowAndPadding) {
  unsigned seed = 2300;
  for (const Sizes& n : many_sizes()) {
    const auto lengths = some_lengths(n);
    expect_attention(random_inputs<float>(n, ++seed), Causal{} & SlidingWindow(50) & Padding(lengths), NoScore{},
                     [&](Position at) { return only_if(causal(n, at) && window(n, at, 50) && live(lengths, at)); });
  }
}

TEST(JoinedMask, MatchesCausalAndCallable) {
  unsigned seed = 2400;
  const auto even = [](Position at) { return (at.key + at.head) % 2 == 0; };
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), Causal{} & even, NoScore{},
                     [=](Position at) { return only_if(causal(n, at) && (at.key + at.head) % 2 == 0); });
}

TEST(JoinedMask, MatchesCallableAndPadding) {
  unsigned seed = 2500;
  const auto even = [](Position at) { return (at.key + at.row) % 2 == 0; };
  for (const Sizes& n : many_sizes()) {
    const auto lengths = some_lengths(n);
    expect_attention(random_inputs<float>(n, ++seed), even & Padding(lengths), NoScore{},
                     [&](Position at) { return only_if((at.key + at.row) % 2 == 0 && live(lengths, at)); });
  }
}

/// A [H,S,T] tensor of 0 and 1 and one of biases, for sizes n.
struct Tensors {
  Tensor<bool, 3> keep;
  Tensor<float, 2> bias;
  Tensor<float, 4> more_bias;
  Tensors(const Sizes& n, unsigned seed) : keep(n.H, n.S, n.T) {
    const auto values = random_tensor<float, 3>({n.H, n.S, n.T}, seed);
    for (Index i = 0; i < values.size(); ++i) keep.data()[i] = values.data()[i] < 1.0F;
    bias = random_tensor<float, 2>({n.S, n.T}, seed + 1);
    more_bias = random_tensor<float, 4>({n.B, 1, 1, n.T}, seed + 2);
    for (Index i = 0; i < bias.size(); i += 7) bias.data()[i] = -std::numeric_limits<float>::infinity();
  }
};

TEST(JoinedMask, MatchesAdditiveAndCausalInEitherOrder) {
  unsigned seed = 2600;
  for (const Sizes& n : many_sizes()) {
    const Tensors t(n, ++seed);
    const auto plain = [&](Position at) { return only_if(causal(n, at)) + t.bias(at.row, at.key); };
    const auto in = random_inputs<float>(n, ++seed);
    expect_attention(in, AdditiveMask(t.bias) & Causal{}, NoScore{}, plain);
    expect_attention(in, Causal{} & AdditiveMask(t.bias), NoScore{}, plain);
  }
}

TEST(JoinedMask, MatchesSixMasksAtOnce) {
  unsigned seed = 2700;
  for (const Sizes& n : many_sizes()) {
    const Tensors t(n, ++seed);
    const auto lengths = some_lengths(n);
    const auto third = [](Position at) { return (at.key + at.batch) % 3 != 0; };
    expect_attention(random_inputs<float>(n, ++seed),
                     KeepMask(t.keep) & AdditiveMask(t.bias) & (Causal{} & SlidingWindow(90)) & third &
                         Padding(lengths) & AdditiveMask(t.more_bias),
                     NoScore{}, [&](Position at) {
                       const bool keep = t.keep(at.head, at.row, at.key) && causal(n, at) && window(n, at, 90) &&
                                         (at.key + at.batch) % 3 != 0 && live(lengths, at);
                       return only_if(keep) + t.bias(at.row, at.key) + t.more_bias(at.batch, 0, 0, at.key);
                     });
  }
}

TEST(JoinedMask, IsTheMaskItselfWhenJoinedWithItselfOrNoMask) {
  const Sizes n{.B = 1, .H = 2, .G = 1, .S = 40, .T = 51, .D = 6, .Dv = 7};
  const auto in = random_inputs<float>(n, 2800);
  const auto alone = attn::scaled_dot_product_attention(in.q, in.k, in.v, Causal{}).output;
  EXPECT_TRUE(same_bits(attn::scaled_dot_product_attention(in.q, in.k, in.v, Causal{} & Causal{}).output, alone));
  EXPECT_TRUE(same_bits(attn::scaled_dot_product_attention(in.q, in.k, in.v, attn::NoMask{} & Causal{}).output, alone));
}

}  // namespace
