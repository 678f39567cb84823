// Workspace and aligned memory; and that steady state allocates nothing, counted here in operator new and in Eigen.
#include "counted_allocation.hpp"

#include <thread>

namespace {

using attn::Index;
using attn::Tensor;
using attn::Workspace;
using attn_test::random_tensor;

bool is_aligned(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory) % 64 == 0; }

/// How often `call` allocates once it has run a few times; Eigen's allocations throw.
template <class Call>
int allocations_of(const Call& call) {
  for (int i = 0; i < 3; ++i) call();
  allocations = 0;
  counting = true;
  Eigen::internal::set_is_malloc_allowed(false);
  call();
  Eigen::internal::set_is_malloc_allowed(true);
  counting = false;
  return allocations;
}

TEST(Counting, SeesEveryAllocation) {
  EXPECT_EQ(allocations_of([] {}), 0);
  static int* volatile sink;  // or the compiler may leave the pair out
  EXPECT_EQ(allocations_of([] {
              sink = new int(3);
              delete sink;
            }),
            1);
  EXPECT_EQ(allocations_of([] { ::operator delete (::operator new (64, std::align_val_t{64}), std::align_val_t{64}); }),
            1);
  Eigen::internal::set_is_malloc_allowed(false);
  EXPECT_THROW((Tensor<float, 1>(3)), std::logic_error);
  Eigen::internal::set_is_malloc_allowed(true);
}

TEST(AlignedVector, StartsAtACacheLine) {
  for (std::size_t n = 1; n < 200; n += 7) {
    const attn::AlignedVector<char> bytes(n);
    const attn::AlignedVector<Eigen::half> halves(n);
    EXPECT_TRUE(is_aligned(bytes.data()) && is_aligned(halves.data()));
  }
}

TEST(AlignedVector, HoldsWhatItWasGiven) {
  const attn::AlignedVector<float> x(5, 3.F);
  const attn::AlignedVector<float> y = x;
  EXPECT_EQ(x, y);
  EXPECT_EQ(y[4], 3.F);
}

TEST(AlignedVector, RefusesMoreThanMemoryCanHold) {
  EXPECT_THROW((void)attn::detail::AlignedAllocator<double>().allocate(static_cast<std::size_t>(-1) / 4),
               std::bad_array_new_length);
}

TEST(Workspace, GivesAlignedMemoryThatDoesNotOverlap) {
  Workspace::Frame frame;
  std::vector<std::pair<char*, Index>> taken;
  for (const Index n : {1, 63, 64, 65, 1000, 100000, 3}) {
    char* memory = frame.take<char>(n);
    EXPECT_TRUE(is_aligned(memory));
    std::memset(memory, static_cast<int>(n % 100), static_cast<std::size_t>(n));
    taken.emplace_back(memory, n);
  }
  for (const auto& [memory, n] : taken) {  // what was written first is still there
    EXPECT_EQ(memory[0], n % 100);
    EXPECT_EQ(memory[n - 1], n % 100);
  }
}

TEST(Workspace, TakesZeroOrNegativeCounts) {
  Workspace::Frame frame;
  EXPECT_NO_THROW((void)frame.take<float>(0));
  EXPECT_NO_THROW((void)frame.take<float>(-5));
}

TEST(Workspace, ReusesTheMemoryOfAFrameThatHasEnded) {
  Workspace::Frame outer;
  (void)outer.take<float>(10);
  float* first = nullptr;
  {
    Workspace::Frame inner;
    first = inner.take<float>(100);
  }
  Workspace::Frame again;
  EXPECT_EQ(again.take<float>(100), first);
}

TEST(Workspace, LeavesAnOuterFramesMemoryAlone) {
  Workspace::current().release();
  Workspace::Frame outer;
  int* mine = outer.take<int>(100);
  for (int i = 0; i < 100; ++i) mine[i] = i;
  {
    Workspace::Frame inner;  // far more than fits beside it
    int* theirs = inner.take<int>(1 << 20);
    std::fill(theirs, theirs + (1 << 20), -1);
  }
  {
    Workspace::Frame inner;
    int* theirs = inner.take<int>(500);
    std::fill(theirs, theirs + 500, -1);
  }
  for (int i = 0; i < 100; ++i) EXPECT_EQ(mine[i], i);
}

TEST(Workspace, GrowsToTheLargestCallAndThenKeepsItsSize) {
  Workspace::current().release();
  EXPECT_EQ(Workspace::current().capacity(), 0U);
  const auto call = [] {
    Workspace::Frame frame;
    (void)frame.take<double>(1000);
    (void)frame.take<double>(100000);
    Workspace::Frame inner;
    (void)inner.take<double>(50000);
  };
  call();
  const std::size_t capacity = Workspace::current().capacity();
  EXPECT_GE(capacity, 151000 * sizeof(double));
  EXPECT_LE(capacity, 2 * 151000 * sizeof(double));
  for (int i = 0; i < 5; ++i) call();
  EXPECT_EQ(Workspace::current().capacity(), capacity);
}

TEST(Workspace, JoinsTheBlocksOfAFirstCallForTheNext) {
  Workspace::current().release();
  const auto distance = [] {  // of two stretches that lie side by side once there is one block
    Workspace::Frame frame;
    const char* a = frame.take<char>(8192);
    const char* b = frame.take<char>(8192);
    return b - a;
  };
  (void)distance();
  EXPECT_EQ(distance(), 8192);
}

TEST(Workspace, CanBeUsedAgainAfterRelease) {
  { (void)Workspace::Frame().take<char>(1000); }
  EXPECT_GT(Workspace::current().capacity(), 0U);
  Workspace::current().release();
  EXPECT_EQ(Workspace::current().capacity(), 0U);
  Workspace::Frame frame;
  EXPECT_TRUE(is_aligned(frame.take<char>(10)));
}

