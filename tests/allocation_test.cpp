// Steady state allocates nothing, on one thread and on two: counted in operator new, all threads, and in Eigen's own
// allocator. memory_test.cpp does the same for single calls of small shapes; these are large enough for both threads.
#include "counted_allocation.hpp"

#include <thread>

namespace {

using attn::Executor;
using attn::Index;
using attn::Tensor;
using attn_test::random_tensor;

/// Allocations, in any thread, of 5 calls after 3 others; Eigen's throw.
template <class Call>
int allocations_of(const Call& call) {
  for (int i = 0; i < 3; ++i) call();
  allocations = 0;
  counting = true;
  Eigen::internal::set_is_malloc_allowed(false);
  try {
    for (int i = 0; i < 5; ++i) call();
  } catch (const std::logic_error& error) {
    ADD_FAILURE() << error.what();
  }
  Eigen::internal::set_is_malloc_allowed(true);
  counting = false;
  return allocations;
}

TEST(Counting, SeesOtherThreadsAndEveryForm) {
  attn::ThreadPool pool(2);
  const auto lane = [](int) {
    ::operator delete(::operator new(8));
    ::operator delete[](::operator new[](8));
    ::operator delete (::operator new (64, std::align_val_t{64}), std::align_val_t{64});
    ::operator delete[](::operator new[](64, std::align_val_t{64}), std::align_val_t{64});
    ::operator delete(::operator new(8, std::nothrow));
    (void)attn::AlignedVector<float>(3);
  };
  EXPECT_EQ(allocations_of([&] { pool.parallel_for(2, lane); }), 5 * 2 * 6);
}

/// The serial executor and a pool of two; tells whether a call was given to both threads.
class SteadyState : public testing::TestWithParam<int> {
 protected:
  struct Watched final : Executor {
    explicit Watched(int threads) : Executor(threads), pool(threads) {}
    void parallel_for(int count, attn::LaneFunction lane) override {
      lanes = std::max(lanes, count);
      pool.parallel_for(count, lane);
    }
    attn::ThreadPool pool;
    int lanes = 1;
  };
  /// None in `call`, which is worth all threads.
  template <class Call>
  void expect_none(const char* what, const Call& call) {
    executor_.lanes = 1;
    EXPECT_EQ(allocations_of(call), 0) << what;
    EXPECT_EQ(executor_.lanes, GetParam()) << what << " should have been large enough for all threads";
  }

