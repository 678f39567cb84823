// Edge. Elements of tensors as files store them, and their conversion to the scalars of attn.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

#include "../tensor.hpp"

static_assert(std::endian::native == std::endian::little,
              "attn: files of tensors are little-endian, and so must be the CPU");

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// The name of a scalar's type in safetensors files.
template <Scalar T>
inline constexpr std::string_view element_name = std::is_same_v<T, double>        ? "F64"
                                                 : std::is_same_v<T, float>       ? "F32"
                                                 : std::is_same_v<T, Eigen::half> ? "F16"
                                                                                  : "BF16";

/// How many bits an element takes, 0 of a type that does not exist.
[[nodiscard]] constexpr int element_bits(std::string_view dtype) {
  struct Type {
    std::string_view name;
    int bits;
  };
  constexpr std::array<Type, 19> types{{{"F64", 64},
                                        {"I64", 64},
                                        {"U64", 64},
                                        {"C64", 64},
                                        {"F32", 32},
                                        {"I32", 32},
                                        {"U32", 32},
                                        {"F16", 16},
                                        {"BF16", 16},
                                        {"I16", 16},
                                        {"U16", 16},
                                        {"I8", 8},
                                        {"U8", 8},
                                        {"BOOL", 8},
                                        {"F8_E4M3", 8},
                                        {"F8_E5M2", 8},
                                        {"F8_E8M0", 8},
                                        {"F6_E2M3", 6},
                                        {"F4", 4}}};
  for (const Type& type : types)
    if (type.name == dtype) return type.bits;
  return dtype == "F6_E3M2" ? 6 : 0;
}

/// A number as float, rounded to odd where it does not fit: rounding that once more to 16 bits gives what rounding the number
/// at once would.
[[nodiscard]] inline float round_to_odd(double x) {
  const auto y = static_cast<float>(x);
  if (static_cast<double>(y) == x || x != x) return y;
  auto bits = std::bit_cast<std::uint32_t>(y);
  const double magnitude = x < 0 ? -x : x, rounded = static_cast<double>(y < 0 ? -y : y);
  if (rounded > magnitude) --bits;  // towards 0
  return std::bit_cast<float>(bits | 1U);
}

/// A number of a file as a scalar, rounded to nearest, ties to even.
template <Scalar T, class From>
[[nodiscard]] T to_scalar(From x) {
  if constexpr (std::is_same_v<T, From>)
    return x;
  else if constexpr (sizeof(T) >= 4 && (std::is_same_v<From, Eigen::half> || std::is_same_v<From, Eigen::bfloat16>))
    return static_cast<T>(static_cast<float>(x));
  else if constexpr (sizeof(T) >= 4)
    return static_cast<T>(x);
  else
    return static_cast<T>(round_to_odd(static_cast<double>(x)));
}

/// Converts n elements; the bytes need no alignment. Returns false of a type that attn does not read.
template <Scalar T>
[[nodiscard]] bool convert_elements(std::string_view dtype, std::span<const std::byte> bytes, T* to, Index n) {
  const auto from = [&]<class From>(From) {
    if constexpr (std::is_same_v<T, From>) {
      if (n > 0) std::memcpy(static_cast<void*>(to), bytes.data(), static_cast<std::size_t>(n) * sizeof(T));
    } else {
      for (Index i = 0; i < n; ++i) {
        From x;
        std::memcpy(static_cast<void*>(&x), bytes.data() + static_cast<std::size_t>(i) * sizeof x, sizeof x);
        to[i] = to_scalar<T>(x);
      }
    }
    return true;
  };
  if (dtype == "F32") return from(float{});
  if (dtype == "F16") return from(Eigen::half{});
  if (dtype == "BF16") return from(Eigen::bfloat16{});
  if (dtype == "F64") return from(double{});
  if (dtype == "I64") return from(std::int64_t{});
  if (dtype == "U64") return from(std::uint64_t{});
  if (dtype == "I32") return from(std::int32_t{});
  if (dtype == "U32") return from(std::uint32_t{});
  if (dtype == "I16") return from(std::int16_t{});
  if (dtype == "U16") return from(std::uint16_t{});
  if (dtype == "I8") return from(std::int8_t{});
  if (dtype == "U8" || dtype == "BOOL") return from(std::uint8_t{});
  return false;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
