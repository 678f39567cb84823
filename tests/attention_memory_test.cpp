// Attention of long sequences holds no matrix of scores: what a call adds to the resident memory stays small.
#include <attn/attention.hpp>

#include <gtest/gtest.h>

#include <iostream>

#if defined(__linux__)
#include <sys/resource.h>

namespace {

using attn::Index;
using attn::Tensor;

/// The most memory that was ever resident, in MB.
double peak() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

/// Every page touched, numbers of both signs.
Tensor<float, 4> numbers(Index heads, Index rows, Index size, Index step) {
  Tensor<float, 4> x(1, heads, rows, size);
  for (Index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i * step % 1009) / 1009.F - 0.5F;
  return x;
}

TEST(AttentionMemory, GrowsByLessThan64MegabytesBeyondInputsAndOutput) {
  constexpr Index heads = 8, length = 4096, size = 64;  // 8 MB each; the scores would be 512 MB
  const auto q = numbers(heads, length, size, 7), k = numbers(heads, length, size, 11),
             v = numbers(heads, length, size, 13);
  Tensor<float, 4> y(1, heads, length, size);
  y.setZero();
  const double before = peak();
  attn::scaled_dot_product_attention_into(y, q, k, v, attn::Causal{});
  const double causal = peak();
  attn::scaled_dot_product_attention_into(y, q, k, v);
  const double full = peak();
  std::cout << "  before " << before << " MB, causal +" << causal - before << ", full +" << full - before << '\n';
  EXPECT_LT(full - before, 64.0);

  Tensor<float, 4> weights(1, 1, length, length);  // the measure sees what is really taken
  weights.setZero();
  EXPECT_GT(peak() - full, 32.0);
}

}  // namespace
#endif
