// Floor 1. The types of tensors and of metadata in GGUF files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace attn {

/// The type of a tensor in a GGUF file: how its numbers are stored. The values are those in the file.
/// Source: ggml.h, ggml_type.
enum class GgufType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
};

/// The type of a value in the metadata. The values are those in the file.
enum class GgufValueType : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

}  // namespace attn

namespace attn::detail {

/// What the length of a tensor follows from.
struct GgufTypeFacts {
  GgufType type;
  std::string_view name;
  std::uint32_t block;  ///< numbers that are stored together
  std::uint32_t bytes;  ///< of a block
};

inline constexpr std::array<GgufTypeFacts, 32> gguf_types{{
    {GgufType::f32, "F32", 1, 4},
    {GgufType::f16, "F16", 1, 2},
    {GgufType::q4_0, "Q4_0", 32, 18},
    {GgufType::q4_1, "Q4_1", 32, 20},
    {GgufType::q5_0, "Q5_0", 32, 22},
    {GgufType::q5_1, "Q5_1", 32, 24},
    {GgufType::q8_0, "Q8_0", 32, 34},
    {GgufType::q8_1, "Q8_1", 32, 36},
    {GgufType::q2_k, "Q2_K", 256, 84},
    {GgufType::q3_k, "Q3_K", 256, 110},
    {GgufType::q4_k, "Q4_K", 256, 144},
    {GgufType::q5_k, "Q5_K", 256, 176},
    {GgufType::q6_k, "Q6_K", 256, 210},
    {GgufType::q8_k, "Q8_K", 256, 292},
    {GgufType::iq2_xxs, "IQ2_XXS", 256, 66},
    {GgufType::iq2_xs, "IQ2_XS", 256, 74},
    {GgufType::iq3_xxs, "IQ3_XXS", 256, 98},
    {GgufType::iq1_s, "IQ1_S", 256, 50},
    {GgufType::iq4_nl, "IQ4_NL", 32, 18},
    {GgufType::iq3_s, "IQ3_S", 256, 110},
    {GgufType::iq2_s, "IQ2_S", 256, 82},
    {GgufType::iq4_xs, "IQ4_XS", 256, 136},
    {GgufType::i8, "I8", 1, 1},
    {GgufType::i16, "I16", 1, 2},
    {GgufType::i32, "I32", 1, 4},
    {GgufType::i64, "I64", 1, 8},
    {GgufType::f64, "F64", 1, 8},
    {GgufType::iq1_m, "IQ1_M", 256, 56},
    {GgufType::bf16, "BF16", 1, 2},
    {GgufType::tq1_0, "TQ1_0", 256, 54},
    {GgufType::tq2_0, "TQ2_0", 256, 66},
    {GgufType::mxfp4, "MXFP4", 32, 17},
}};

/// Null for a number that stands for no type.
[[nodiscard]] constexpr const GgufTypeFacts* find_gguf_type(std::uint32_t number) {
  for (const GgufTypeFacts& facts : gguf_types)
    if (static_cast<std::uint32_t>(facts.type) == number) return &facts;
  return nullptr;
}

/// Bytes of a value in the metadata; 0 for strings, arrays, and numbers that stand for no type.
[[nodiscard]] constexpr std::size_t gguf_value_bytes(std::uint32_t number) {
  constexpr std::array<std::size_t, 13> bytes{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return number < bytes.size() ? bytes[number] : 0;
}

[[nodiscard]] constexpr std::string_view gguf_value_name(std::uint32_t number) {
  constexpr std::array<std::string_view, 13> names{"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                   "bool", "string", "array", "u64", "i64", "f64"};
  return number < names.size() ? names[number] : "unknown";
}

}  // namespace attn::detail

namespace attn {

/// The name of a type as GGUF files are labelled with it: "Q8_0".
[[nodiscard]] constexpr std::string_view gguf_type_name(GgufType type) {
  const detail::GgufTypeFacts* const facts = detail::find_gguf_type(static_cast<std::uint32_t>(type));
  return facts != nullptr ? facts->name : "unknown";
}

}  // namespace attn
