// Edge. Elements of tensors as files store them, and their conversion to the scalars of attn.
#pragma once

#include <array>
#include <bit>
#include <concepts>
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
  constexpr std::array<Type, 22> types{
      {{"F64", 64},        {"I64", 64},    {"U64", 64},    {"C64", 64},    {"F32", 32},    {"I32", 32},
       {"U32", 32},        {"F16", 16},    {"BF16", 16},   {"I16", 16},    {"U16", 16},    {"I8", 8},
       {"U8", 8},          {"BOOL", 8},    {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
       {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F4", 4}}};
  for (const Type& type : types)
    if (type.name == dtype) return type.bits;
  return 0;
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

/// An integer as double, rounded to odd where it does not fit.
[[nodiscard]] constexpr double integer_to_odd(std::integral auto x) {
  if constexpr (sizeof x == 8) {
    constexpr int digits = 53, spare = 64 - digits;
    constexpr auto most = decltype(x){1} << digits, low = (decltype(x){1} << spare) - 1;
    const bool fits = x <= most && (std::is_unsigned_v<decltype(x)> || x >= decltype(x){0} - most);
    return fits ? static_cast<double>(x) : static_cast<double>((x >> spare) | ((x & low) != 0)) * (1 << spare);
  }
  return static_cast<double>(x);
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
  else if constexpr (std::is_integral_v<From>)
    return static_cast<T>(round_to_odd(integer_to_odd(x)));
  else
    return static_cast<T>(round_to_odd(static_cast<double>(x)));
}

/// Calls f with an element of a dtype, all zero. Returns false of a dtype that attn does not read.
template <class F>
constexpr bool with_element(std::string_view dtype, const F& f) {
  bool known = true;
  if (dtype == "F32")
    f(float{});
  else if (dtype == "F16")
    f(Eigen::half{});
  else if (dtype == "BF16")
    f(Eigen::bfloat16{});
  else if (dtype == "F64")
    f(double{});
  else if (dtype == "I64")
    f(std::int64_t{});
  else if (dtype == "U64")
    f(std::uint64_t{});
  else if (dtype == "I32")
    f(std::int32_t{});
  else if (dtype == "U32")
    f(std::uint32_t{});
  else if (dtype == "I16")
    f(std::int16_t{});
  else if (dtype == "U16")
    f(std::uint16_t{});
  else if (dtype == "I8")
    f(std::int8_t{});
  else if (dtype == "U8")
    f(std::uint8_t{});
  else if (dtype == "BOOL")
    f(bool{});
  else
    known = false;
  return known;
}
/// Whether attn reads elements of a dtype.
[[nodiscard]] inline bool is_readable(std::string_view dtype) {
  return with_element(dtype, [](auto) {});
}

/// Converts n elements of a dtype that attn reads. The bytes need no alignment; a BOOL of any byte but 0 is 1.
template <Scalar T>
void convert_elements(std::string_view dtype, std::span<const std::byte> bytes, T* to, Index n) {
  with_element(dtype, [&]<class From>(From) {
    if constexpr (std::is_same_v<T, From>) {
      if (n > 0) std::memcpy(static_cast<void*>(to), bytes.data(), static_cast<std::size_t>(n) * sizeof(T));
    } else if constexpr (std::is_same_v<From, bool>) {
      for (Index i = 0; i < n; ++i)
        to[i] = static_cast<T>(bytes[static_cast<std::size_t>(i)] == std::byte{0} ? 0.F : 1.F);
    } else {
      for (Index i = 0; i < n; ++i) {
        From x;
        std::memcpy(static_cast<void*>(&x), bytes.data() + static_cast<std::size_t>(i) * sizeof x, sizeof x);
        to[i] = to_scalar<T>(x);
      }
    }
  });
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
