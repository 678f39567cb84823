// Floor 3. Numbers of GGUF files as floats: blocks of quantised ones, and floating-point numbers of other types.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../error.hpp"
#include "../tensor.hpp"
#include "gguf_types.hpp"

namespace attn::detail {

inline constexpr int gguf_group = 32, gguf_super_block = 256;

[[nodiscard]] inline float gguf_half(const std::byte* from) {
  std::uint16_t bits = 0;
  std::memcpy(&bits, from, sizeof bits);
  return static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(bits));
}
[[nodiscard]] inline int byte_at(const std::byte* from, int i) { return std::to_integer<int>(from[i]); }
[[nodiscard]] inline int low_nibble(const std::byte* from, int i) { return byte_at(from, i) & 15; }
[[nodiscard]] inline int high_nibble(const std::byte* from, int i) { return byte_at(from, i) >> 4; }

// In blocks of 32, byte j of the nibbles holds elements j and j + 16.

/// {half d, 16 bytes}: d (n - 8).
inline void dequantise_q4_0(const std::byte* block, float* to) {
  const float d = gguf_half(block);
  for (int j = 0; j < gguf_group / 2; ++j) {
    to[j] = d * static_cast<float>(low_nibble(block + 2, j) - 8);
    to[j + 16] = d * static_cast<float>(high_nibble(block + 2, j) - 8);
  }
}
/// {half d, half m, 16 bytes}: d n + m.
inline void dequantise_q4_1(const std::byte* block, float* to) {
  const float d = gguf_half(block), m = gguf_half(block + 2);
  for (int j = 0; j < gguf_group / 2; ++j) {
    to[j] = d * static_cast<float>(low_nibble(block + 4, j)) + m;
    to[j + 16] = d * static_cast<float>(high_nibble(block + 4, j)) + m;
  }
}
/// The fifth bits of 32 numbers, one bit for each.
[[nodiscard]] inline std::uint32_t fifth_bits(const std::byte* from) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}
[[nodiscard]] inline int fifth_bit(std::uint32_t bits, int i) { return static_cast<int>(bits >> i & 1U) << 4; }
/// {half d, 4 bytes of fifth bits, 16 bytes}: d (n - 16).
inline void dequantise_q5_0(const std::byte* block, float* to) {
  const float d = gguf_half(block);
  const std::uint32_t bits = fifth_bits(block + 2);
  for (int j = 0; j < gguf_group / 2; ++j) {
    to[j] = d * static_cast<float>((low_nibble(block + 6, j) | fifth_bit(bits, j)) - 16);
    to[j + 16] = d * static_cast<float>((high_nibble(block + 6, j) | fifth_bit(bits, j + 16)) - 16);
  }
}
/// {half d, half m, 4 bytes of fifth bits, 16 bytes}: d n + m.
inline void dequantise_q5_1(const std::byte* block, float* to) {
  const float d = gguf_half(block), m = gguf_half(block + 2);
  const std::uint32_t bits = fifth_bits(block + 4);
  for (int j = 0; j < gguf_group / 2; ++j) {
    to[j] = d * static_cast<float>(low_nibble(block + 8, j) | fifth_bit(bits, j)) + m;
    to[j + 16] = d * static_cast<float>(high_nibble(block + 8, j) | fifth_bit(bits, j + 16)) + m;
  }
}
/// {half d, 32 signed bytes}: d q.
inline void dequantise_q8_0(const std::byte* block, float* to) {
  const float d = gguf_half(block);
  for (int j = 0; j < gguf_group; ++j) to[j] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + j]));
}
/// {half d, 16 bytes}: d times a number of a table that is denser around 0.
inline void dequantise_iq4_nl(const std::byte* block, float* to) {
  static constexpr std::array<std::int8_t, 16> table{-127, -104, -83, -65, -49, -35, -22, -10,
                                                     1,    13,   25,  38,  53,  69,  89,  113};
  const float d = gguf_half(block);
  for (int j = 0; j < gguf_group / 2; ++j) {
    to[j] = d * static_cast<float>(table[static_cast<std::size_t>(low_nibble(block + 2, j))]);
    to[j + 16] = d * static_cast<float>(table[static_cast<std::size_t>(high_nibble(block + 2, j))]);
  }
}
/// {byte e, 16 bytes}: 2^(e - 127) times a number of four bits: sign, two of exponent, one of fraction.
/// Source: Open Compute Project, "OCP Microscaling Formats (MX)", 2023.
inline void dequantise_mxfp4(const std::byte* block, float* to) {
  static constexpr std::array<float, 16> table{0, 0.5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -0.5F, -1, -1.5F, -2, -3, -4, -6};
  const auto e = std::to_integer<std::uint32_t>(block[0]);
  const float d = e == 0 ? 0x1p-127F : std::bit_cast<float>(e == 255 ? 0x7FC00000U : e << 23);
  for (int j = 0; j < gguf_group / 2; ++j) {
    to[j] = d * table[static_cast<std::size_t>(low_nibble(block + 1, j))];
    to[j + 16] = d * table[static_cast<std::size_t>(high_nibble(block + 1, j))];
  }
}

// Blocks of 256 are eight groups of 32, or sixteen of 16.

/// Scale and minimum of a group, 6 bits each: four groups in the lower bits of 4 + 4 bytes, four in their upper bits
/// and the last 4 bytes.
struct ScaleAndMinimum {
  float scale, minimum;

