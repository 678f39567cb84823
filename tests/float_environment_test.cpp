// Rounding and subnormal numbers: every lane of a call computes as the calling thread does.
#include "module_support.hpp"

#include <cfenv>
#include <thread>

#if __has_include(<Eigen/ThreadPool>)  // Eigen 5
#include <Eigen/ThreadPool>
#else
#include <unsupported/Eigen/CXX11/ThreadPool>
#endif

namespace {

using attn::FlushSubnormals;
using attn::Index;
using attn::Tensor;
using attn::UseExecutor;
using attn::detail::FloatEnvironment;
using attn::detail::UseFloatEnvironment;

/// Rounds in a given direction while it lives.
class Rounding {
 public:
  explicit Rounding(int direction) : before_(std::fegetround()) { std::fesetround(direction); }
  Rounding(const Rounding&) = delete;
  Rounding& operator=(const Rounding&) = delete;
  ~Rounding() { std::fesetround(before_); }

 private:
  int before_;
};

/// 1 / 3 as this thread rounds it, not as the compiler does.
float third() {
  volatile float one = 1.F;
  return one / 3.F;
}
/// Whether this thread takes subnormal inputs as zero, and makes zero of subnormal results.
bool flushes_inputs() {
  volatile float subnormal = 1e-39F;
  return subnormal * 0x1p60F == 0.F;
}
bool flushes_results() {
  volatile float normal = 2e-38F;
  volatile float result = normal * 0.125F;
  return attn::detail::bits_of(static_cast<float>(result)) == 0;
}
bool flushes() { return flushes_inputs() && flushes_results(); }

/// An executor that runs each lane on a thread that was set up as threads are by default: none has the caller's state.
class DefaultThreads final : public attn::Executor {
 public:
  DefaultThreads() : Executor(4) {}
  void parallel_for(int count, attn::LaneFunction lane) override {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i)
      threads.emplace_back([=] {
        std::fesetenv(FE_DFL_ENV);
        lane(i);
      });
    for (std::thread& thread : threads) thread.join();
  }
};

template <class Task>
void for_each_task(Index tasks, const Task& task) {
  attn::detail::for_each_task(tasks, attn::detail::worth_workers(tasks, 1e12), task);
}

// ---- The control word ----

TEST(FloatEnvironment, IsEqualUnlessTheControlWordChanges) {
  const FloatEnvironment environment = FloatEnvironment::current();
  (void)third();  // raises the flag "inexact"
  EXPECT_EQ(FloatEnvironment::current(), environment);
  environment.set();
  EXPECT_EQ(FloatEnvironment::current(), environment);
}

TEST(FloatEnvironment, HoldsForItsScopeAndNests) {
  if (!FlushSubnormals::available) GTEST_SKIP() << "no control word here";
  const float nearest = third();
  const FloatEnvironment down = [] {
    const Rounding downward(FE_DOWNWARD);
    return FloatEnvironment::current();
  }();
  EXPECT_EQ(third(), nearest);
  {
    const UseFloatEnvironment use(down);
    EXPECT_LT(third(), nearest);
    {
      const UseFloatEnvironment inner(down.flushing());
      EXPECT_LT(third(), nearest);
      EXPECT_TRUE(flushes());
    }
    EXPECT_LT(third(), nearest);
    EXPECT_FALSE(flushes_inputs() || flushes_results());
  }
  EXPECT_EQ(third(), nearest);
}

TEST(FloatEnvironment, LeavesRaisedExceptionFlagsAlone) {
  const FloatEnvironment environment = FloatEnvironment::current();
  std::feclearexcept(FE_ALL_EXCEPT);
  {
    const UseFloatEnvironment use(environment.flushing());
    volatile float zero = 0.F, quotient = 1.F;
    quotient = quotient / zero;
  }
  EXPECT_TRUE(std::fetestexcept(FE_DIVBYZERO));
  std::feclearexcept(FE_ALL_EXCEPT);
  { const UseFloatEnvironment use(environment.flushing()); }
  EXPECT_FALSE(std::fetestexcept(FE_DIVBYZERO));
}

// ---- Lanes ----

