// Where elements of views lie: checked against lists of the addresses themselves.
#include <attn/overlap.hpp>

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <vector>

namespace {

using attn::Index;
namespace detail = attn::detail;

/// A view of `bytes` wide elements at an address that stands for memory: nothing is read.
struct Strided {
  std::uintptr_t address;
  Index bytes;
  std::vector<Index> shape, stride;

  [[nodiscard]] detail::Layout layout() const {
    return detail::make_layout("x", reinterpret_cast<const void*>(address), bytes, shape, stride);
  }
  /// The first byte of each element, in the order of the indices.
  [[nodiscard]] std::vector<std::uintptr_t> elements() const {
    std::vector<std::uintptr_t> all{address};
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      std::vector<std::uintptr_t> next;
      for (const std::uintptr_t from : all)
        for (Index i = 0; i < shape[axis]; ++i)
          next.push_back(from + static_cast<std::uintptr_t>(i * stride[axis] * bytes));
      all = next;
    }
    return all;
  }
  [[nodiscard]] std::set<std::uintptr_t> memory() const {
    std::set<std::uintptr_t> all;
    for (const std::uintptr_t element : elements())
      for (Index i = 0; i < bytes; ++i) all.insert(element + static_cast<std::uintptr_t>(i));
    return all;
  }
};

bool overlap(const Strided& a, const Strided& b) { return detail::overlap(a.layout(), b.layout()); }
bool truly_overlap(const Strided& a, const Strided& b) {
  const auto of_a = a.memory();
  for (const std::uintptr_t byte : b.memory())
    if (of_a.count(byte) != 0) return true;
  return false;
}

std::string refusal(std::vector<Index> shape, std::vector<Index> stride) {
  try {
    detail::check_view(shape, stride, 4);
  } catch (const attn::Error& error) {
    return error.what();
  }
  return "";
}

TEST(ViewCheck, PassesWhatMemoryCanHold) {
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_EQ(refusal({2, 3}, {3, 1}), "");
  EXPECT_EQ(refusal({2, 3}, {0, 0}), "");
  EXPECT_EQ(refusal({1, 1}, {most, most}), "");
  EXPECT_EQ(refusal({2}, {most / 4 - 1}), "");
  EXPECT_EQ(refusal({0, 5}, {most, -1}), "");  // no element
}

TEST(ViewCheck, RefusesNegativeSizesAndStrides) {
  EXPECT_EQ(refusal({-2, -1}, {1, 1}), "[attn::View] shape, expected no negative size, got [-2,-1]");
  EXPECT_EQ(refusal({2, 3}, {-3, 1}), "[attn::View] strides, expected none below 0, got [-3,1]");
}

TEST(ViewCheck, RefusesElementsBeyondMemory) {
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_NE(refusal({Index{1} << 32, Index{1} << 32}, {0, 0}).find("[attn::View] shape"), std::string::npos);
  for (const Index stride : {Index{1} << 62, most, most / 4}) {
    EXPECT_NE(refusal({2, 3}, {stride, 1}).find("[attn::View] shape and strides"), std::string::npos) << stride;
    EXPECT_NE(refusal({3, 3}, {stride, stride}).find("[attn::View] shape and strides"), std::string::npos) << stride;
  }
}

TEST(Distinct, IsFalseForAViewThatRepeatsAnElement) {
  const auto distinct = [](std::vector<Index> shape, std::vector<Index> stride) {
    const Strided x{4096, 4, std::move(shape), std::move(stride)};
    return detail::is_distinct(x.layout());
  };
  EXPECT_TRUE(distinct({2, 3, 4}, {12, 4, 1}));
  EXPECT_TRUE(distinct({2, 3, 4}, {4, 8, 1}));    // axes in another order
  EXPECT_TRUE(distinct({2, 3, 4}, {100, 9, 2}));  // gaps
  EXPECT_TRUE(distinct({1, 3, 1}, {0, 1, 0}));    // an axis of size 1 repeats nothing
  EXPECT_TRUE(distinct({0, 3}, {0, 0}));          // nothing is reached
  EXPECT_FALSE(distinct({2, 3}, {0, 1}));
  EXPECT_FALSE(distinct({2, 3}, {3, 0}));
  EXPECT_FALSE(distinct({2, 3}, {2, 1}));  // the last of one row is the first of the next
  EXPECT_FALSE(distinct({2, 2}, {1, 1}));
}

