// An attention of the user's own: a mask type and a score function that attn does not have, compiled into its kernel.
// Checked against the same thing written out as one large tensor and added to the scores, which any library can do.
#include <attn/attn.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>

// Several documents of `length` tokens packed into one sequence: a token sees its own document only.
struct SameDocument {
  int length;
  bool keep(attn::Position at) const { return at.query / length == at.key / length; }

  // What makes it fast. Most blocks of scores lie between two documents, are called empty, and cost nothing.
  attn::Coverage cover(attn::Block block) const {
    const int first_query = block.first.query / length, last_query = block.last.query / length;
    const int first_key = block.first.key / length, last_key = block.last.key / length;
    if (last_query < first_key || last_key < first_query) return attn::Coverage::empty;
    const bool one_document = first_query == last_query && first_key == last_key;  // and the same one, since they meet
    return one_document ? attn::Coverage::full : attn::Coverage::mixed;
  }
};

int main() {
  constexpr attn::Index B = 1, H = 4, S = 512, D = 64;
  attn::Tensor<float, 4> q(B, H, S, D), k(B, H, S, D), v(B, H, S, D);
  for (auto* tensor : {&q, &k, &v}) tensor->setRandom();

  // The variant, in five lines: tokens further away count for less, by the square of their distance.
  const SameDocument same_document{128};
  const auto nearer = [](auto score, attn::Position at) { return score - 0.002F * at.distance() * at.distance(); };
  const auto fused = [&] {
    return attn::scaled_dot_product_attention(q, k, v, same_document & attn::Causal{}, nearer);
  };

  // The same as a tensor: S x S numbers to make, to keep and to read.
  attn::Tensor<float, 2> bias(S, S);
  for (attn::Index s = 0; s < S; ++s)
    for (attn::Index t = 0; t < S; ++t)
      bias(s, t) = s / 128 == t / 128 && t <= s ? -0.002F * static_cast<float>((s - t) * (s - t))
                                                : -std::numeric_limits<float>::infinity();
  const auto plain = [&] { return attn::scaled_dot_product_attention(q, k, v, bias); };

  const attn::Tensor<float, 4> a = fused().output, b = plain().output;
  float difference = 0.F;
  for (attn::Index i = 0; i < a.size(); ++i) difference = std::max(difference, std::abs(a.data()[i] - b.data()[i]));

  const auto milliseconds = [](const auto& function) {  // median of 9
    std::array<double, 9> times{};
    for (double& time : times) {
      const auto start = std::chrono::steady_clock::now();
      (void)function();
      time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    }
    std::nth_element(times.begin(), times.begin() + 4, times.end());
    return times[4];
  };
  std::printf("a mask type and a score function   %8.2f ms\n", milliseconds(fused));
  std::printf("the same as a [%td,%td] tensor     %8.2f ms\n", S, S, milliseconds(plain));
  std::printf("largest difference                 %.1e\n", static_cast<double>(difference));
  return difference < 1e-5F ? 0 : 1;
}
