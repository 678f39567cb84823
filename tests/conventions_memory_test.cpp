// Conventions: layout, offsets, and what memory is touched, with pages that the system guards.

#include "support.hpp"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>

#include <memory>

#if defined(__SANITIZE_THREAD__)
#define ATTN_TEST_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define ATTN_TEST_TSAN 1
#endif
#endif

namespace {

using attn::Index;
using attn::Padding;
using attn::scaled_dot_product_attention;
using attn::Tensor;
using attn::View;
using attn_test::Answer;
using attn_test::ask_oracle;
using attn_test::expect_close;
using attn_test::keep_all;
using attn_test::many_sizes;
using attn_test::random_inputs;
using attn_test::same_score;
using attn_test::Sizes;
using attn_test::to;

// ---- layout: row-major, [B,S,E] outside, [B,H,S,D] as strided views inside: no transpose is written ----

TEST(Conventions, LayoutSplitsHeadsByStrides) {
  Tensor<float, 3> x(2, 5, 24);
  const View<float, 4> heads = attn::split_heads(x, 3);
  EXPECT_EQ(heads.data(), x.data());
  EXPECT_EQ(heads.shape(), (std::array<Index, 4>{2, 3, 5, 8}));
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 3; ++h)
      for (Index s = 0; s < 5; ++s)
        for (Index d = 0; d < 8; ++d) ASSERT_EQ(&heads(b, h, s, d), &x(b, s, 8 * h + d));
  const Tensor<float, 3>& read_only = x;
  static_assert(std::is_same_v<decltype(attn::split_heads(read_only, 3)), View<const float, 4>>);
}

TEST(Conventions, LayoutIsRowMajor) {
  static_assert(std::is_same_v<attn::Tensor<float, 3>, Eigen::Tensor<float, 3, Eigen::RowMajor>>);
  const View<float, 3> x(nullptr, {2, 3, 4});
  EXPECT_EQ(x.stride(0), 12);
  EXPECT_EQ(x.stride(1), 4);
  EXPECT_EQ(x.stride(2), 1);
}

// ---- keys past a padding length: never read ----

void copy(View<float, 4> to, View<const float, 4> from) {
  for (Index b = 0; b < from.dimension(0); ++b)
    for (Index h = 0; h < from.dimension(1); ++h)
      for (Index s = 0; s < from.dimension(2); ++s)
        for (Index d = 0; d < from.dimension(3); ++d) to(b, h, s, d) = from(b, h, s, d);
}

/// Address space that costs no memory until it is touched; or none, where the system refuses.
class Reserved {
 public:
  explicit Reserved(std::size_t bytes) : bytes_(bytes) {
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) memory_ = static_cast<std::byte*>(memory);
  }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  ~Reserved() {
    if (memory_ != nullptr) munmap(memory_, bytes_);
  }
  [[nodiscard]] float* data() const { return static_cast<float*>(static_cast<void*>(memory_)); }

  /// A copy of x that begins right after a page that cannot be read, or ends right before one.
  static View<float, 4> guarded(std::vector<std::unique_ptr<Reserved>>& homes, const Tensor<float, 4>& x, bool at_end) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)),
               bytes = static_cast<std::size_t>(x.size()) * sizeof(float);
    const std::size_t room = (bytes + page - 1) / page * page;
    homes.push_back(std::make_unique<Reserved>(room + 2 * page));
    std::byte* const begin = homes.back()->memory_;
    EXPECT_EQ(mprotect(begin, page, PROT_NONE), 0);
    EXPECT_EQ(mprotect(begin + page + room, page, PROT_NONE), 0);
    auto* const data = static_cast<float*>(static_cast<void*>(begin + page + (at_end ? room - bytes : 0)));
    std::copy_n(x.data(), x.size(), data);
    return View<float, 4>(data, attn::detail::shape_of(x));
  }

 private:
  std::byte* memory_ = nullptr;
  std::size_t bytes_;
};

// The pages past the length are guarded: a load there would end the program.
TEST(Conventions, PaddingIsNotEvenLoaded) {
  for (const Index S : {3, 40}) {
    const Sizes live{.B = 1, .H = 2, .G = 1, .S = S, .T = 37, .D = 7, .Dv = 5};
    const auto in = random_inputs<float>(live, 9);
    std::vector<std::unique_ptr<Reserved>> homes;
    const auto k = Reserved::guarded(homes, in.k, true), v = Reserved::guarded(homes, in.v, true);
    const std::vector<Index> lengths{37};
    const View<const float, 4> longer_k(k.data(), {1, 1, 90, 7}), longer_v(v.data(), {1, 1, 90, 5});
    const auto y = scaled_dot_product_attention(in.q, longer_k, longer_v, Padding(lengths)).output;
    const auto oracle = ask_oracle(in, keep_all, same_score, {});
    expect_close("output", y, oracle, &Answer::output);
  }
}

TEST(Conventions, NothingOutsideTheTensorsIsReadOrWritten) {
  for (const Sizes& n : many_sizes()) {
    if (n.B * n.S * n.T == 0) continue;
    SCOPED_TRACE(testing::Message() << n);
    const auto in = random_inputs<float>(n, 10);
    for (const bool at_end : {false, true}) {
      std::vector<std::unique_ptr<Reserved>> homes;
      const auto q = Reserved::guarded(homes, in.q, at_end), k = Reserved::guarded(homes, in.k, at_end);
      const auto v = Reserved::guarded(homes, in.v, at_end);
      const auto y = Reserved::guarded(homes, Tensor<float, 4>(n.B, n.H, n.S, n.Dv), at_end);
      attn::scaled_dot_product_attention_into(y, q, k, v);
      EXPECT_TRUE(std::isfinite(y(0, 0, 0, 0)));
    }
  }
}

// ---- offsets: 64-bit, also inside kernels ----

TEST(Conventions, OffsetsAre64Bit) {
#ifdef ATTN_TEST_TSAN
  GTEST_SKIP() << "the sanitizer has no room for so many addresses";
#endif
  if (sizeof(Index) < 8) GTEST_SKIP() << "a 32-bit machine";
  // Every stride but the last is beyond 2^31 elements: up to 240 GB of addresses a tensor. Only the pages of the
  // elements are ever touched.
  constexpr Index far = (Index{1} << 31) + 16;
  for (const Index S : {2, 7}) {
    const Sizes n{.B = 2, .H = 2, .G = 2, .S = S, .T = 3, .D = 5, .Dv = 7};
    const auto in = random_inputs<float>(n, 11);
    std::vector<std::unique_ptr<Reserved>> homes;
    const auto spread = [&](const Tensor<float, 4>& x) {
      const auto shape = attn::detail::shape_of(x);
      homes.push_back(std::make_unique<Reserved>(static_cast<std::size_t>(4 * shape[2] * far) * sizeof(float)));
      const View<float, 4> view(homes.back()->data(), shape, {far, 2 * far, 4 * far, 1});
      if (view.data() != nullptr) copy(view, View<const float, 4>(x));
      return view;
    };
    Tensor<float, 4> got(n.B, n.H, n.S, n.Dv);
    got.setZero();
    const auto q = spread(in.q), k = spread(in.k), v = spread(in.v), y = spread(got);
    for (const auto& home : homes)
      if (home->data() == nullptr) GTEST_SKIP() << "the system lends no 240 GB of addresses";
    attn::scaled_dot_product_attention_into(y, q, k, v);
    copy(View<float, 4>(got), View<const float, 4>(y));
    const auto oracle = ask_oracle(in, keep_all, same_score, {});
    expect_close("output", got, oracle, &Answer::output);
  }
}

}  // namespace
#endif
