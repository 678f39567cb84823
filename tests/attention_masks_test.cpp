// Every mask in attention, against the same mask written in plain code, over many sizes.

#include "support.hpp"

namespace {

using attn::Index;
using attn::NoScore;
using attn::Position;
using attn::Tensor;
using attn::View;
using attn_test::expect_attention;
using attn_test::infinity;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::only_if;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::Sizes;

TEST(AttentionMask, NoMaskMatchesPlainCode) {
  unsigned seed = 100;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), attn::NoMask{}, NoScore{}, keep_all);
}

TEST(AttentionMask, CausalMatchesPlainCode) {
  unsigned seed = 200;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), attn::Causal{}, NoScore{},
                     [=](Position at) { return only_if(at.key <= at.row + n.T - n.S); });
}

TEST(AttentionMask, CausalTopLeftMatchesPlainCode) {
  unsigned seed = 300;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), attn::Causal{attn::Align::top_left}, NoScore{},
                     [](Position at) { return only_if(at.key <= at.row); });
}

struct Window {
  Index width, ahead;
};

TEST(AttentionMask, SlidingWindowMatchesPlainCode) {
  unsigned seed = 400;
  for (const Window w : {Window{1, 0}, {5, 0}, {64, 0}, {3, 4}, {1, 100}, {100000, 2}})
    for (const Sizes& n : many_sizes()) {
      SCOPED_TRACE(testing::Message() << "window " << w.width << ", ahead " << w.ahead);
      expect_attention(random_inputs<float>(n, ++seed), attn::SlidingWindow(w.width, w.ahead), NoScore{},
                       [=](Position at) {
                         const Index query = at.row + n.T - n.S;
                         return only_if(query - w.width < at.key && at.key <= query + w.ahead);
                       });
    }
}

TEST(AttentionMask, PaddingMatchesPlainCode) {
  unsigned seed = 500;
  for (const Sizes& n : many_sizes()) {
    std::vector<Index> lengths;
    for (Index b = 0; b < n.B; ++b) lengths.push_back((n.T * (b + 2) / 3 + (b == 2 ? 1 : 0)) % (n.T + 1));
    expect_attention(random_inputs<float>(n, ++seed), attn::Padding(lengths), NoScore{},
                     [&](Position at) { return only_if(at.key < lengths[static_cast<std::size_t>(at.batch)]); });
  }
}

TEST(AttentionMask, LeftPaddingMatchesPlainCode) {
  unsigned seed = 550;
  for (const Sizes& n : many_sizes()) {
    std::vector<Index> padding;
    for (Index b = 0; b < n.B; ++b) padding.push_back((n.T * (b + 1) / 3 + (b == 2 ? 1 : 0)) % (n.T + 1));
    expect_attention(random_inputs<float>(n, ++seed), attn::LeftPadding(padding), NoScore{},
                     [&](Position at) { return only_if(at.key >= padding[static_cast<std::size_t>(at.batch)]); });
  }
}

TEST(AttentionMask, LeftPaddingIsNeverRead) {
  for (const Index S : {1, 70}) {
    auto in = random_inputs<float>({.B = 2, .H = 4, .G = 2, .S = S, .T = 300, .D = 16, .Dv = 16}, 3);
    const std::vector<Index> padding{200, 17};
    const auto clean = attn::scaled_dot_product_attention(in.q, in.k, in.v, attn::LeftPadding(padding));
    for (Index b = 0; b < 2; ++b)
      for (Index g = 0; g < 2; ++g)
        for (Index t = 0; t < padding[static_cast<std::size_t>(b)]; ++t)
          for (Index d = 0; d < 16; ++d) in.k(b, g, t, d) = in.v(b, g, t, d) = std::numeric_limits<float>::quiet_NaN();
    const auto poisoned = attn::scaled_dot_product_attention(in.q, in.k, in.v, attn::LeftPadding(padding));
    EXPECT_TRUE(attn_test::same_bits(clean.output, poisoned.output));
  }
}

