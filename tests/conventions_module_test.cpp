// Conventions as the module keeps them: layout outside, dropout off in evaluation, errors.

#include "support.hpp"

#include <utility>

namespace {

using attn::Index;
using attn::Tensor;
using attn_test::error_of;
using attn_test::filled;
using attn_test::random_tensor;
using attn_test::reads;
using attn_test::same_bits;

TEST(Conventions, DropoutIsOffInEvaluation) {
  const auto x = random_tensor<float, 3>({2, 7, 24}, 1);
  attn::LlamaAttention<float> with(24, 3, 0.5), without(24, 3, 0.0);
  without.share(with);
  const auto expected = without.forward(x);
  with.eval();
  EXPECT_TRUE(same_bits(with.forward(x), expected));
  EXPECT_TRUE(same_bits(with.forward(x), expected));
  with.train();
  EXPECT_FALSE(same_bits(with.forward(x), expected));
  EXPECT_FALSE(same_bits(with.forward(x), with.forward(x))) << "each call drops others";
}

TEST(Conventions, DropoutActsInANewModule) {
  EXPECT_TRUE(attn::LlamaAttention<float>(24, 3).is_training());
  EXPECT_TRUE(attn::Dropout<float>(0.5).is_training());
}

TEST(Conventions, DropoutLeavesARowWithoutKeysZero) {
  attn::LlamaAttention<float> module(
      attn::LlamaAttentionConfig{.hidden_size = 8, .num_attention_heads = 2, .bias = false});
  Tensor<float, 2> mask(3, 3);
  mask.setConstant(-std::numeric_limits<float>::infinity());
  const auto y = module.forward(random_tensor<float, 3>({1, 3, 8}, 2), mask);
  EXPECT_TRUE(same_bits(y, filled<float, 3>({1, 3, 8}, 0.F)));
}

TEST(Conventions, LayoutIsBatchSequenceHiddenOutside) {
  const attn::LlamaAttention<float> module(24, 3, 0.0);
  const auto y = module.forward(random_tensor<float, 3>({2, 7, 24}, 3));
  EXPECT_EQ(attn::detail::shape_of(y), (std::array<Index, 3>{2, 7, 24}));
}

TEST(Conventions, ErrorsNameTheFunctionAndBothShapes) {
  const attn::LlamaAttention<float> module(24, 3);
  const Tensor<float, 3> x(2, 7, 48);
  EXPECT_TRUE(reads(error_of([&] { static_cast<void>(module.forward(x)); }),
                    {"[attn::LlamaAttention::forward] ", ", expected ", "24", ", got [2,7,48]"}));
}

/// Counts how often it is asked for threads.
struct CountingExecutor final : attn::Executor {
  CountingExecutor() : Executor(2) {}
  void parallel_for(int count, attn::LaneFunction lane) override {
    ++calls;
    for (int i = 0; i < count; ++i) lane(i);
  }
  int calls = 0;
};

TEST(ModuleConventions, FullCacheIsRefusedBeforeAnyWork) {
  attn::LlamaAttention<float> module(256, 4);
  module.eval();
  auto cache = module.make_cache(1, 100);
  const auto x = random_tensor<float, 3>({1, 60, 256}, 1);
  CountingExecutor executor;
  const attn::UseExecutor use(executor);
  (void)module.forward(x, attn::Causal{}, cache);
  const int calls = std::exchange(executor.calls, 0);
  EXPECT_GT(calls, 0);
  EXPECT_THROW((void)module.forward(x, attn::Causal{}, cache), attn::Error);
  EXPECT_EQ(executor.calls, 0);
  EXPECT_EQ(cache.length(0), 60);
}

}  // namespace
