// Scratch memory laid out by the code that uses it: measuring and handing out agree, and no size overflows.
#include <attn/scratch.hpp>

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

using attn::Index;
using attn::detail::cache_line;
using attn::detail::Scratch;

struct Part {
  std::byte* begin;
  Index bytes;
};
/// Buffers of several types and sizes, as a plan lays them out.
std::vector<Part> lay_out(Scratch& scratch) {
  std::vector<Part> parts;
  const auto take = [&]<class T>(T, Index n) {
    parts.push_back({reinterpret_cast<std::byte*>(scratch.take<T>(n)), n * Index{sizeof(T)}});
  };
  take(float{}, 100);
  take(double{}, 1);
  take(char{}, 0);
  take(char{}, 65);
  take(std::int64_t{}, 8);
  take(float{}, 1);
  return parts;
}

TEST(Scratch, MeasuresWhatItHandsOut) {
  Scratch measured;
  lay_out(measured);
  std::vector<std::byte> memory(static_cast<std::size_t>(measured.size()) + cache_line);
  Scratch carved(memory.data());
  lay_out(carved);
  EXPECT_EQ(carved.size(), measured.size());
  EXPECT_EQ(measured.size(), (7 + 1 + 0 + 2 + 1 + 1) * Index{cache_line});
}

TEST(Scratch, PartsAreAlignedAndDoNotOverlap) {
  Scratch measured;
  lay_out(measured);
  const auto size = static_cast<std::size_t>(measured.size());
  std::vector<std::byte> memory(size + cache_line);
  const auto unaligned = reinterpret_cast<std::uintptr_t>(memory.data()) % cache_line;
  std::byte* const begin = memory.data() + (cache_line - unaligned) % cache_line;
  Scratch scratch(begin);
  const std::byte* free = begin;
  for (const Part& part : lay_out(scratch)) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(part.begin) % cache_line, 0U);
    EXPECT_GE(part.begin, free);
    free = part.begin + part.bytes;
  }
  EXPECT_LE(free, begin + size);
}

TEST(Scratch, GivesNullWhileMeasuring) {
  Scratch scratch;
  for (const Part& part : lay_out(scratch)) EXPECT_EQ(part.begin, nullptr);
}

TEST(Scratch, ACopyGoesOnByItself) {
  std::vector<std::byte> memory(1024);
  Scratch scratch(memory.data());
  static_cast<void>(scratch.take<float>(16));
  Scratch copy = scratch;
  EXPECT_EQ(copy.take<float>(1), scratch.take<float>(1));
  EXPECT_EQ(copy.size(), scratch.size());
}

TEST(Scratch, SizesThatNoMemoryHoldsStayLarge) {
  constexpr Index most = std::numeric_limits<Index>::max(), large = most / 2;
  for (const Index n : {most, most / 8 + 1, large / 8 + 1}) {
    Scratch scratch;
    static_cast<void>(scratch.take<double>(n));
    EXPECT_EQ(scratch.size(), large) << n;
    static_cast<void>(scratch.take<float>(1));
    static_cast<void>(scratch.take<double>(n));
    EXPECT_GE(scratch.size(), large) << "later parts must not bring it back";
  }
  Scratch sum;  // no part is too large by itself
  for (int i = 0; i < 5; ++i) static_cast<void>(sum.take<char>(large / 4));
  EXPECT_GE(sum.size(), large);
}

}  // namespace
