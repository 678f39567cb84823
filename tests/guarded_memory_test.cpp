// Nothing beside the caller's tensors is read or written, nor beside attn's own memory: every tensor fills its memory to a
// guarded page, with sizes that fill no vector, for every scalar type. A touch beside one ends the program.

#include "guarded_memory.hpp"

#ifdef ATTN_TEST_CAN_GUARD

// attn's own memory is all aligned by operator new, and here guarded too; not where a sanitizer replaces operator new.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ATTN_TEST_SANITIZED_NEW 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define ATTN_TEST_SANITIZED_NEW 1
#endif
#endif
#ifndef ATTN_TEST_SANITIZED_NEW
namespace {
attn_test::GuardAt own_memory = attn_test::GuardAt::end;
}
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return attn_test::guarded_allocate(bytes, static_cast<std::size_t>(alignment), own_memory);
}
void operator delete(void* memory, std::align_val_t) noexcept { attn_test::guarded_free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { attn_test::guarded_free(memory); }
#endif

namespace {

using attn::AttentionOptions;
using attn::AttentionOutputs;
using attn::Index;
using attn::Linear;
using attn::NoMask;
using attn::NoScore;
using attn::Tensor;
using attn::View;
using attn_test::at_both_ends;
using attn_test::difference;
using attn_test::GuardAt;
using attn_test::GuardedCopy;
using attn_test::GuardedTensor;
using attn_test::Inputs;
using attn_test::random_inputs;
using attn_test::random_tensor;
using attn_test::same_bits;
using attn_test::Sizes;
using attn_test::storage_error;
using attn_test::to;

/// Runs `call` on one thread, with scratch memory taken anew at a guarded page.
template <class Call>
void run_guarded([[maybe_unused]] GuardAt where, const Call& call) {
#ifndef ATTN_TEST_SANITIZED_NEW
  own_memory = where;
#endif
  attn::SerialExecutor serial;
  const attn::UseExecutor use(serial);
  attn::Workspace::current().release();
  call();
  attn::Workspace::current().release();
}

TEST(GuardedMemoryDeathTest, EndsTheProgramAtATouchBesideIt) {
  const auto x = random_tensor<float, 2>({3, 7}, 1);
  const GuardedTensor<float, 2> first(x, GuardAt::beginning), last(x, GuardAt::end);
  EXPECT_TRUE(same_bits(first.tensor(), x) && same_bits(last.tensor(), x));
  volatile float* const begin = first.view().data();
  volatile float* const end = last.view().data() + 21;
  EXPECT_DEATH(begin[-1] = 1.F, "");
  EXPECT_DEATH((void)end[0], "");
}

template <class T>
class GuardedMemory : public testing::Test {};
using Scalars = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
struct ScalarName {
  template <class T>
  static std::string GetName(int) {
    if (std::is_same_v<T, float>) return "Float";
    if (std::is_same_v<T, double>) return "Double";
    return std::is_same_v<T, Eigen::half> ? "Half" : "Bfloat16";
  }
};
TYPED_TEST_SUITE(GuardedMemory, Scalars, ScalarName);

// ---- Attention --------------------------------------------------------------------------------------------------

/// Decoding and blocks of queries, odd sizes, several tiles, few columns and many.
std::vector<Sizes> odd_sizes() {
  return {{.B = 1, .H = 1, .G = 1, .S = 1, .T = 1, .D = 1, .Dv = 1},
          {.B = 2, .H = 6, .G = 2, .S = 1, .T = 77, .D = 13, .Dv = 5},
          {.B = 1, .H = 2, .G = 1, .S = 3, .T = 331, .D = 33, .Dv = 17},
          {.B = 1, .H = 2, .G = 1, .S = 2, .T = 67, .D = 16, .Dv = 32},
          {.B = 2, .H = 2, .G = 1, .S = 5, .T = 9, .D = 3, .Dv = 1},
          {.B = 1, .H = 2, .G = 2, .S = 53, .T = 131, .D = 17, .Dv = 39},
          {.B = 1, .H = 1, .G = 1, .S = 48, .T = 64, .D = 16, .Dv = 48},
          {.B = 1, .H = 1, .G = 1, .S = 401, .T = 65, .D = 5, .Dv = 7}};
}

/// Attention of guarded tensors, into guarded tensors, is bit by bit that of ordinary ones.
template <class T, class M, class F>
void expect_guarded(const Inputs<T>& in, GuardAt where, const M& mask, const F& score, AttentionOptions options = {}) {
  const Sizes& n = in.n;
  SCOPED_TRACE(testing::Message() << n);
  options.log_sum_exp = true;
  const auto expected = attn::scaled_dot_product_attention(in.q, in.k, in.v, mask, score, options);
  const GuardedTensor<T, 4> q(in.q, where), k(in.k, where), v(in.v, where), y(Tensor<T, 4>(n.B, n.H, n.S, n.Dv), where);
  const GuardedTensor<attn::Accumulator<T>, 3> log_sum_exp(expected.log_sum_exp, where);
  const GuardedTensor<T, 4> weights(expected.weights, where);
  AttentionOutputs<T> out{y.view(), log_sum_exp.view(), {}};
  if (options.weights) out.weights = weights.view();
  run_guarded(
      where, [&] { attn::scaled_dot_product_attention_into(out, q.view(), k.view(), v.view(), mask, score, options); });
  EXPECT_TRUE(same_bits(y.tensor(), expected.output));
  EXPECT_TRUE(same_bits(log_sum_exp.tensor(), expected.log_sum_exp));
  if (options.weights) {
    EXPECT_TRUE(same_bits(weights.tensor(), expected.weights));
  }
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideTensorsOfAttention) {
  unsigned seed = 0;
  for (const Sizes& n : odd_sizes())
    at_both_ends([&](GuardAt where) {
      const auto in = random_inputs<TypeParam>(n, ++seed);
      for (const bool weights : {false, true}) {
        expect_guarded(in, where, NoMask{}, NoScore{}, {.weights = weights});
        expect_guarded(in, where, attn::Causal{} & attn::SlidingWindow(29), NoScore{},
                       {.dropout = 0.3, .weights = weights});
      }
    });
}

// The heads are views of [B,S,H*D] with a gap after each row.
TYPED_TEST(GuardedMemory, IsUntouchedBesideHeadsWithGaps) {
  for (const Sizes& n : odd_sizes())
    at_both_ends([&](GuardAt where) {
      const auto in = random_inputs<TypeParam>(n, 3);
      const auto expected = attn::scaled_dot_product_attention(in.q, in.k, in.v).output;
      const auto apart = [&](const Tensor<TypeParam, 4>& x) {
        const Index heads = x.dimension(1), rows = x.dimension(2), size = x.dimension(3), row = heads * size + 3;
        return GuardedTensor<TypeParam, 4>(x, where, {rows * row, size, row, 1});
      };
      const auto q = apart(in.q), k = apart(in.k), v = apart(in.v), y = apart(expected);
      run_guarded(where, [&] { attn::scaled_dot_product_attention_into(y.view(), q.view(), k.view(), v.view()); });
      EXPECT_TRUE(same_bits(y.tensor(), expected)) << n;
    });
}

/// A tensor over the last axes of [B,H,S,T].
template <class T, int Rank>
Tensor<T, Rank> last_axes(const Sizes& n, unsigned seed) {
  std::array<Index, std::size_t{Rank}> shape{};
  const auto scores = n.scores();
  std::copy_backward(scores.end() - Rank, scores.end(), shape.end());
  return random_tensor<T, Rank>(shape, seed);
}

template <class T, int Rank>
void expect_guarded_masks(const Sizes& n, GuardAt where) {
  const auto in = random_inputs<T>(n, 5);
  const auto bias = last_axes<T, Rank>(n, 6);
  Tensor<bool, Rank> keep(bias.dimensions());
  for (Index i = 0; i < bias.size(); ++i) keep.data()[i] = to<float>(bias.data()[i]) > -0.5F;
  const GuardedTensor<T, Rank> guarded_bias(bias, where);
  const GuardedTensor<bool, Rank> guarded_keep(keep, where);
  expect_guarded(in, where, attn::AdditiveMask(guarded_bias.view()), NoScore{});
  expect_guarded(in, where, attn::KeepMask(guarded_keep.view()), NoScore{});
  expect_guarded(in, where, NoMask{}, attn::ScoreBias(guarded_bias.view()));
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideMasksAndBiasesOfEveryRank) {
  for (const Sizes& n : odd_sizes())
    at_both_ends([&](GuardAt where) {
      expect_guarded_masks<TypeParam, 1>(n, where);
      expect_guarded_masks<TypeParam, 2>(n, where);
      expect_guarded_masks<TypeParam, 3>(n, where);
      expect_guarded_masks<TypeParam, 4>(n, where);
    });
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideLengthsAndStarts) {
  for (Sizes n : odd_sizes())
    at_both_ends([&](GuardAt where) {
      n.B = 3;
      const std::vector<Index> lengths{n.T, n.T / 2, 0}, starts{n.T - n.S, 0, 4};
      const GuardedCopy<Index> guarded_lengths(lengths.data(), 3, where), guarded_starts(starts.data(), 3, where);
      AttentionOptions options;
      options.query_start = guarded_starts.span();
      expect_guarded(random_inputs<TypeParam>(n, 7), where, attn::Causal{} & attn::Padding(guarded_lengths.span()),
                     NoScore{}, options);
    });
}

// Not a single load may touch memory past the length.
TYPED_TEST(GuardedMemory, IsUntouchedPastTheEndOfAPaddedSequence) {
  for (const Sizes& n : odd_sizes()) {
    if (n.B * n.G != 1) continue;  // only the last sequence can end at a page
    const auto in = random_inputs<TypeParam>(n, 9);
    const auto expected = attn::scaled_dot_product_attention(in.q, in.k, in.v).output;
    const GuardedTensor<TypeParam, 4> k(in.k, GuardAt::end), v(in.v, GuardAt::end);
    const std::vector<Index> lengths{n.T};
    const View<TypeParam, 4> longer_k(k.view().data(), {1, 1, n.T + 90, n.D}),
        longer_v(v.view().data(), {1, 1, n.T + 90, n.Dv});
    Tensor<TypeParam, 4> y(n.B, n.H, n.S, n.Dv);
    run_guarded(GuardAt::end,
                [&] { attn::scaled_dot_product_attention_into(y, in.q, longer_k, longer_v, attn::Padding(lengths)); });
    EXPECT_LE(difference(y, expected).largest, 1e-5 + 2 * storage_error<TypeParam>) << n;
  }
}

// ---- Linear -----------------------------------------------------------------------------------------------------

/// in, out and rows: outputs that end in any part of a panel of 48 or 24, one row and several blocks of them.
constexpr std::array<std::array<Index, 3>, 9> linear_sizes{{{1, 1, 1},
                                                            {7, 5, 3},
                                                            {13, 49, 2},
                                                            {33, 47, 9},
                                                            {17, 97, 1},
                                                            {530, 67, 5},
                                                            {1037, 151, 1},
                                                            {600, 150, 11},
                                                            {21, 25, 403}}};

TYPED_TEST(GuardedMemory, IsUntouchedBesideInputAndOutputOfLinear) {
  for (const auto& [in, out, rows] : linear_sizes)
    for (const bool bias : {false, true})
      at_both_ends([&, in = in, out = out, rows = rows](GuardAt where) {
        const auto x = random_tensor<TypeParam, 2>({rows, in}, 1);
        std::optional<Linear<TypeParam>> layer;
        run_guarded(where, [&] { layer.emplace(in, out, bias, 1); });  // its parameters are guarded, too
        const auto expected = layer->forward(x);
        const GuardedTensor<TypeParam, 2> guarded_x(x, where), y(Tensor<TypeParam, 2>(rows, out), where);
        run_guarded(where, [&] { layer->forward_into(y.view(), guarded_x.view()); });
        EXPECT_TRUE(same_bits(y.tensor(), expected)) << in << " to " << out << ", " << rows << " rows";

        const GuardedTensor<TypeParam, 2> apart_x(x, where, {in + 3, 1}), apart_y(expected, where, {out + 5, 1});
        run_guarded(where, [&] { layer->forward_into(apart_y.view(), apart_x.view()); });
        EXPECT_TRUE(same_bits(apart_y.tensor(), expected)) << "rows apart";
      });
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideGradientsOfLinear) {
  for (const auto& [in, out, rows] : linear_sizes)
    at_both_ends([&, in = in, out = out, rows = rows](GuardAt where) {
      const auto x = random_tensor<TypeParam, 2>({rows, in}, 1), grad_y = random_tensor<TypeParam, 2>({rows, out}, 2);
      Linear<TypeParam> plain(in, out, true, 1);
      std::optional<Linear<TypeParam>> layer;
      run_guarded(where, [&] { layer.emplace(in, out, true, 1); });
      const Tensor<TypeParam, 2> expected = plain.backward(grad_y, x);
      const GuardedTensor<TypeParam, 2> guarded_x(x, where), guarded_y(grad_y, where), grad_x(x, where);
      run_guarded(where, [&] { layer->backward_into(grad_x.view(), guarded_y.view(), guarded_x.view()); });
      EXPECT_TRUE(same_bits(grad_x.tensor(), expected)) << in << " to " << out << ", " << rows << " rows";

      const GuardedTensor<TypeParam, 2> apart_x(x, where, {in + 3, 1}), apart_y(grad_y, where, {out + 5, 1}),
          apart_grad(x, where, {in + 7, 1});
      run_guarded(where, [&] { layer->backward_into(apart_grad.view(), apart_y.view(), apart_x.view()); });
      EXPECT_TRUE(same_bits(apart_grad.tensor(), expected)) << "rows apart";
      plain.add_gradients(grad_y, x);
      EXPECT_TRUE(same_bits(layer->weight_gradient(), plain.weight_gradient()));
      EXPECT_TRUE(same_bits(layer->bias_gradient(), plain.bias_gradient()));
    });
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideWeightAndBiasOfLinear) {
  for (const auto& [in, out, rows] : linear_sizes)
    at_both_ends([&, in = in, out = out, rows = rows](GuardAt where) {
      const auto weight = random_tensor<TypeParam, 2>({out, in}, 1);
      const auto bias = random_tensor<TypeParam, 1>({out}, 2);
      const auto x = random_tensor<TypeParam, 2>({rows, in}, 3);
      const GuardedTensor<TypeParam, 2> guarded_weight(weight, where);
      const GuardedTensor<TypeParam, 1> guarded_bias(bias, where), row(Tensor<TypeParam, 1>(in), where);
      run_guarded(where, [&] {
        const Linear<TypeParam> made(guarded_weight.view(), guarded_bias.view());
        Linear<TypeParam> set(in, out);
        set.set_weight(guarded_weight.view());
        set.set_bias(guarded_bias.view());
        EXPECT_TRUE(same_bits(made.forward(x), set.forward(x)));
        EXPECT_TRUE(same_bits(made.weight(), weight) && same_bits(made.bias(), bias));
        made.weight_row(out - 1, row.view());
        for (Index i = 0; i < in; ++i) ASSERT_EQ(row.view()(i), weight(out - 1, i));
      });
    });
}

// ---- The parts of a module --------------------------------------------------------------------------------------

TYPED_TEST(GuardedMemory, IsUntouchedBesideRowsOfSoftmax) {
  for (const Index rows : {1, 3, 70})
    for (const Index columns : {1, 2, 7, 15, 16, 17, 63, 65, 131})
      at_both_ends([&](GuardAt where) {
        const auto x = random_tensor<TypeParam, 2>({rows, columns}, 1);
        const attn::Softmax<TypeParam> softmax;
        const auto expected = softmax(x);
        const GuardedTensor<TypeParam, 2> guarded_x(x, where), y(expected, where);
        run_guarded(where, [&] {
          softmax.forward_into(y.view(), guarded_x.view());
          softmax.forward_into(guarded_x.view(), guarded_x.view());
        });
        EXPECT_TRUE(same_bits(y.tensor(), expected) && same_bits(guarded_x.tensor(), expected))
            << rows << " x " << columns;
      });
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideElementsOfDropout) {
  for (const Index size : {1, 3, 4, 63, 64, 65, 1001, 16387})
    at_both_ends([&](GuardAt where) {
      const auto x = random_tensor<TypeParam, 1>({size}, 1);
      attn::Dropout<TypeParam> dropout(0.4, 1);
      const auto expected = dropout(x);
      dropout.reseed(1);
      const GuardedTensor<TypeParam, 1> guarded_x(x, where), y(x, where);
      run_guarded(where, [&] {
        dropout.forward_into(y.view(), guarded_x.view());
        EXPECT_TRUE(same_bits(y.tensor(), expected)) << size;
        dropout.eval();
        dropout.forward_into(y.view(), guarded_x.view());
        EXPECT_TRUE(same_bits(y.tensor(), x)) << size;
      });
    });
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideHeadsOfRotary) {
  const std::vector<Index> starts{3, 0};
  for (const auto layout : {attn::RotaryLayout::half_split, attn::RotaryLayout::interleaved})
    for (const auto& [heads, rows, size, turned] :
         {std::array<Index, 4>{1, 1, 2, 2}, {3, 5, 10, 10}, {2, 7, 34, 18}, {1, 3, 66, 66}})
      at_both_ends([&, heads = heads, rows = rows, size = size, turned = turned](GuardAt where) {
        auto x = random_tensor<TypeParam, 4>({2, heads, rows, size}, 1);
        const Index row = heads * size;
        const GuardedTensor<TypeParam, 4> packed(x, where), apart(x, where, {rows * row, size, row, 1});
        const GuardedCopy<Index> start(starts.data(), 2, where);
        const attn::Rotary rotary(size, {.layout = layout, .dimensions = turned});
        rotary.apply(x, starts);
        run_guarded(where, [&] {
          rotary.apply(packed.view(), start.span());
          rotary.apply(apart.view(), start.span());
        });
        EXPECT_TRUE(same_bits(packed.tensor(), x) && same_bits(apart.tensor(), x));
      });
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideKeysAndValuesOfACache) {
  for (const auto& [heads, rows, size, value_size] : {std::array<Index, 4>{1, 1, 1, 3}, {2, 3, 7, 5}, {3, 5, 33, 65}})
    at_both_ends([&, heads = heads, rows = rows, size = size, value_size = value_size](GuardAt where) {
      const auto keys = random_tensor<TypeParam, 4>({2, heads, rows, size}, 1);
      const auto values = random_tensor<TypeParam, 4>({2, heads, rows, value_size}, 2);
      const GuardedTensor<TypeParam, 4> packed_keys(keys, where),
          apart_keys(keys, where, {rows * heads * size, size, heads * size, 1});
      const GuardedTensor<TypeParam, 4> guarded_values(values, where);
      run_guarded(where, [&] {
        attn::KvCache<TypeParam> cache(2, heads, 2 * rows, size, value_size);  // which its tokens fill
        cache.append(packed_keys.view(), guarded_values.view());
        cache.append(apart_keys.view(), guarded_values.view());
        for (Index b = 0; b < 2; ++b)
          for (Index h = 0; h < heads; ++h)
            for (Index s = 0; s < 2 * rows; ++s) {
              for (Index d = 0; d < size; ++d) ASSERT_EQ(cache.keys()(b, h, s, d), keys(b, h, s % rows, d));
              for (Index d = 0; d < value_size; ++d) ASSERT_EQ(cache.values()(b, h, s, d), values(b, h, s % rows, d));
            }
      });
    });
}

TYPED_TEST(GuardedMemory, IsUntouchedBesideInputOutputAndCacheOfAModule) {
  const attn::LlamaAttentionConfig config{.hidden_size = 54,
                                          .num_attention_heads = 6,
                                          .num_key_value_heads = 2,
                                          .head_dim = 10,
                                          .rotary = attn::RotaryConfig{},
                                          .seed = 1};
  const auto x = random_tensor<TypeParam, 3>({2, 5, 54}, 1), token = random_tensor<TypeParam, 3>({2, 1, 54}, 2);
  at_both_ends([&](GuardAt where) {
    const attn::LlamaAttention<TypeParam> ordinary(config);
    auto cache = ordinary.make_cache(2, 6);
    const auto y = ordinary.forward(x, attn::Causal{}, cache), next = ordinary.forward(token, attn::Causal{}, cache);
    const GuardedTensor<TypeParam, 3> guarded_x(x, where), guarded_token(token, where), guarded_y(y, where),
        guarded_next(next, where);
    run_guarded(where, [&] {
      const attn::LlamaAttention<TypeParam> module(config);
      auto own_cache = module.make_cache(2, 6);  // full after both calls
      module.forward_into(guarded_y.view(), guarded_x.view(), attn::Causal{}, own_cache);
      module.forward_into(guarded_next.view(), guarded_token.view(), attn::Causal{}, own_cache);
    });
    EXPECT_TRUE(same_bits(guarded_y.tensor(), y) && same_bits(guarded_next.tensor(), next));
  });
}

}  // namespace
#endif
