// Floor 0. The integer of shapes, and the one way in which attn refuses bad input.
#pragma once

#include "config.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

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

/// Spares the conversion of span from an array, which instantiates a dozen concepts for each rank.
template <std::size_t Rank>
[[nodiscard]] constexpr Shape as_shape(const std::array<Index, Rank>& sizes) {
  return {sizes.data(), Rank};
}
[[nodiscard]] inline bool same_shape(Shape a, Shape b) {
  bool same = a.size() == b.size();
  for (std::size_t axis = 0; same && axis < a.size(); ++axis) same = a.data()[axis] == b.data()[axis];
  return same;
}

/// A piece of a message: text, a number, a shape. It becomes text only when a check has failed. Made by hand, since
/// streams and <format> would cost every program compile time.
class Part {
 public:
  constexpr Part(std::string_view text) : kind_(Kind::text), size_(text.size()), text_(text.data()) {}  // NOLINT: these
  constexpr Part(const char* text) : Part(std::string_view(text)) {}                                    // NOLINT
  constexpr Part(Shape shape) : kind_(Kind::shape), size_(shape.size()), shape_(shape.data()) {}        // NOLINT
  constexpr Part(float number) : kind_(Kind::real32), real32_(number) {}                                // NOLINT
  constexpr Part(double number) : kind_(Kind::real64), real64_(number) {}                               // NOLINT
  template <std::integral Integer>
  constexpr Part(Integer number) : kind_(Kind::integer), integer_(static_cast<long long>(number)) {}  // NOLINT: convert

  /// At least as many characters as `write` writes.
  [[nodiscard]] std::size_t room() const { return kind_ == Kind::text ? size_ : 32 * (size_ + 1); }
  /// Writes the text and returns its end.
  char* write(char* to) const {
    constexpr int longest = 32;
    switch (kind_) {
      case Kind::text:
        std::memcpy(to, text_, size_);
        return to + size_;
      case Kind::integer:
        return to + std::snprintf(to, longest, "%lld", integer_);
      case Kind::real32:
        return write_real(to, real32_, [](const char* text) { return double{std::strtof(text, nullptr)}; });
      case Kind::real64:
        return write_real(to, real64_, [](const char* text) { return std::strtod(text, nullptr); });
      case Kind::shape:
        *to++ = '[';
        for (std::size_t axis = 0; axis < size_; ++axis)
          to += std::snprintf(to, longest, axis == 0 ? "%td" : ",%td", shape_[axis]);
        *to++ = ']';
    }
    return to;
  }

 private:
  /// Writes as few digits, from 6 on, as tell the number from its neighbours. Not with std::to_chars: some standard
  /// libraries lack it for floating-point numbers.
  static char* write_real(char* to, double number, double (*read)(const char*)) {
    constexpr int longest = 32, most_digits = 17;
    char* end = to;
    for (int digits = 6; digits <= most_digits; ++digits) {
      end = to + std::snprintf(to, longest, "%.*g", digits, number);
      if (read(to) == number) break;
    }
    for (char* c = to; c < end; ++c)
      if (*c == ',') *c = '.';  // the user's language may write 0,5
    return end;
  }

  enum class Kind : std::uint8_t { text, integer, real32, real64, shape } kind_;
  std::size_t size_ = 0;  // of text and shapes
  union {
    const char* text_;
    const Index* shape_;
    long long integer_;
    float real32_;
    double real64_;
  };
};

// Cold and not inlined, to keep the code that checks short and quick to compile.

[[noreturn, gnu::cold, gnu::noinline]] inline void raise(std::string_view function, std::initializer_list<Part> parts) {
  std::size_t room = function.size() + sizeof "[attn::] ";
  for (const Part& part : parts) room += part.room();
  std::string text(room, '\0');
  char* end = Part("] ").write(Part(function).write(Part("[attn::").write(text.data())));
  for (const Part& part : parts) end = part.write(end);
  throw Error(text.c_str());
}

template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(std::string_view function, Parts... parts) {
  raise(function, {Part(parts)...});
}

/// Throws unless `ok`. Parts go by value so that literals of all lengths share one instantiation.
template <class... Parts>
constexpr void require(bool ok, std::string_view function, Parts... parts) {
  if (!ok) fail(function, parts...);
}

}  // namespace detail
}  // namespace attn