TEST(AttentionMask, LeftPaddingThatDoesNotFitIsRefused) {
  const auto in = random_inputs<float>({.B = 2, .H = 1, .G = 1, .S = 3, .T = 5, .D = 4, .Dv = 4}, 4);
  const auto call = [&](std::vector<Index> padding) {
    static_cast<void>(attn::scaled_dot_product_attention(in.q, in.k, in.v, attn::LeftPadding(padding)));
  };
  EXPECT_THROW(call({1}), attn::Error);
  EXPECT_THROW(call({1, -1}), attn::Error);
  EXPECT_THROW(call({6, 1}), attn::Error);
  EXPECT_NO_THROW(call({5, 0}));
}

/// All shapes of rank 1 to 4 that broadcast to [B,H,S,T]: every axis whole or 1.
std::vector<std::vector<Index>> broadcast_shapes(const Sizes& n) {
  std::vector<std::vector<Index>> all;
  const auto whole = n.scores();
  for (std::size_t rank = 1; rank <= 4; ++rank)
    for (unsigned ones = 0; ones < (1U << rank); ++ones) {
      std::vector<Index> shape(whole.end() - static_cast<std::ptrdiff_t>(rank), whole.end());
      for (std::size_t axis = 0; axis < rank; ++axis)
        if ((ones >> axis) % 2 != 0) shape[axis] = 1;
      all.push_back(shape);
    }
  return all;
}

/// Calls f with a map of rank 1 to 4 over the values.
template <class T, class F>
void with_rank(const T* values, const std::vector<Index>& shape, const F& f) {
  switch (shape.size()) {
    case 1:
      return f(attn::TensorMap<const T, 1>(values, shape[0]));
    case 2:
      return f(attn::TensorMap<const T, 2>(values, shape[0], shape[1]));
    case 3:
      return f(attn::TensorMap<const T, 3>(values, shape[0], shape[1], shape[2]));
    default:
      return f(attn::TensorMap<const T, 4>(values, shape[0], shape[1], shape[2], shape[3]));
  }
}

/// The element that a broadcast tensor has at a position, found as NumPy's rule reads.
Index broadcast_index(const std::vector<Index>& shape, Position at) {
  const std::array<Index, 4> index{at.batch, at.head, at.row, at.key};
  Index offset = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    offset = offset * shape[axis] + (shape[axis] == 1 ? 0 : index[4 - shape.size() + axis]);
  return offset;
}

const std::array<Sizes, 4> few_sizes{{{.B = 2, .H = 4, .G = 2, .S = 13, .T = 37, .D = 9, .Dv = 5},
                                      {.B = 3, .H = 2, .G = 1, .S = 70, .T = 20, .D = 4, .Dv = 7},
                                      {.B = 1, .H = 1, .G = 1, .S = 66, .T = 270, .D = 3, .Dv = 2},
                                      {.B = 2, .H = 3, .G = 3, .S = 1, .T = 90, .D = 8, .Dv = 8}}};

TEST(AttentionMask, KeepMaskOfEveryRankBroadcasts) {
  const auto values = random_tensor<float, 1>({100000}, 1);
  std::vector<char> bits;  // a row is empty here and there
  for (Index i = 0; i < values.size(); ++i) bits.push_back(values(i) > -0.5F && i % 700 > 40 ? 1 : 0);
  const auto* keep = reinterpret_cast<const bool*>(bits.data());
  unsigned seed = 600;
  for (const Sizes& n : few_sizes) {
    const auto in = random_inputs<float>(n, ++seed);
    for (const auto& shape : broadcast_shapes(n)) {
      SCOPED_TRACE(testing::PrintToString(shape));
      with_rank(keep, shape, [&](const auto& mask) {
        expect_attention(in, attn::KeepMask(mask), NoScore{},
                         [&](Position at) { return only_if(keep[broadcast_index(shape, at)]); });
      });
    }
  }
}

