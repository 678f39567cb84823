#include <attn/attn.hpp>

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <utility>

namespace {

using attn::Index;
using attn::PackedMatrix;
using attn::Tensor;
using attn::View;

template <class T>
Tensor<T, 2> numbered(Index out, Index in) {
  Tensor<T, 2> matrix(out, in);
  for (Index i = 0; i < matrix.size(); ++i) matrix.data()[i] = static_cast<T>(static_cast<float>(i % 251 + 1));
  return matrix;
}

template <class T>
class PackedMatrixOf : public testing::Test {};
using Types = testing::Types<float, double, Eigen::half, Eigen::bfloat16>;
TYPED_TEST_SUITE(PackedMatrixOf, Types);

TYPED_TEST(PackedMatrixOf, GivesBackWhatWasSet) {
  using T = TypeParam;
  constexpr Index width = PackedMatrix<T>::width;
  for (const Index out : {Index{1}, Index{7}, width - 1, width, width + 1, 3 * width + 5})
    for (const Index in : {1, 7, 15, 16, 17, 33, 100}) {
      PackedMatrix<T> packed(out, in);
      const Tensor<T, 2> matrix = numbered<T>(out, in);
      packed.set(matrix);
      const Tensor<T, 2> back = packed.get();
      ASSERT_EQ(back.dimension(0), out);
      ASSERT_EQ(back.dimension(1), in);
      for (Index i = 0; i < matrix.size(); ++i)
        ASSERT_EQ(static_cast<double>(back.data()[i]), static_cast<double>(matrix.data()[i])) << out << ' ' << in;
    }
}

TYPED_TEST(PackedMatrixOf, StoresPanelsAsTheKernelReadsThem) {
  using T = TypeParam;
  constexpr Index width = PackedMatrix<T>::width, out = 2 * width + 3, in = 21;
  PackedMatrix<T> packed(out, in);
  const Tensor<T, 2> matrix = numbered<T>(out, in);
  packed.set(matrix);
  for (Index o = 0; o < 3 * width; ++o)
    for (Index i = 0; i < in; ++i) {
      const double there = static_cast<double>(packed.data()[(o / width * in + i) * width + o % width]);
      ASSERT_EQ(there, o < out ? static_cast<double>(matrix(o, i)) : 0.0) << o << ' ' << i;
      if (o < out) {
        ASSERT_EQ(there, static_cast<double>(std::as_const(packed).row(o)[i * width]));
      }
    }
}

TEST(PackedMatrix, TakesViewsOfAnyStrides) {
  Tensor<float, 2> transposed = numbered<float>(20, 70);
  PackedMatrix<float> packed(70, 20);
  packed.set(View<const float, 2>(transposed.data(), {70, 20}, {1, 70}));
  const Tensor<float, 2> back = packed.get();
  for (Index o = 0; o < 70; ++o)
    for (Index i = 0; i < 20; ++i) ASSERT_EQ(back(o, i), transposed(i, o));
}

TEST(PackedMatrix, RefusesAnotherShape) {
  PackedMatrix<float> packed(3, 4);
  try {
    packed.set(Tensor<float, 2>(4, 3));
    FAIL() << "took [4,3] for [3,4]";
  } catch (const attn::Error& error) {
    EXPECT_STREQ(error.what(), "[attn::PackedMatrix::set] matrix [out,in], expected [3,4], got [4,3]");
  }
}

TEST(PackedMatrix, RefusesSizesThatMemoryCannotHold) {
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_THROW(PackedMatrix<float>(most, 1), attn::Error);
  EXPECT_THROW(PackedMatrix<float>(1, most), attn::Error);
  EXPECT_THROW(PackedMatrix<float>(-1, 4), attn::Error);
}

TEST(PackedMatrix, IsEmptyOnceMovedFrom) {
  PackedMatrix<float> packed(3, 4);
  const PackedMatrix<float> taken(std::move(packed));
  EXPECT_EQ(taken.out(), 3);
  EXPECT_EQ(packed.out(), 0);  // NOLINT: what is promised of it
  EXPECT_EQ(packed.get().size(), 0);
}

}  // namespace
