// A call that fails changes nothing: every copy, assignment and share, whichever of its allocations fails; and forward,
// whatever fails within it.
#include "counted_allocation.hpp"

#include <optional>

namespace {

using attn::Causal;
using attn::Dropout;
using attn::Index;
using attn::KvCache;
using attn::Linear;
using attn::LlamaAttention;
using attn::LlamaAttentionConfig;
using attn::Position;
using attn::Rotary;
using attn::Tensor;
using attn::View;
using attn_test::expect_error;
using attn_test::random_tensor;
using attn_test::same_bits;

/// Runs `operation` with its first allocation failing, then its second, and so on until it succeeds. After each failure
/// `unchanged` must hold. Returns how many times it failed.
template <class Operation, class Unchanged>
int fail_each_allocation(const Operation& operation, const Unchanged& unchanged) {
  for (int n = 1;; ++n) {
    bool failed = false;
    attn::Workspace::current().release();  // so that forward allocates as in a first call
    failing = n;
    try {
      operation();
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    failing = 0;
    if (!failed) return n - 1;
    EXPECT_TRUE(unchanged()) << "after allocation " << n << " failed";
    if (testing::Test::HasFailure() || n > 1000) return n;
  }
}

// ---- What each object shows, to be compared before and after ----

std::vector<float> shown(const Linear<float>& layer) {
  const auto weight = layer.weight();
  const auto bias = layer.bias();
  std::vector<float> all(weight.data(), weight.data() + weight.size());
  all.insert(all.end(), bias.data(), bias.data() + bias.size());
  return all;
}
std::vector<float> shown(const KvCache<float>& cache) {
  std::vector<float> all(cache.lengths().begin(), cache.lengths().end());
  for (const Index size :
       {cache.batch(), cache.key_value_heads(), cache.capacity(), cache.head_size(), cache.value_size()})
    all.push_back(static_cast<float>(size));
  for (Index b = 0; b < cache.batch(); ++b)
    for (Index g = 0; g < cache.key_value_heads(); ++g)
      for (Index t = 0; t < cache.length(b); ++t) {
        for (Index d = 0; d < cache.head_size(); ++d) all.push_back(cache.keys()(b, g, t, d));
        for (Index d = 0; d < cache.value_size(); ++d) all.push_back(cache.values()(b, g, t, d));
      }
  return all;
}
std::vector<float> shown(const Rotary& rotary) {
  std::vector<double> frequencies(static_cast<std::size_t>(rotary.head_size() / 2));
  rotary.frequencies(1000, frequencies);
  std::vector<float> all(frequencies.begin(), frequencies.end());
  all.push_back(static_cast<float>(rotary.attention_factor()));
  all.push_back(static_cast<float>(rotary.config().layout));
  return all;
}
std::vector<float> shown(const Dropout<float>& dropout) {
  const attn::DropoutRule rule = dropout.next_rule();
  dropout.give_back(rule);
  return {static_cast<float>(dropout.p()), static_cast<float>(dropout.is_training()), static_cast<float>(rule.seed),
          static_cast<float>(rule.call)};
}
std::vector<float> shown(const LlamaAttention<float>& module) {
  std::vector<float> all;
  for (const auto* layer : {&module.query(), &module.key(), &module.value(), &module.out_proj()})
    for (const float x : shown(*layer)) all.push_back(x);
  all.push_back(static_cast<float>(module.config().head_dim));
  all.push_back(static_cast<float>(module.is_training()));
  if (module.config().rotary)
    for (const float x : shown(Rotary(module.config().head_dim, *module.config().rotary))) all.push_back(x);
  return all;
}

KvCache<float> filled_cache(Index batch, Index capacity, unsigned seed) {
  KvCache<float> cache(batch, 2, capacity, 3, 5);
  cache.append(random_tensor<float, 4>({batch, 2, 4, 3}, seed), random_tensor<float, 4>({batch, 2, 4, 5}, seed + 1));
  return cache;
}
Rotary long_rope(Index head_size, double factor) {
  const std::vector<double> factors(static_cast<std::size_t>(head_size / 2), factor);
  return Rotary(head_size,
                {.theta = 1000.0 * factor, .scaling = attn::LongRopeScaling{factors, factors, 100, factor, {}}});
}
LlamaAttention<float> module_of(Index hidden_size, std::uint64_t seed) {
  return LlamaAttention<float>({.hidden_size = hidden_size,
                                .num_attention_heads = 2,
                                .rotary = long_rope(hidden_size / 2, 3.0).config(),
                                .seed = seed});
}

/// Copies and assignments of `b` over a target like `a`: after each failed allocation the target is as it was, after
/// success it equals b.
template <class X>
void expect_all_or_nothing(const X& a, const X& b, int least_allocations) {
  ASSERT_NE(shown(a), shown(b));
  X target = a;
  const int failures = fail_each_allocation([&] { target = b; }, [&] { return shown(target) == shown(a); });
  EXPECT_GE(failures, least_allocations);
  EXPECT_EQ(shown(target), shown(b));
  std::optional<X> copy;
  EXPECT_GE(fail_each_allocation([&] { copy.emplace(b); }, [&] { return !copy.has_value(); }), least_allocations);
  EXPECT_EQ(shown(*copy), shown(b));
}

TEST(FailedCalls, AssignALinearEntirelyOrNotAtAll) {
  expect_all_or_nothing(Linear<float>(6, 5, true, 1), Linear<float>(30, 70, true, 2), 3);
}
TEST(FailedCalls, AssignACacheEntirelyOrNotAtAll) {
  expect_all_or_nothing(filled_cache(2, 6, 1), filled_cache(3, 90, 3), 3);
  expect_all_or_nothing(filled_cache(3, 90, 3), filled_cache(2, 6, 1), 3);
}
TEST(FailedCalls, AssignARotaryEntirelyOrNotAtAll) {
  expect_all_or_nothing(long_rope(8, 2.0), long_rope(16, 3.0), 2);
  expect_all_or_nothing(Rotary(8), long_rope(16, 3.0), 2);
}
TEST(FailedCalls, AssignADropoutEntirelyOrNotAtAll) {
  expect_all_or_nothing(Dropout<float>(0.25, 1), Dropout<float>(0.5, 2), 0);
}
TEST(FailedCalls, AssignAModuleEntirelyOrNotAtAll) { expect_all_or_nothing(module_of(8, 1), module_of(24, 2), 12); }

TEST(FailedCalls, CannotHappenInSharingWhichAllocatesNothing) {
  Linear<float> layer(6, 5, true, 1), other_layer(6, 5, true, 2);
  auto module = module_of(8, 1), other = module_of(8, 2);
  EXPECT_EQ(fail_each_allocation([&] { layer.share(other_layer); }, [] { return true; }), 0);
  EXPECT_EQ(fail_each_allocation([&] { module.share(other); }, [] { return true; }), 0);
  EXPECT_TRUE(layer.shares_with(other_layer));
  EXPECT_EQ(shown(module), shown(other));
}

TEST(FailedCalls, ShareNothing) {
  auto module = module_of(8, 1), other = module_of(8, 2);
  const auto before = shown(module);
  other.out_proj() = Linear<float>(8, 7);
  expect_error([&] { module.share(other); }, {"[attn::LlamaAttention::share] out_proj", "expected [8,8]", "got [8,7]"});
  EXPECT_EQ(shown(module), before);
  EXPECT_FALSE(module.query().shares_with(other.query()));
  other = module_of(8, 2);
  module.value() = Linear<float>(4, 8);
  expect_error([&] { module.share(other); }, {"[attn::LlamaAttention::share] value", "expected [8,8]", "got [4,8]"});
  EXPECT_FALSE(module.query().shares_with(other.query()));
}

// ---- forward: neither its cache nor its dropout may tell that a call failed ----

constexpr Index E = 24, S = 40;

/// A module in training, a cache with 3 tokens, and the same again: for what would have come without the failed call.
struct Twins {
  LlamaAttention<float> module{LlamaAttentionConfig{.hidden_size = E,
                                                    .num_attention_heads = 3,
                                                    .attention_dropout = 0.5,
                                                    .projection_dropout = 0.5,
                                                    .rotary = attn::RotaryConfig{},
                                                    .seed = 1}};
  LlamaAttention<float> twin = module;
  Tensor<float, 3> first = random_tensor<float, 3>({2, 3, E}, 1), x = random_tensor<float, 3>({2, S, E}, 2);
  KvCache<float> cache = module.make_cache(2, 512), twin_cache = twin.make_cache(2, 512);
  std::vector<float> before;

  Twins() {
    (void)module.forward(first, Causal{}, cache);
    (void)twin.forward(first, Causal{}, twin_cache);
    before = shown(cache);
  }
  void expect_as_if_nothing_happened() {
    EXPECT_EQ(shown(cache), before);
    EXPECT_TRUE(same_bits(module.forward(x, Causal{}, cache), twin.forward(x, Causal{}, twin_cache)));
    EXPECT_EQ(shown(cache), shown(twin_cache));
  }
};

TEST(FailedCalls, ChangeNothingWhenMemoryRunsOut) {
  Twins twins;
  Tensor<float, 3> y(2, S, E);
  attn::SerialExecutor serial;
  const attn::UseExecutor use(serial);
  const int failures = fail_each_allocation([&] { twins.module.forward_into(y, twins.x, Causal{}, twins.cache); },
                                            [&] { return shown(twins.cache) == twins.before; });
  EXPECT_GE(failures, 2);
  twins.cache.roll_back(S);  // the call that went well at last
  EXPECT_EQ(shown(twins.cache), twins.before);
  EXPECT_TRUE(same_bits(y, twins.twin.forward(twins.x, Causal{}, twins.twin_cache))) << "dropout numbers were lost";
}

TEST(FailedCalls, ChangeNothingWhenAMaskThrows) {
  Twins twins;
  const auto failing_mask = [](Position at) -> bool { return at.key == 20 ? throw std::runtime_error("mine") : true; };
  EXPECT_THROW((void)twins.module.forward(twins.x, failing_mask, twins.cache), std::runtime_error);
  EXPECT_THROW((void)twins.module.forward(twins.x, failing_mask), std::runtime_error);
  twins.expect_as_if_nothing_happened();
}

/// Throws at the n-th call.
class FailingExecutor final : public attn::Executor {
 public:
  explicit FailingExecutor(int n) : Executor(3), left_(n) {}
  void parallel_for(int count, attn::LaneFunction lane) override {
    if (--left_ == 0) throw std::runtime_error("no threads");
    for (int i = 0; i < count; ++i) lane(i);
  }
  [[nodiscard]] bool has_failed() const { return left_ <= 0; }

 private:
  int left_;
};

TEST(FailedCalls, ChangeNothingWhenTheExecutorThrows) {
  int failures = 0;
  for (int n = 1;; ++n) {
    Twins twins;
    twins.x = random_tensor<float, 3>({2, 400, E}, 2);  // each stage is worth several threads
    FailingExecutor executor(n);
    {
      const attn::UseExecutor use(executor);
      try {
        (void)twins.module.forward(twins.x, Causal{}, twins.cache);
      } catch (const std::runtime_error&) {
        ++failures;
      }
    }
    if (!executor.has_failed()) break;
    twins.expect_as_if_nothing_happened();
  }
  EXPECT_EQ(failures, 7) << "three projections, rotary, attention, output projection, dropout";
}

TEST(FailedCalls, UseUpNoCallOfDropout) {
  const Dropout<float> dropout(0.5, 3), twin(0.5, 3);
  const auto x = random_tensor<float, 1>({1 << 18}, 1);
  FailingExecutor executor(1);
  {
    const attn::UseExecutor use(executor);
    EXPECT_THROW((void)dropout(x), std::runtime_error);
  }
  ASSERT_TRUE(executor.has_failed());
  EXPECT_TRUE(same_bits(dropout(x), twin(x)));
}

TEST(FailedCalls, GiveNoNumberBackOnceAnotherCallBegan) {
  const Dropout<float> dropout(0.5, 3);
  const attn::DropoutRule failed = dropout.next_rule(), other = dropout.next_rule();
  dropout.give_back(failed);
  EXPECT_EQ(dropout.next_rule().call, 2U);
  EXPECT_EQ(other.call, 1U);
  dropout.give_back(attn::DropoutRule());  // of no call
  EXPECT_EQ(dropout.next_rule().call, 3U);
}

TEST(FailedCalls, RefuseOutputsOfALaterStageFirst) {
  Twins twins;
  std::vector<float> memory(2 * S * 2 * E, 42.F);
  const auto refused = [&](const View<float, 3>& y, const char* text) {
    expect_error([&] { twins.module.forward_into(y, twins.x, Causal{}, twins.cache); }, {text, "views, expected"});
    EXPECT_EQ(std::count(memory.begin(), memory.end(), 42.F), std::ssize(memory));
  };
  refused(View<float, 3>(memory.data(), {2, S, E}, {S * 2 * E, 2 * E, 1}), "[attn::Dropout::forward]");
  refused(View<float, 3>(memory.data(), {2, S, E}, {S * 2 * E, 2 * E, 2}), "[attn::Linear::forward]");
  refused(View<float, 3>(memory.data(), {2, S, E}, {S * E + 1, E, 1}), "[attn::Linear::forward]");
  twins.expect_as_if_nothing_happened();
}

TEST(FailedCalls, RefuseInputsOfAProjectionFirst) {
  Twins twins;
  const auto wide = random_tensor<float, 3>({2, S, 2 * E}, 5);
  const View<const float, 3> gaps(wide.data(), {2, S, E}, {S * 2 * E, 2 * E, 2});
  expect_error([&] { (void)twins.module.forward(gaps, Causal{}, twins.cache); }, {"[attn::Linear::forward] views"});
  twins.expect_as_if_nothing_happened();
}

TEST(FailedCalls, RefuseProjectionsOfAnotherSizeFirst) {
  using Part = Linear<float>& (LlamaAttention<float>::*)();
  struct Case {
    Part part;
    const char* name;
  };
  for (const Case& c :
       {Case{&LlamaAttention<float>::query, "query"}, Case{&LlamaAttention<float>::key, "key"},
        Case{&LlamaAttention<float>::value, "value"}, Case{&LlamaAttention<float>::out_proj, "out_proj"}})
    for (const auto& [in, out] : {std::pair<Index, Index>{E, 16}, {16, E}}) {
      Twins twins;
      Linear<float>& part = (twins.module.*c.part)();
      const Linear<float> right = part;
      part = Linear<float>(in, out);
      expect_error([&] { (void)twins.module.forward(twins.x, Causal{}, twins.cache); },
                   {"[attn::LlamaAttention::forward] ", c.name, " [in,out], expected [24,24]", "got ["});
      part = right;
      twins.expect_as_if_nothing_happened();
      part = Linear<float>(E, E, false);  // of the right size, another bias: a layer as good as any
      EXPECT_NO_THROW((void)twins.module.forward(twins.first));
    }
}

}  // namespace
