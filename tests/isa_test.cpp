// Instruction sets: which there are, which one is used, and that all of them compute the same.
#include "child_process.hpp"
#include "support.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using attn::Index;
using attn::Isa;
using attn::Tensor;
using attn_test::difference;
using attn_test::error_of;
using attn_test::magnitude;
using attn_test::random_tensor;
using attn_test::reads;

/// Leaves the instruction set as it was found.
struct KeepIsa {
  KeepIsa() = default;
  KeepIsa(const KeepIsa&) = delete;
  KeepIsa& operator=(const KeepIsa&) = delete;
  ~KeepIsa() { attn::set_active_isa(before); }
  Isa before = attn::active_isa();
};

std::vector<Isa> missing_isas() {
  std::vector<Isa> missing;
  for (const Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (std::ranges::count(attn::supported_isas(), isa) == 0) missing.push_back(isa);
  return missing;
}

// ---- ATTN_ISA. First in this file: the children must find that nothing has been chosen yet. ----

#ifdef ATTN_TEST_CAN_FORK
/// What `answer` says in a fresh process with this ATTN_ISA; the text of an error where one is thrown.
template <class Answer>
std::string with_environment(const char* value, const Answer& answer) {
  const std::string text = attn_test::in_a_child([&] {
    value != nullptr ? setenv("ATTN_ISA", value, 1) : unsetenv("ATTN_ISA");
    return answer();
  });
  return text.empty() ? "the child died" : text;
}

std::string active_name() { return std::string(isa_name(attn::active_isa())); }

/// The first attn call of a program that never heard of instruction sets.
std::string first_call() {
  return std::to_string(attn::Softmax<float>().forward(random_tensor<float, 1>({5}, 1)).size());
}

TEST(Environment, ChoosesTheBestWhenUnsetOrEmpty) {
  const std::string best(isa_name(attn::supported_isas().back()));
  EXPECT_EQ(with_environment(nullptr, active_name), best);
  EXPECT_EQ(with_environment("", active_name), best);
}

TEST(Environment, ForcesAnyInstructionSetOfThisCpu) {
  for (const Isa isa : attn::supported_isas()) {
    const std::string name(isa_name(isa));
    EXPECT_EQ(with_environment(name.c_str(), active_name), name);
    EXPECT_EQ(with_environment(name.c_str(), first_call), "5");
  }
}

TEST(Environment, RefusesANameThatDoesNotExist) {
  for (const char* name : {"sse9", "AVX2", "avx2 ", " baseline", "avx", "1", "avx512,avx2"})
    for (const std::string& text : {with_environment(name, active_name), with_environment(name, first_call)})
      EXPECT_TRUE(reads(text, {"[attn::active_isa] ", "instruction set", "expected ", "baseline", "got ", name}));
}

TEST(Environment, RefusesInstructionSetsThatThisCpuLacks) {
  if (missing_isas().empty()) GTEST_SKIP() << "this CPU has them all";
  for (const Isa isa : missing_isas()) {
    const std::string name(isa_name(isa));
    EXPECT_TRUE(
        reads(with_environment(name.c_str(), first_call), {"[attn::active_isa] ", "this CPU has", "got ", name}));
  }
}

TEST(Environment, IsIgnoredOnceAnInstructionSetIsChosen) {
  for (const Isa isa : attn::supported_isas()) {
    const auto set = [isa] {
      attn::set_active_isa(isa);
      return active_name() + first_call();
    };
    EXPECT_EQ(with_environment("sse9", set), std::string(isa_name(isa)) + "5");
  }
}

TEST(Environment, RefusesEveryTimeAndNamesWhatThereIs) {
  const auto twice = [] {
    std::string text = error_of([] { (void)attn::active_isa(); });
    if (text != error_of([] { (void)attn::active_isa(); })) text = "the second call says something else";
    return text;
  };
  const std::string text = with_environment("none", twice);
  for (const Isa isa : attn::supported_isas()) EXPECT_TRUE(reads(text, {isa_name(isa)}));
}
#endif

// ---- The list and the setter ----

TEST(SupportedIsas, BeginsWithTheBaselineAndGetsBetter) {
  const auto isas = attn::supported_isas();
  ASSERT_FALSE(isas.empty());
  EXPECT_EQ(isas.front(), Isa::baseline);
  EXPECT_TRUE(std::ranges::is_sorted(isas));
  EXPECT_EQ(std::ranges::adjacent_find(isas), isas.end());
  EXPECT_EQ(attn::supported_isas().data(), isas.data()) << "asked for once";
}

TEST(SupportedIsas, AreEachRunByTheTests) {
  const std::string run = " " ATTN_TEST_ISAS " ";
  for (const Isa isa : attn::supported_isas())
    EXPECT_NE(run.find(' ' + std::string(isa_name(isa)) + ' '), std::string::npos)
        << isa_name(isa) << " is not in tests/CMakeLists.txt";
}

#if defined(__x86_64__)
TEST(SupportedIsas, AgreeWithTheCompilersOwnDetection) {
  __builtin_cpu_init();
  const auto has = [](Isa isa) { return std::ranges::count(attn::supported_isas(), isa) == 1; };
  // F16C has no name there; no CPU has AVX2 and lacks it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  EXPECT_EQ(has(Isa::avx2), avx2);
  EXPECT_EQ(has(Isa::avx512), avx2 && avx512);
}
#else
TEST(SupportedIsas, AreTheBaselineAloneOffX86) { EXPECT_EQ(attn::supported_isas().size(), 1U); }
#endif

TEST(IsaName, IsWhatTheEnvironmentTakes) {
  static_assert(isa_name(Isa::baseline) == "baseline" && isa_name(Isa::avx2) == "avx2" &&
                isa_name(Isa::avx512) == "avx512");
}

TEST(SetActiveIsa, TakesEffectInAllThreads) {
  const KeepIsa keep;
  for (const Isa isa : attn::supported_isas()) {
    attn::set_active_isa(isa);
    EXPECT_EQ(attn::active_isa(), isa);
    Isa elsewhere{};
    std::thread([&] { elsewhere = attn::active_isa(); }).join();
    EXPECT_EQ(elsewhere, isa);
  }
}

TEST(SetActiveIsa, RefusesInstructionSetsThatThisCpuLacks) {
  if (missing_isas().empty()) GTEST_SKIP() << "this CPU has them all";
  const Isa before = attn::active_isa();
  for (const Isa isa : missing_isas()) {
    EXPECT_TRUE(reads(error_of([&] { attn::set_active_isa(isa); }),
                      {"[attn::set_active_isa] ", "expected ", "baseline", "got ", isa_name(isa)}));
    EXPECT_EQ(attn::active_isa(), before);
  }
}

// ---- All compute the same ----

/// result() under each instruction set, against the baseline's; `bar` in parts of the largest magnitude.
template <class Result>
void expect_same_on_all(const char* what, double bar, const Result& result) {
  const KeepIsa keep;
  attn::set_active_isa(Isa::baseline);
  const auto expected = result();
  const double size = magnitude(attn_test::cast<double>(expected));
  for (const Isa isa : attn::supported_isas()) {
    attn::set_active_isa(isa);
    EXPECT_LE(difference(result(), expected).largest, bar * size) << what << ", " << isa_name(isa);
  }
}

template <class T>
class OnAllIsas : public testing::Test {
 protected:
  // Some units in the last place of sums of a hundred terms; one more of the storage type.
  static constexpr double bar = std::is_same_v<T, double>        ? 1e-14
                                : std::is_same_v<T, float>       ? 4e-6
                                : std::is_same_v<T, Eigen::half> ? 0x1p-10
                                                                 : 0x1p-7;
};
using Types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(OnAllIsas, Types);

TYPED_TEST(OnAllIsas, LinearGivesTheSame) {
  using T = TypeParam;
  const attn::Linear<T> layer(130, 77);
  for (const Index rows : {1, 2, 7, 41}) {
    const auto x = random_tensor<T, 2>({rows, 130}, static_cast<unsigned>(rows));
    expect_same_on_all("Linear", this->bar, [&] { return layer.forward(x); });
  }
}

TYPED_TEST(OnAllIsas, SoftmaxGivesTheSame) {
  using T = TypeParam;
  for (const Index columns : {1, 3, 16, 100, 1000}) {
    const auto x = random_tensor<T, 2>({5, columns}, static_cast<unsigned>(columns));
    expect_same_on_all("Softmax", this->bar, [&] { return attn::Softmax<T>().forward(x); });
  }
}

TYPED_TEST(OnAllIsas, AttentionGivesTheSame) {
  using T = TypeParam;
  const auto score = [](auto s, attn::Position at) {
    return s - static_cast<decltype(s)>(0.125F) * static_cast<decltype(s)>(at.distance());
  };
  for (const Index queries : {1, 3, 50, 100}) {  // decoding, less than a panel, more
    const auto q = random_tensor<T, 4>({2, 4, queries, 40}, 1);
    const auto k = random_tensor<T, 4>({2, 2, 130, 40}, 2), v = random_tensor<T, 4>({2, 2, 130, 24}, 3);
    expect_same_on_all("attention", this->bar,
                       [&] { return attn::scaled_dot_product_attention(q, k, v, attn::Causal{}, score).output; });
    expect_same_on_all("log-sum-exp", std::is_same_v<T, double> ? 1e-14 : 4e-6, [&] {
      return attn::scaled_dot_product_attention(q, k, v, attn::Causal{}, score, {.log_sum_exp = true}).log_sum_exp;
    });
  }
}

TEST(OnAllIsas, DropoutDropsTheSameWeights) {
  const KeepIsa keep;
  const auto q = random_tensor<float, 4>({1, 2, 70, 16}, 1), k = random_tensor<float, 4>({1, 2, 90, 16}, 2);
  std::vector<bool> expected;
  for (const Isa isa : attn::supported_isas()) {
    attn::set_active_isa(isa);
    const auto weights = attn::scaled_dot_product_attention(q, k, k, attn::NoMask{}, attn::NoScore{},
                                                            {.dropout = 0.3, .seed = 7, .weights = true})
                             .weights;
    std::vector<bool> dropped;
    for (Index i = 0; i < weights.size(); ++i) dropped.push_back(weights.data()[i] == 0.F);
    if (isa == Isa::baseline) expected = dropped;
    EXPECT_EQ(dropped, expected) << isa_name(isa);
  }
}

// Weights and caches do not depend on the instruction set.
TEST(OnAllIsas, AModuleAndItsCacheMayChangeBetweenCalls) {
  const KeepIsa keep;
  attn::LlamaAttention<float> module(attn::LlamaAttentionConfig{
      .hidden_size = 96, .num_attention_heads = 6, .num_key_value_heads = 2, .rotary = attn::RotaryConfig{}});
  module.eval();
  const auto x = random_tensor<float, 3>({1, 12, 96}, 1);
  attn::set_active_isa(Isa::baseline);
  const auto expected = module.forward(x, attn::Causal{});
  auto cache = module.make_cache(1, 12);
  for (Index s = 0; s < 12; ++s) {
    attn::set_active_isa(attn::supported_isas()[static_cast<std::size_t>(s) % attn::supported_isas().size()]);
    Tensor<float, 3> token(1, 1, 96);
    std::copy_n(&x(0, s, 0), 96, token.data());
    const auto y = module.forward(token, attn::Causal{}, cache);
    for (Index e = 0; e < 96; ++e) ASSERT_NEAR(y(0, 0, e), expected(0, s, e), 1e-5) << "token " << s;
  }
}

// Two instruction sets in one call would disagree on the width of a panel.
TEST(OnAllIsas, CallsKeepTheInstructionSetTheyBeganWith) {
  if (attn::supported_isas().size() < 2) GTEST_SKIP() << "this CPU has but one";
  const KeepIsa keep;
  const auto q = random_tensor<float, 4>({1, 2, 60, 16}, 1), k = random_tensor<float, 4>({1, 2, 90, 16}, 2);
  const auto score = [](float s, attn::Position at) { return s - 0.125F * at.distance(); };
  const auto result = [&] { return attn::scaled_dot_product_attention(q, k, k, attn::Causal{}, score).output; };
  std::vector<Tensor<float, 4>> expected;
  for (const Isa isa : attn::supported_isas()) {
    attn::set_active_isa(isa);
    expected.push_back(result());
  }
  std::atomic<bool> stop{false};
  std::thread switches([&] {
    for (std::size_t i = 0; !stop; ++i) attn::set_active_isa(attn::supported_isas()[i % attn::supported_isas().size()]);
  });
  int unlike = 0;
  for (int i = 0; i < 3000; ++i) {
    const auto y = result();
    unlike += std::ranges::none_of(expected, [&](const auto& one) { return attn_test::same_bits(y, one); });
  }
  stop = true;
  switches.join();
  EXPECT_EQ(unlike, 0);
}

}  // namespace