TEST(Workspace, IsAnotherOneInEveryThread) {
  Workspace* elsewhere = nullptr;
  std::thread([&] { elsewhere = &Workspace::current(); }).join();
  EXPECT_NE(elsewhere, &Workspace::current());
}

/// Takes memory from nested frames when its thread ends, and says what the thread's workspace then holds.
struct TakesAtTheEnd {
  std::size_t* inside;
  std::size_t* afterwards;
  ~TakesAtTheEnd() {
    {
      Workspace::Frame outer;
      char* mine = outer.take<char>(5000);
      std::memset(mine, 1, 5000);
      {
        Workspace::Frame inner;
        std::memset(inner.take<char>(100000), 2, 100000);
      }
      EXPECT_TRUE(is_aligned(mine) && std::count(mine, mine + 5000, 1) == 5000);
      *inside = Workspace::current().capacity();
    }
    *afterwards = Workspace::current().capacity();
  }
};

TEST(Workspace, ServesADestructorThatRunsAfterItsOwn) {
  std::size_t inside = 0, afterwards = 1;
  std::thread([&] {
    thread_local const TakesAtTheEnd object{&inside, &afterwards};  // made before the workspace, so destroyed after it
    (void)Workspace::Frame().take<char>(1000);
  }).join();
  EXPECT_GE(inside, 105000U);
#if !defined(__MINGW32__)  // there it is kept until the next destructor of the thread
  EXPECT_EQ(afterwards, 0U);
#endif
}

TEST(Workspace, ServesADestructorThatRunsBeforeItsOwn) {
  std::size_t inside = 0, afterwards = 0;
  std::thread([&] {
    (void)Workspace::Frame().take<char>(1000);
    thread_local const TakesAtTheEnd object{&inside, &afterwards};
  }).join();
  EXPECT_GE(inside, 105000U);
  EXPECT_EQ(afterwards, inside);
}

// ---- Zero allocation in steady state, into a caller's tensor ----

TEST(SteadyState, LinearSoftmaxAndDropoutAllocateNothing) {
  const attn::Linear<float> layer(70, 50);
  const attn::Softmax<float> softmax;
  const attn::Dropout<float> dropout(0.5);
  const auto x = random_tensor<float, 2>({33, 70}, 1), token = random_tensor<float, 2>({1, 70}, 1);
  Tensor<float, 2> y(33, 50), one(1, 50);
  EXPECT_EQ(allocations_of([&] { layer.forward_into(y, x); }), 0);
  EXPECT_EQ(allocations_of([&] { layer.forward_into(one, token); }), 0);
  EXPECT_EQ(allocations_of([&] { softmax.forward_into(y, y); }), 0);
  EXPECT_EQ(allocations_of([&] { dropout.forward_into(y, y); }), 0);
}

TEST(SteadyState, AModuleAllocatesNothing) {
  attn::LlamaAttention<float> module(attn::LlamaAttentionConfig{
      .hidden_size = 64, .num_attention_heads = 4, .num_key_value_heads = 2, .rotary = attn::RotaryConfig{}});
  const auto x = random_tensor<float, 3>({2, 40, 64}, 1);
  Tensor<float, 3> y(2, 40, 64);
  EXPECT_EQ(allocations_of([&] { module.forward_into(y, x, attn::Causal{}); }), 0) << "training";
  module.eval();
  EXPECT_EQ(allocations_of([&] { module.forward_into(y, x, attn::Causal{}); }), 0) << "evaluation";
}

TEST(SteadyState, DecodingAllocatesNothing) {
  attn::LlamaAttention<float> module(attn::LlamaAttentionConfig{
      .hidden_size = 64, .num_attention_heads = 4, .num_key_value_heads = 2, .rotary = attn::RotaryConfig{}});
  module.eval();
  auto cache = module.make_cache(2, 300);
  (void)module.forward(random_tensor<float, 3>({2, 200, 64}, 1), attn::Causal{}, cache);
  const auto token = random_tensor<float, 3>({2, 1, 64}, 2);
  Tensor<float, 3> y(2, 1, 64);
  EXPECT_EQ(allocations_of([&] {
              module.forward_into(y, token, attn::Causal{}, cache);
              cache.roll_back(1);
            }),
            0);
}

TEST(SteadyState, DoesNotGrowTheWorkspace) {
  attn::LlamaAttention<float> module(64, 4);
  const auto x = random_tensor<float, 3>({2, 40, 64}, 1);
  Tensor<float, 3> y(2, 40, 64);
  for (int i = 0; i < 3; ++i) module.forward_into(y, x, attn::Causal{});
  const std::size_t capacity = Workspace::current().capacity();
  for (int i = 0; i < 5; ++i) module.forward_into(y, x, attn::Causal{});
  EXPECT_EQ(Workspace::current().capacity(), capacity);
}

TEST(EmptyWhenMoved, LeavesADefaultValueBehind) {
  using Value = attn::detail::EmptyWhenMoved<std::array<int, 2>>;
  Value a(std::array<int, 2>{3, 4});
  Value b = std::move(a);
  EXPECT_EQ(*b, (std::array<int, 2>{3, 4}));
  EXPECT_EQ(*a, (std::array<int, 2>{0, 0}));
  a = std::move(b);
  EXPECT_EQ(*a, (std::array<int, 2>{3, 4}));
  EXPECT_EQ(*b, (std::array<int, 2>{0, 0}));
  Value& same = a;
  a = std::move(same);
  EXPECT_EQ(*a, (std::array<int, 2>{3, 4}));
  b = a;
  EXPECT_EQ(*b, *a);
}

}  // namespace
