// Floor 0. The integer of shapes, and the one way in which attn refuses bad input.
#pragma once

#include <cstddef>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace attn {

/// Sizes, offsets and strides: signed and 64 bits wide on 64-bit machines, the same type as Eigen::Index.
using Index = std::ptrdiff_t;

/// A shape to be printed in a message: "[2,7,48]".
using Shape = std::span<const Index>;

/// What attn throws for bad input, always before any work is done.
/// The text reads `[attn::function] what, expected ..., got [2,7,48]`.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

namespace detail {

inline void append(std::string& text, std::string_view part) { text += part; }
inline void append(std::string& text, Shape shape) {
  text += '[';
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ',';
    text += std::to_string(shape[i]);
  }
  text += ']';
}
template <class Number>
  requires std::is_arithmetic_v<Number>
void append(std::string& text, Number number) {
  std::string digits = std::to_string(number);
  if constexpr (std::is_floating_point_v<Number>) {  // "0.500000" reads better as "0.5"
    if (digits.find('.') != std::string::npos) digits.erase(digits.find_last_not_of('0') + 1);
    if (digits.back() == '.') digits.pop_back();
  }
  text += digits;
}

template <class... Parts>
[[noreturn]] void fail(std::string_view function, const Parts&... parts) {
  std::string text = "[attn::";
  text += function;
  text += "] ";
  (append(text, parts), ...);
  throw Error(text);
}

/// Throws unless `ok`. The parts (text, numbers, shapes) are put together only when it throws: a check that passes
/// allocates nothing.
template <class... Parts>
constexpr void require(bool ok, std::string_view function, const Parts&... parts) {
  if (!ok) fail(function, parts...);
}

}  // namespace detail
}  // namespace attn