 private:
  Watched executor_{GetParam()};
  attn::UseExecutor use_{executor_};
};
INSTANTIATE_TEST_SUITE_P(Threads, SteadyState, testing::Values(1, 2));

template <class T>
void linear_and_softmax(const auto& expect_none) {
  const attn::Linear<T> layer(256, 200);
  const attn::Softmax<T> softmax;
  const attn::Dropout<T> dropout(0.5);
  const auto x = random_tensor<T, 3>({2, 50, 256}, 1);
  const auto row = random_tensor<T, 1>({1024}, 1);
  const attn::Linear<T> wide(1024, 512);
  Tensor<T, 3> y(2, 50, 200), z(2, 50, 256);
  Tensor<T, 1> one(512);
  expect_none("Linear", [&] { layer.forward_into(y, x); });
  expect_none("Linear, one row", [&] { wide.forward_into(one, row); });
  expect_none("Softmax", [&] { softmax.forward_into(z, x); });
  expect_none("Softmax in place", [&] { softmax.forward_into(z, z); });
  expect_none("Dropout", [&] { dropout.forward_into(z, x); });
}
TEST_P(SteadyState, LinearSoftmaxAndDropoutAllocateNothing) {
  const auto expect = [&](const char* what, const auto& call) { expect_none(what, call); };
  linear_and_softmax<float>(expect);
  linear_and_softmax<Eigen::half>(expect);
}

template <class T>
void backward_passes(const auto& expect_none) {
  attn::Linear<T> layer(256, 200);
  attn::RmsNorm<T> norm(256);
  const attn::Softmax<T> softmax;
  const attn::Dropout<T> dropout(0.5);
  const auto x = random_tensor<T, 3>({2, 100, 256}, 1);
  const auto grad_y = random_tensor<T, 3>({2, 100, 200}, 2);
  Tensor<T, 3> grad_x(2, 100, 256), y(2, 100, 256);
  attn::DropoutRule saved;
  expect_none("Linear", [&] { layer.backward_into(grad_x, grad_y, x); });
  expect_none("Linear's parameters", [&] { layer.add_gradients(grad_y, x); });
  expect_none("RmsNorm", [&] { norm.backward_into(grad_x, x, x); });
  expect_none("Softmax", [&] { softmax.backward_into(grad_x, x, x); });
  expect_none("Dropout", [&] {
    dropout.forward_into(y, x, saved);
    dropout.backward_into(grad_x, x, saved);
  });
}
TEST_P(SteadyState, BackwardPassesAllocateNothing) {
  const auto expect = [&](const char* what, const auto& call) { expect_none(what, call); };
  backward_passes<float>(expect);
  backward_passes<Eigen::half>(expect);
}

TEST_P(SteadyState, AttentionAllocatesNothing) {
  const auto q = random_tensor<float, 4>({2, 4, 200, 32}, 1), k = random_tensor<float, 4>({2, 2, 200, 32}, 2);
  const auto v = random_tensor<float, 4>({2, 2, 200, 24}, 3);
  const auto bias = random_tensor<float, 2>({200, 200}, 4);
  Tensor<float, 4> y(2, 4, 200, 24), weights(2, 4, 200, 200);
  Tensor<float, 3> lse(2, 4, 200);
  const std::array<Index, 2> lengths{150, 200};
  const auto score = [](float s, attn::Position at) { return s - 0.5F * at.distance(); };
  expect_none("plain", [&] { attn::scaled_dot_product_attention_into(y, q, k, v); });
  expect_none("masks, a lambda, dropout", [&] {
    attn::scaled_dot_product_attention_into(y, q, k, v, attn::Causal{} & attn::Padding(lengths), score,
                                            {.dropout = 0.1});
  });
  expect_none("additive mask", [&] { attn::scaled_dot_product_attention_into(y, q, k, v, bias); });
  expect_none("all outputs", [&] {
    const attn::AttentionOutputs<float> out{attn::View<float, 4>(y), attn::View<float, 3>(lse),
                                            attn::View<float, 4>(weights)};
    attn::scaled_dot_product_attention_into(out, q, k, v, attn::Causal{});
  });
}

TEST_P(SteadyState, AttentionOfFewQueriesAllocatesNothing) {
  const auto q = random_tensor<float, 4>({1, 8, 1, 64}, 1), k = random_tensor<float, 4>({1, 2, 2000, 64}, 2);
  Tensor<float, 4> y(1, 8, 1, 64);
  expect_none("one query", [&] { attn::scaled_dot_product_attention_into(y, q, k, k, attn::Causal{}); });
}

attn::LlamaAttention<float> module() {
  return attn::LlamaAttention<float>(attn::LlamaAttentionConfig{.hidden_size = 256,
                                                                .num_attention_heads = 8,
                                                                .num_key_value_heads = 2,
                                                                .rotary = attn::RotaryConfig{},
                                                                .window = 600});
}

TEST_P(SteadyState, AModuleAllocatesNothing) {
  auto attention = module();
  const auto x = random_tensor<float, 3>({2, 60, 256}, 1);
  const auto bias = random_tensor<float, 4>({2, 1, 1, 60}, 4);
  Tensor<float, 3> y(2, 60, 256);
  expect_none("training", [&] { attention.forward_into(y, x, attn::Causal{}); });
  attention.eval();
  expect_none("evaluation", [&] { attention.forward_into(y, x); });
  expect_none("additive mask", [&] { attention.forward_into(y, x, bias); });
  attention.value().share(attention.key());
  expect_none("tied", [&] { attention.forward_into(y, x, attn::Causal{}); });
}

TEST_P(SteadyState, TrainingAllocatesNothing) {
  auto attention = module();
  const auto x = random_tensor<float, 3>({2, 60, 256}, 1), grad_y = random_tensor<float, 3>({2, 60, 256}, 2);
  const auto bias = random_tensor<float, 4>({2, 1, 1, 60}, 4);
  Tensor<float, 3> y(2, 60, 256), grad_x(2, 60, 256);
  Tensor<float, 4> grad_bias(2, 1, 1, 60);
  attn::LlamaAttention<float>::Activations saved;
  expect_none("a step", [&] {
    attention.zero_gradients();
    attention.forward_into(y, x, attn::Causal{}, saved);
    attention.backward_into(grad_x, grad_y, saved);
  });
  expect_none("a step with the gradient of a mask", [&] {
    attention.forward_into(y, x, bias, saved);
    attention.backward_into(grad_x, grad_y, saved, grad_bias);
  });
}

TEST_P(SteadyState, AttentionsGradientsAllocateNothing) {
  const auto q = random_tensor<float, 4>({1, 2, 100, 32}, 1), k = random_tensor<float, 4>({1, 2, 1200, 32}, 2);
  Tensor<float, 4> y(1, 2, 100, 32), grad_q(1, 2, 100, 32), grad_k(1, 2, 1200, 32), grad_v(1, 2, 1200, 32);
  Tensor<float, 3> lse(1, 2, 100);
  const attn::AttentionOutputs<float> out{attn::View<float, 4>(y), attn::View<float, 3>(lse), {}};
  const attn::AttentionGradientOutputs<float> gradients{grad_q, grad_k, grad_v, {}, {}};
  expect_none("several slabs", [&] {
    attn::scaled_dot_product_attention_into(out, q, k, k, attn::Causal{});
    attn::scaled_dot_product_attention_backward_into(gradients, q, q, k, k, y, lse, attn::Causal{});
  });
}

TEST_P(SteadyState, DecodingAllocatesNothing) {
  auto attention = module();
  attention.eval();
  auto cache = attention.make_cache(2, 1200);
  (void)attention.forward(random_tensor<float, 3>({2, 1100, 256}, 1), attn::Causal{}, cache);
  cache.roll_back(1, 37);  // sequences of unlike length
  const auto token = random_tensor<float, 3>({2, 1, 256}, 2);
  Tensor<float, 3> y(2, 1, 256);
  expect_none("tokens that follow each other", [&] { attention.forward_into(y, token, attn::Causal{}, cache); });
  EXPECT_EQ(cache.length(0), 1108);
  expect_none("several tokens at once", [&] {
    attention.forward_into(y, token, attn::Causal{}, cache);
    cache.roll_back(1);
  });
}

TEST_P(SteadyState, CallsOfDifferentSizesAllocateNothing) {
  auto attention = module();
  attention.eval();
  std::vector<Tensor<float, 3>> x, y;
  for (const Index rows : {200, 7, 64, 1, 130}) {
    x.push_back(random_tensor<float, 3>({1, rows, 256}, 1));
    y.emplace_back(1, rows, 256);
  }
  expect_none("a round of sizes", [&] {
    for (std::size_t i = 0; i < x.size(); ++i) attention.forward_into(y[i], x[i], attn::Causal{});
  });
}

}  // namespace