TEST(AttentionMask, AdditiveMaskOfEveryRankBroadcasts) {
  auto values = random_tensor<float, 1>({100000}, 2, 2.0);
  for (Index i = 0; i < values.size(); i += 5) values(i) = -std::numeric_limits<float>::infinity();
  unsigned seed = 700;
  for (const Sizes& n : few_sizes) {
    const auto in = random_inputs<float>(n, ++seed);
    for (const auto& shape : broadcast_shapes(n)) {
      SCOPED_TRACE(testing::PrintToString(shape));
      with_rank(values.data(), shape, [&](const auto& mask) {
        expect_attention(in, attn::AdditiveMask(mask), NoScore{},
                         [&](Position at) { return double{values(broadcast_index(shape, at))}; });
      });
    }
  }
}

TEST(AttentionMask, AFloatTensorIsAnAdditiveMask) {
  const Sizes n = few_sizes[0];
  const auto bias = random_tensor<float, 2>({n.S, n.T}, 3);
  expect_attention(random_inputs<float>(n, 800), bias, NoScore{},
                   [&](Position at) { return double{bias(at.row, at.key)}; });
}

TEST(AttentionMask, AdditiveMaskMayHaveAnotherTypeThanTheScores) {
  const Sizes n = few_sizes[0];
  auto bias = random_tensor<double, 2>({n.S, n.T}, 4);
  bias(1, 2) = -infinity;
  expect_attention(random_inputs<float>(n, 850), attn::AdditiveMask(bias), NoScore{},
                   [&](Position at) { return bias(at.row, at.key); });
}

TEST(AttentionMask, CallableSeesBatchHeadRowQueryAndKey) {
  unsigned seed = 900;
  for (const Sizes& n : many_sizes()) {
    const auto keep = [](Position at) {
      return (at.batch + 3 * at.head + 5 * at.row + 7 * (at.query + 1000) + 11 * at.key) % 4 != 0;
    };
    expect_attention(random_inputs<float>(n, ++seed), keep, NoScore{}, [=](Position at) {
      const Index query = at.row + n.T - n.S + 1000;
      return only_if((at.batch + 3 * at.head + 5 * at.row + 7 * query + 11 * at.key) % 4 != 0);
    });
  }
}

/// A copy of x with its last two axes swapped in memory, and a gap between them, seen as x is.
template <class T>
struct Transposed {
  explicit Transposed(const Tensor<T, 4>& x) {
    const auto shape = attn::detail::shape_of(x);
    const Index column = shape[2] + 3, plane = shape[3] * column;
    memory = attn::detail::make_tensor<T, 1>({shape[0] * shape[1] * plane});
    view = View<T, 4>(memory.data(), shape, {shape[1] * plane, plane, 1, column});
    for (Index b = 0; b < shape[0]; ++b)
      for (Index h = 0; h < shape[1]; ++h)
        for (Index s = 0; s < shape[2]; ++s)
          for (Index t = 0; t < shape[3]; ++t) view(b, h, s, t) = x(b, h, s, t);
  }
  Tensor<T, 1> memory;
  View<T, 4> view;
};

TEST(AttentionMask, TransposedViewsGiveTheSameAsPackedOnes) {
  for (const Sizes& n : few_sizes) {
    SCOPED_TRACE(testing::Message() << n);
    const auto in = random_inputs<float>(n, 1);
    const auto bias = random_tensor<float, 4>(n.scores(), 2);
    Tensor<bool, 4> keep(bias.dimensions());
    for (Index i = 0; i < bias.size(); ++i) keep.data()[i] = bias.data()[i] > -0.5F;
    const Transposed<float> bias_apart(bias);
    const Transposed<bool> keep_apart(keep);
    const auto with = [&](const auto& mask, const auto& score) {
      return attn::scaled_dot_product_attention(in.q, in.k, in.v, mask, score).output;
    };
    EXPECT_TRUE(same_bits(with(bias_apart.view, NoScore{}), with(bias, NoScore{})));
    EXPECT_TRUE(same_bits(with(attn::KeepMask(keep_apart.view), NoScore{}), with(attn::KeepMask(keep), NoScore{})));
    EXPECT_TRUE(
        same_bits(with(attn::NoMask{}, attn::ScoreBias(bias_apart.view)), with(attn::NoMask{}, attn::ScoreBias(bias))));
  }
}

