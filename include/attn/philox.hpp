// Floor 1. Philox4x32-10, a counter-based random number generator, and dropout as a pure function of position.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace attn {

/// Maps each x to a different number whose bits look random.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014.
[[nodiscard]] constexpr std::uint64_t splitmix64(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9U;
  x = (x ^ x >> 27) * 0x94D049BB133111EBU;
  return x ^ x >> 31;
}

/// Returns a seed that no other call in this process gets. The n-th seed is the same in every run of a program.
[[nodiscard]] inline std::uint64_t fresh_seed() noexcept {
  static std::atomic<std::uint64_t> drawn{0};
  return splitmix64(drawn.fetch_add(1, std::memory_order_relaxed));
}

namespace detail {

/// One of Philox's ten rounds.
constexpr void philox_round(std::uint32_t& c0, std::uint32_t& c1, std::uint32_t& c2, std::uint32_t& c3,
                            const std::array<std::uint32_t, 2>& key) {
  const std::uint64_t a = std::uint64_t{0xD2511F53U} * c0, b = std::uint64_t{0xCD9E8D57U} * c2;
  c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ key[0];
  c1 = static_cast<std::uint32_t>(b);
  c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ key[1];
  c3 = static_cast<std::uint32_t>(a);
}
/// The key of the next round.
[[nodiscard]] constexpr std::array<std::uint32_t, 2> philox_next(const std::array<std::uint32_t, 2>& key) {
  return {key[0] + 0x9E3779B9U, key[1] + 0xBB67AE85U};
}

}  // namespace detail

/// Four random words for a counter and a key. Passes the known-answer tests of the Random123 distribution.
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
[[nodiscard]] constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                                std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round, key = detail::philox_next(key))
    detail::philox_round(counter[0], counter[1], counter[2], counter[3], key);
  return counter;
}

/// The key of a seed.
[[nodiscard]] constexpr std::array<std::uint32_t, 2> philox_key(std::uint64_t seed) {
  return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
}

/// Which elements inverted dropout keeps, and by what it multiplies them: a pure function of seed, call and position,
/// so it does not depend on tiling, thread count or instruction set.
struct DropoutRule {
  std::uint64_t seed = 0;       ///< of the random numbers
  std::uint32_t call = 0;       ///< which use of the seed this is
  std::uint64_t threshold = 0;  ///< p * 2^32: an element is dropped where its random word is below
  double scale = 1.0;           ///< 1 / (the probability that the threshold keeps), or 0 where it keeps nothing

  DropoutRule() = default;
  /// The caller has checked that p is in [0,1].
  constexpr DropoutRule(double p, std::uint64_t seed_, std::uint32_t call_)
      : seed(seed_),
        call(call_),
        threshold(static_cast<std::uint64_t>(p * 4294967296.0)),
        scale(threshold < two_to_32 ? 4294967296.0 / static_cast<double>(two_to_32 - threshold) : 0.0) {}

  static constexpr std::uint64_t two_to_32 = std::uint64_t{1} << 32;

  [[nodiscard]] constexpr bool active() const { return threshold > 0; }
  [[nodiscard]] constexpr std::array<std::uint32_t, 2> key() const { return philox_key(seed); }

  /// Whether the element at `column` of a row is kept; `row` and `plane` name the row. Four columns share a Philox call.
  [[nodiscard]] constexpr bool keep(std::uint32_t column, std::uint32_t row, std::uint32_t plane) const {
    return philox4x32({column / 4, row, plane, call}, key())[column % 4] >= threshold;
  }
};

}  // namespace attn