  ScaleAndMinimum(const std::byte* packed, int group) {
    int s = 0, m = 0;
    if (group < 4) {
      s = byte_at(packed, group) & 63;
      m = byte_at(packed, group + 4) & 63;
    } else {
      s = low_nibble(packed, group + 4) | byte_at(packed, group - 4) >> 6 << 4;
      m = high_nibble(packed, group + 4) | byte_at(packed, group) >> 6 << 4;
    }
    scale = static_cast<float>(s), minimum = static_cast<float>(m);
  }
};
/// {half d, half dmin, 12 bytes of scales, 128 bytes}: d sc n - dmin m. 32 bytes hold one group in their lower nibbles
/// and the next in their upper ones.
inline void dequantise_q4_k(const std::byte* block, float* to) {
  const float d = gguf_half(block), d_minimum = gguf_half(block + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleAndMinimum of(block + 4, group);
    const float scale = d * of.scale, minimum = d_minimum * of.minimum;
    const std::byte* const numbers = block + 16 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int j = 0; j < 32; ++j)
      to[group * 32 + j] = scale * static_cast<float>(byte_at(numbers, j) >> shift & 15) - minimum;
  }
}
/// {half d, half dmin, 12 bytes of scales, 32 bytes of fifth bits, 128 bytes}: as Q4_K; bit g of byte j belongs to
/// group g.
inline void dequantise_q5_k(const std::byte* block, float* to) {
  const float d = gguf_half(block), d_minimum = gguf_half(block + 2);
  for (int group = 0; group < 8; ++group) {
    const ScaleAndMinimum of(block + 4, group);
    const float scale = d * of.scale, minimum = d_minimum * of.minimum;
    const std::byte *const bits = block + 16, *const numbers = block + 48 + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      const int number = (byte_at(numbers, j) >> shift & 15) | (byte_at(bits, j) >> group & 1) << 4;
      to[group * 32 + j] = scale * static_cast<float>(number) - minimum;
    }
  }
}
/// {128 bytes of lower bits, 64 bytes of upper ones, 16 signed scales, half d}: d sc (n - 32). Half a block is 64 lower
/// and 32 upper bytes: its four groups of 32 are the lower, then the upper nibbles, and two upper bits each from low to
/// high.
inline void dequantise_q6_k(const std::byte* block, float* to) {
  const float d = gguf_half(block + 208);
  for (int group = 0; group < 8; ++group) {
    const int half = group / 4, quarter = group % 4;
    const std::byte *const low = block + half * 64 + quarter % 2 * 32, *const high = block + 128 + half * 32;
    const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
    for (int j = 0; j < 32; ++j) {
      const auto scale = static_cast<std::int8_t>(block[192 + group * 2 + j / 16]);
      const int number = (byte_at(low, j) >> low_shift & 15) | (byte_at(high, j) >> high_shift & 3) << 4;
      to[group * 32 + j] = d * static_cast<float>(scale) * static_cast<float>(number - 32);
    }
  }
}

inline void float_of_f32(const std::byte* from, float* to) { std::memcpy(to, from, sizeof *to); }
inline void float_of_f16(const std::byte* from, float* to) { *to = gguf_half(from); }
inline void float_of_bf16(const std::byte* from, float* to) {
  *to = std::bit_cast<float>(static_cast<std::uint32_t>(byte_at(from, 0) | byte_at(from, 1) << 8) << 16);
}

/// Turns `blocks` blocks that follow each other into floats.
using Dequantise = void (*)(const std::byte* from, float* to, Index blocks);
template <void (*one)(const std::byte*, float*), GgufType type>
void dequantise_each(const std::byte* from, float* to, Index blocks) {
  constexpr GgufTypeFacts facts = *find_gguf_type(static_cast<std::uint32_t>(type));
  for (Index i = 0; i < blocks; ++i) one(from + i * facts.bytes, to + i * facts.block);
}

/// Null for types that attn does not read as floats.
[[nodiscard]] inline Dequantise dequantise_of(GgufType type) {
  static constexpr std::array<std::pair<GgufType, Dequantise>, 13> known{{
      {GgufType::f32, dequantise_each<float_of_f32, GgufType::f32>},
      {GgufType::f16, dequantise_each<float_of_f16, GgufType::f16>},
      {GgufType::bf16, dequantise_each<float_of_bf16, GgufType::bf16>},
      {GgufType::q4_0, dequantise_each<dequantise_q4_0, GgufType::q4_0>},
      {GgufType::q4_1, dequantise_each<dequantise_q4_1, GgufType::q4_1>},
      {GgufType::q5_0, dequantise_each<dequantise_q5_0, GgufType::q5_0>},
      {GgufType::q5_1, dequantise_each<dequantise_q5_1, GgufType::q5_1>},
      {GgufType::q8_0, dequantise_each<dequantise_q8_0, GgufType::q8_0>},
      {GgufType::q4_k, dequantise_each<dequantise_q4_k, GgufType::q4_k>},
      {GgufType::q5_k, dequantise_each<dequantise_q5_k, GgufType::q5_k>},
      {GgufType::q6_k, dequantise_each<dequantise_q6_k, GgufType::q6_k>},
      {GgufType::iq4_nl, dequantise_each<dequantise_iq4_nl, GgufType::iq4_nl>},
      {GgufType::mxfp4, dequantise_each<dequantise_mxfp4, GgufType::mxfp4>},
  }};
  for (const auto& [known_type, function] : known)
    if (known_type == type) return function;
  return nullptr;
}

}  // namespace attn::detail