TEST(FloatEnvironment, EveryLaneRoundsAsTheCallerDoes) {
  if (!FlushSubnormals::available) GTEST_SKIP() << "no control word here";
  attn::ThreadPool pool(4);  // its threads start before the caller changes rounding
  Eigen::ThreadPool threads(3);
  attn::EigenExecutor eigen(threads);
  DefaultThreads defaults;
  for (attn::Executor* executor : std::initializer_list<attn::Executor*>{&pool, &eigen, &defaults}) {
    const UseExecutor use(*executor);
    for (const int direction : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST}) {
      const Rounding rounding(direction);
      const float expected = third();
      std::array<float, 64> got{};
      for_each_task(64, [&](Index task, int) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));  // so that all threads take part
        got[static_cast<std::size_t>(task)] = third();
      });
      for (const float x : got) ASSERT_EQ(x, expected);
    }
  }
}

TEST(FloatEnvironment, LanesRestoreTheirThreadsOwn) {
  if (!FlushSubnormals::available) GTEST_SKIP() << "no control word here";
  struct Checked final : attn::Executor {  // compares each thread's state before and after its lane
    Checked() : Executor(3) {}
    void parallel_for(int count, attn::LaneFunction lane) override {
      std::vector<std::thread> threads;
      for (int i = 0; i < count; ++i)
        threads.emplace_back([this, lane, i] {
          std::fesetround(FE_DOWNWARD);
          const FloatEnvironment before = FloatEnvironment::current();
          lane(i);
          if (FloatEnvironment::current() != before) ++changed;
        });
      for (std::thread& thread : threads) thread.join();
    }
    std::atomic<int> changed{0};
  } checked;
  const UseExecutor use(checked);
  const FlushSubnormals flush;
  for_each_task(10, [](Index, int) { EXPECT_TRUE(flushes()); });
  EXPECT_THROW(for_each_task(10, [](Index, int) { throw std::runtime_error("task"); }), std::runtime_error);
  EXPECT_EQ(checked.changed, 0);
}

TEST(FloatEnvironment, ReachesAllRowsOfALinear) {
  if (!FlushSubnormals::available) GTEST_SKIP() << "no control word here";
  const attn::Linear<float> layer(96, 64);
  Tensor<float, 2> x(300, 96);
  const auto row = attn_test::random_tensor<float, 1>({96}, 1);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = row.data()[i % 96];
  const Tensor<float, 2> nearest = layer.forward(x);
  DefaultThreads threads;
  const UseExecutor use(threads);
  const Rounding upward(FE_UPWARD);
  const Tensor<float, 2> y = layer.forward(x);
  int higher = 0;
  for (Index r = 0; r < 300; ++r)
    for (Index c = 0; c < 64; ++c) {
      ASSERT_EQ(y(r, c), y(0, c)) << "row " << r;
      higher += y(r, c) > nearest(r, c) ? 1 : 0;
    }
  EXPECT_GT(higher, 300 * 32);
}

// ---- FlushSubnormals ----

TEST(FlushSubnormals, IsAvailableOnX86AndAArch64) {
#if defined(__x86_64__) || defined(__aarch64__)
  EXPECT_TRUE(FlushSubnormals::available);
#endif
}

TEST(FlushSubnormals, HoldsForItsScopeAndNests) {
  EXPECT_FALSE(flushes_inputs() || flushes_results());
  {
    const FlushSubnormals outer;
    EXPECT_EQ(flushes(), FlushSubnormals::available);
    {
      const FlushSubnormals inner;
      EXPECT_EQ(flushes(), FlushSubnormals::available);
    }
    EXPECT_EQ(flushes(), FlushSubnormals::available);
  }
  EXPECT_FALSE(flushes_inputs() || flushes_results());
}

TEST(FlushSubnormals, LeavesTheRoundingThatIsSetMeanwhile) {
  const int before = std::fegetround();
  {
    const FlushSubnormals flush;
    std::fesetround(FE_UPWARD);
  }
  EXPECT_EQ(std::fegetround(), FE_UPWARD);
  std::fesetround(before);
}

TEST(FlushSubnormals, HoldsForItsThreadAlone) {
  bool elsewhere = true;
  std::thread other([&] {
    const FloatEnvironment mine = FloatEnvironment::current();
    std::thread([] { const FlushSubnormals flush; }).join();
    elsewhere = FloatEnvironment::current() != mine;
  });
  other.join();
  EXPECT_FALSE(elsewhere);
}

