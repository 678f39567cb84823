// Floor 0. The integer of shapes, and the one way in which attn refuses bad input.
#pragma once

#include <charconv>
#include <cstddef>
#include <initializer_list>
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

/// A piece of a message: text, a number, a shape. Made only when a check fails: one that passes allocates nothing.
class Part {
 public:
  Part(std::string_view text) : text_(text) {}  // NOLINT: these convert
  Part(const char* text) : text_(text) {}       // NOLINT
  Part(Shape shape) {                           // NOLINT
    text_ = "[";
    for (const Index size : shape) text_ += (text_.size() > 1 ? "," : "") + std::to_string(size);
    text_ += ']';
  }
  template <class Number>
  requires std::is_arithmetic_v<Number> Part(Number number) {  // NOLINT
    char digits[32];                                           // as few digits as tell the number from its neighbours
    text_.assign(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
  }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string text_;
};

[[noreturn]] inline void raise(std::string_view function, std::initializer_list<Part> parts) {
  std::string text = "[attn::" + std::string(function) + "] ";
  for (const Part& part : parts) text += part.text();
  throw Error(text);
}

template <class... Parts>
#if defined(__GNUC__)
[[gnu::cold, gnu::noinline]]  // out of the way of code that checks, and of compile time
#endif
[[noreturn]] void
fail(std::string_view function, Parts... parts) {
  raise(function, {Part(parts)...});
}

/// Throws unless `ok`. Parts go by value so that literals of all lengths share one instantiation.
template <class... Parts>
constexpr void require(bool ok, std::string_view function, Parts... parts) {
  if (!ok) fail(function, parts...);
}

}  // namespace detail
}  // namespace attn