/// A mask of the user's own: tokens see their own paragraph of 40.
struct SameParagraph {
  [[nodiscard]] static bool keep(Position at) { return at.row / 40 == at.key / 40; }
  [[nodiscard]] static attn::Coverage cover(attn::Block block) {
    const auto first_row = block.first.row / 40, last_row = block.last.row / 40;
    const auto first_key = block.first.key / 40, last_key = block.last.key / 40;
    if (last_row < first_key || last_key < first_row) return attn::Coverage::empty;
    return first_row == last_row && first_key == last_key && first_row == first_key ? attn::Coverage::full
                                                                                    : attn::Coverage::mixed;
  }
};

TEST(AttentionMask, AUserDefinedMaskMayHaveCover) {
  unsigned seed = 1000;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), SameParagraph{}, NoScore{},
                     [](Position at) { return only_if(at.row / 40 == at.key / 40); });
}

/// Another: even heads see every second stretch of 90 keys, odd heads the others.
struct Stripes {
  [[nodiscard]] static bool keep(Position at) { return at.key / 90 % 2 == at.head % 2; }
  [[nodiscard]] static attn::Coverage cover(attn::Block block) {
    if (block.first.key / 90 != block.last.key / 90) return attn::Coverage::mixed;
    return keep(block.first) ? attn::Coverage::full : attn::Coverage::empty;
  }
};

bool even_keys(Position at) { return at.key % 2 == 0; }
bool not_seventh(Position at) noexcept { return at.key % 7 != 0; }

TEST(AttentionMask, APlainFunctionIsAMask) {
  const Sizes n{.B = 2, .H = 4, .G = 2, .S = 11, .T = 30, .D = 7, .Dv = 4};
  const auto in = random_inputs<float>(n, 1200);
  const auto even = [](Position at) { return only_if(at.key % 2 == 0); };
  expect_attention(in, even_keys, NoScore{}, even);
  expect_attention(in, &even_keys, NoScore{}, even);
  expect_attention(in, attn::Predicate{even_keys}, NoScore{}, even);
}

TEST(AttentionMask, PlainFunctionsAreJoined) {
  const Sizes n{.B = 1, .H = 2, .G = 2, .S = 30, .T = 30, .D = 7, .Dv = 4};
  const auto in = random_inputs<float>(n, 1300);
  const auto causal = [](Position at) { return only_if(at.key % 2 == 0 && at.key <= at.row); };
  expect_attention(in, even_keys & attn::Causal{}, NoScore{}, causal);
  expect_attention(in, attn::Causal{} & even_keys, NoScore{}, causal);
  expect_attention(in, attn::all_of(even_keys, not_seventh), NoScore{},
                   [](Position at) { return only_if(at.key % 2 == 0 && at.key % 7 != 0); });
}

TEST(AttentionMask, AModuleTakesAPlainFunction) {
  attn::LlamaAttention<float> module(12, 3);
  module.eval();
  const auto x = random_tensor<float, 3>({2, 9, 12}, 1400);
  const auto lambda = [](Position at) { return even_keys(at); };
  EXPECT_TRUE(same_bits(module.forward(x, even_keys), module.forward(x, lambda)));
}

TEST(AttentionMask, CoverMayDifferByHead) {
  unsigned seed = 1100;
  for (const Sizes& n : many_sizes())
    expect_attention(random_inputs<float>(n, ++seed), Stripes{}, NoScore{},
                     [](Position at) { return only_if((at.key / 90 + at.head) % 2 == 0); });
}

}  // namespace
