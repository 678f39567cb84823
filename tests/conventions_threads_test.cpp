// Convention: the thread count does not change a bit of the result.

#include <thread>

#if __has_include(<Eigen/ThreadPool>)  // Eigen 5
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

#include "support.hpp"

namespace {

using attn::Index;
using attn::NoScore;
using attn::Position;
using attn::Tensor;
using attn_test::Inputs;
using attn_test::random_inputs;
using attn_test::same_bits;
using attn_test::Sizes;

/// An executor of the user's own: its lanes run one after the other, the last one first.
class Backwards final : public attn::Executor {
 public:
  Backwards() : Executor(5) {}
  void parallel_for(int count, attn::LaneFunction lane) override {
    for (int i = count; i-- > 0;) lane(i);
  }
};

/// Calls f(executor, name) for executors of every kind.
template <class F>
void for_each_executor(const F& f) {
  for (const int threads : {1, 2, 3, 7}) {
    attn::ThreadPool pool(threads);
    f(pool, "ThreadPool of " + std::to_string(threads));
  }
  Eigen::ThreadPool eigen_pool(3);
  attn::EigenExecutor eigen(eigen_pool);
  f(eigen, "EigenExecutor");
  Backwards backwards;
  f(backwards, "an executor of one's own");
  f(attn::default_executor(), "the default executor");
}

template <class T, class M, class F>
void expect_same_bits_on_every_executor(const Inputs<T>& in, const M& mask, const F& score,
                                        const attn::AttentionOptions& options) {
  SCOPED_TRACE(testing::Message() << in.n);
  const auto result = [&] { return attn::scaled_dot_product_attention(in.q, in.k, in.v, mask, score, options); };
  attn::SerialExecutor serial;
  const auto expected = [&] {
    const attn::UseExecutor use(serial);
    return result();
  }();
  for_each_executor([&](attn::Executor& executor, const std::string& name) {
    const attn::UseExecutor use(executor);
    for (int repeat = 0; repeat < 3; ++repeat) {
      const auto got = result();
      EXPECT_TRUE(same_bits(got.output, expected.output)) << name;
      EXPECT_TRUE(same_bits(got.log_sum_exp, expected.log_sum_exp)) << name;
      EXPECT_TRUE(same_bits(got.weights, expected.weights)) << name;
    }
  });
}

const std::array<Sizes, 6> sizes{
    {{.B = 1, .H = 1, .G = 1, .S = 1, .T = 2500, .D = 16, .Dv = 16},  // fewer heads than threads
     {.B = 1, .H = 2, .G = 1, .S = 3, .T = 1300, .D = 16, .Dv = 7},
     {.B = 2, .H = 6, .G = 2, .S = 1, .T = 90, .D = 33, .Dv = 16},
     {.B = 1, .H = 1, .G = 1, .S = 450, .T = 450, .D = 8, .Dv = 8},
     {.B = 3, .H = 4, .G = 2, .S = 37, .T = 70, .D = 9, .Dv = 5},
     {.B = 1, .H = 1, .G = 1, .S = 1, .T = 1, .D = 1, .Dv = 1}}};

TEST(Conventions, ThreadCountDoesNotChangeABit) {
  for (const Sizes& n : sizes)
    expect_same_bits_on_every_executor(random_inputs<float>(n, 1), attn::NoMask{}, NoScore{}, {.log_sum_exp = true});
}

TEST(Conventions, ThreadCountDoesNotChangeABitOfWeights) {
  for (const Sizes& n : sizes)
    expect_same_bits_on_every_executor(random_inputs<float>(n, 2), attn::NoMask{}, NoScore{},
                                       {.log_sum_exp = true, .weights = true});
}

TEST(Conventions, ThreadCountDoesNotChangeABitUnderMasksAndScores) {
  for (const Sizes& n : sizes) {
    const std::vector<Index> lengths(static_cast<std::size_t>(n.B), n.T - n.T / 5);
    expect_same_bits_on_every_executor(random_inputs<float>(n, 3), attn::Causal{} & attn::Padding(lengths),
                                       attn::SoftCap(3.F), {.log_sum_exp = true});
  }
}

TEST(Conventions, ThreadCountDoesNotChangeWhatDropoutDrops) {
  attn::AttentionOptions options;
  options.dropout = 0.5;
  options.seed = 9;
  for (const Sizes& n : sizes)
    expect_same_bits_on_every_executor(random_inputs<float>(n, 4), attn::NoMask{}, NoScore{}, options);
}

TEST(Conventions, ThreadCountDoesNotChangeABitOfHalf) {
  for (const Sizes& n : sizes)
    expect_same_bits_on_every_executor(random_inputs<Eigen::half>(n, 5), attn::NoMask{}, NoScore{}, {});
}

TEST(Conventions, ThreadCountDoesNotChangeAnError) {
  const Tensor<float, 4> q(1, 1, 3, 8), k(1, 1, 5, 8), v(1, 1, 4, 8);
  for_each_executor([&](attn::Executor& executor, const std::string& name) {
    const attn::UseExecutor use(executor);
    EXPECT_THROW(static_cast<void>(attn::scaled_dot_product_attention(q, k, v)), attn::Error) << name;
  });
}

TEST(Conventions, SeveralThreadsMayCallAtOnce) {
  const auto in = random_inputs<float>(sizes[4], 6);
  const auto expected = attn::scaled_dot_product_attention(in.q, in.k, in.v).output;
  std::array<int, 4> wrong{};
  std::vector<std::thread> callers;
  for (int& count : wrong)
    callers.emplace_back([&] {
      for (int i = 0; i < 20; ++i)
        count += same_bits(attn::scaled_dot_product_attention(in.q, in.k, in.v).output, expected) ? 0 : 1;
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, (std::array<int, 4>{}));
}

TEST(Conventions, AnExceptionOfAScoreFunctionReachesTheCaller) {
  const auto in = random_inputs<float>(sizes[4], 7);
  const auto score = [](float x, Position at) {
    if (at.row == 20 && at.key == 60) throw std::runtime_error("mine");
    return x;
  };
  for_each_executor([&](attn::Executor& executor, const std::string& name) {
    const attn::UseExecutor use(executor);
    EXPECT_THROW(static_cast<void>(attn::scaled_dot_product_attention(in.q, in.k, in.v, attn::NoMask{}, score)),
                 std::runtime_error)
        << name;
  });
  EXPECT_TRUE(std::isfinite(attn::scaled_dot_product_attention(in.q, in.k, in.v).output(0, 0, 0, 0)));
}

}  // namespace