TEST(Distinct, IsNeverTrueForARandomViewThatRepeatsAnElement) {
  std::mt19937 random(3);
  int passed = 0;
  for (int i = 0; i < 5000; ++i) {
    Strided x{4096, 1, {}, {}};
    for (int axis = 0; axis < 3; ++axis) {
      x.shape.push_back(static_cast<Index>(random() % 4));
      x.stride.push_back(static_cast<Index>(random() % 12));
    }
    const auto elements = x.elements();
    const bool truly = std::set<std::uintptr_t>(elements.begin(), elements.end()).size() == elements.size();
    ASSERT_TRUE(truly || !detail::is_distinct(x.layout()));
    passed += detail::is_distinct(x.layout()) ? 1 : 0;
  }
  EXPECT_GT(passed, 500);
}

TEST(Overlap, IsFoundWhereOneByteIsShared) {
  const Strided a{4096, 4, {2, 3}, {3, 1}};
  EXPECT_TRUE(overlap(a, a));
  EXPECT_TRUE(overlap(a, {4096 + 20, 4, {5}, {1}}));
  EXPECT_TRUE(overlap(a, {4096 + 23, 1, {1}, {1}}));
  EXPECT_FALSE(overlap(a, {4096 + 24, 4, {5}, {1}}));
  EXPECT_TRUE(overlap({4096 - 12, 4, {2, 2}, {2, 1}}, a));
  EXPECT_FALSE(overlap({4096 - 16, 4, {2, 2}, {2, 1}}, a));
}

TEST(Overlap, IsFalseForAnEmptyView) {
  const Strided a{4096, 4, {2, 3}, {3, 1}};
  EXPECT_FALSE(overlap(a, {4096, 4, {2, 0}, {3, 1}}));
  EXPECT_FALSE(overlap({0, 4, {0}, {0}}, a));
}

// Queries, keys, values and output are quarters of one buffer [B,S,4E].
TEST(Overlap, IsFalseForSlicesOfOneBuffer) {
  constexpr Index B = 3, H = 4, S = 50, D = 16, E = H * D;
  const auto slice = [](Index at, Index heads) {
    return Strided{4096 + static_cast<std::uintptr_t>(at * 4), 4, {B, heads, S, D}, {S * 4 * E, D, 4 * E, 1}};
  };
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 4; ++j) EXPECT_EQ(overlap(slice(i * E, H), slice(j * E, H)), i == j) << i << ", " << j;
  EXPECT_FALSE(overlap(slice(0, H), slice(E, H / 2)));
  EXPECT_TRUE(overlap(slice(0, H), slice(E - 1, H)));
  EXPECT_TRUE(overlap(slice(E, H), slice(E + D, 1)));
  EXPECT_TRUE(overlap(slice(2 * E, H), slice(2 * E + S * 4 * E, H)));  // the same quarter, from the second entry on
}

TEST(Overlap, AgreesWithTheAddressesOfRandomViews) {
  std::mt19937 random(7);
  const auto below = [&](unsigned n) { return static_cast<Index>(random() % n); };
  const auto view = [&] {
    Strided x{4096 + static_cast<std::uintptr_t>(below(60)), below(2) == 0 ? 1 : 4, {}, {}};
    for (Index axis = below(3); axis >= 0; --axis) {
      x.shape.push_back(1 + below(4));
      x.stride.push_back(below(4) == 0 ? below(3) : below(30));
    }
    return x;
  };
  int shared = 0;
  for (int i = 0; i < 20000; ++i) {
    const Strided a = view(), b = view();
    const bool truth = truly_overlap(a, b);
    shared += truth ? 1 : 0;
    ASSERT_EQ(overlap(a, b), truth) << "case " << i;
  }
  EXPECT_GT(shared, 3000);
  EXPECT_LT(shared, 17000);
}

TEST(Overlap, IsFoundSoonForStridesWithoutACommonFactor) {
  const Strided a{4096, 2, {1009, 1013, 1019, 1021}, {1000003 * 8, 1299709 * 4, 611953 * 2, 350377}};
  Strided b{4097, 2, {1009, 1013, 1019, 1021}, {999983 * 8, 1299689 * 4, 611951 * 2, 350381}};
  for (int i = 0; i < 100; ++i, b.address += 2) static_cast<void>(overlap(a, b));  // a search of all would take years
}

}  // namespace