/// How many elements are neither 0 nor -0, by their bits: comparisons may take a subnormal number for zero.
template <class T, int Rank>
Index count_nonzero(const Tensor<T, Rank>& x) {
  Index count = 0;
  for (Index i = 0; i < x.size(); ++i) {
    std::array<unsigned char, sizeof(T)> bytes{};
    std::memcpy(bytes.data(), &x.data()[i], sizeof(T));
    bytes.back() &= 0x7F;  // the sign
    count += bytes != std::array<unsigned char, sizeof(T)>{} ? 1 : 0;
  }
  return count;
}

/// Random numbers of the given size. Scaled here, in T: random_tensor is exact in float.
template <class T, int Rank>
Tensor<T, Rank> small_tensor(const std::type_identity_t<std::array<Index, std::size_t{Rank}>>& shape, double size) {
  auto x = attn_test::cast<T>(attn_test::random_tensor<double, Rank>(shape, 3));
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(static_cast<double>(x.data()[i]) * size);
  return x;
}

/// result() has no zeros on its own, and nothing but zeros under FlushSubnormals, whatever the threads.
template <class Result>
void expect_all_flushed(const Result& result) {
  if (!FlushSubnormals::available) GTEST_SKIP() << "not available";
  attn::ThreadPool pool(4);  // its threads start before
  attn::SerialExecutor serial;
  DefaultThreads defaults;
  for (attn::Executor* executor : std::initializer_list<attn::Executor*>{&serial, &pool, &defaults}) {
    const UseExecutor use(*executor);
    const auto kept = result();
    EXPECT_GT(count_nonzero(kept), kept.size() * 9 / 10);
    const auto flushed = [&] {
      const FlushSubnormals flush;
      return result();
    }();
    EXPECT_EQ(count_nonzero(flushed), 0);
    EXPECT_TRUE(attn_test::same_bits(result(), kept)) << "afterwards";
  }
}

TEST(FlushSubnormals, ReachesAllRowsOfALinear) {
  const auto x = small_tensor<float, 2>({500, 128}, 1e-40);
  const attn::Linear<float> layer(128, 96, false);
  expect_all_flushed([&] { return layer.forward(x); });
}

TEST(FlushSubnormals, ReachesAllRowsOfALinearOfDouble) {
  const auto x = small_tensor<double, 2>({500, 128}, 1e-310);
  const attn::Linear<double> layer(128, 96, false);
  expect_all_flushed([&] { return layer.forward(x); });
}

TEST(FlushSubnormals, ReachesAllRowsOfALinearOfBfloat16) {
  attn::set_bf16_dots(false);                                          // in pairs they always count as 0
  const auto x = small_tensor<Eigen::bfloat16, 2>({500, 128}, 5e-39);  // at most 1.7 times that, so all subnormal
  const attn::Linear<Eigen::bfloat16> layer(128, 96, false);
  expect_all_flushed([&] { return layer.forward(x); });
}

TEST(FlushSubnormals, ReachesAllRowsOfAttention) {
  const auto q = attn_test::random_tensor<float, 4>({2, 4, 130, 32}, 1),
             k = attn_test::random_tensor<float, 4>({2, 4, 200, 32}, 2);
  const auto v = small_tensor<float, 4>({2, 4, 200, 32}, 1e-40);
  expect_all_flushed([&] { return attn::scaled_dot_product_attention(q, k, v).output; });
}

TEST(FlushSubnormals, ReachesAllHeadsOfDecoding) {
  const auto q = attn_test::random_tensor<float, 4>({2, 8, 1, 32}, 1),
             k = attn_test::random_tensor<float, 4>({2, 8, 2000, 32}, 2);
  const auto v = small_tensor<float, 4>({2, 8, 2000, 32}, 1e-40);
  expect_all_flushed([&] { return attn::scaled_dot_product_attention(q, k, v).output; });
}

TEST(FlushSubnormals, ReachesAllOfADropout) {
  const auto x = small_tensor<float, 2>({600, 500}, 1e-40);
  expect_all_flushed([&] { return attn::Dropout<float>(0.01, 1).forward(x); });
}

}  // namespace
