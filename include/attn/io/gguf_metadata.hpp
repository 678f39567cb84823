// Floor 1. The key-value pairs of GGUF files: found by key, decoded when they are asked for.
#pragma once

#include <algorithm>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "gguf_types.hpp"

namespace attn {

/// What a value in the metadata can be read as. Integers: any type that holds the number, whatever type is stored.
/// std::string_view points into the file.
template <class T>
concept GgufValue = std::integral<T> || std::same_as<T, float> || std::same_as<T, double> ||
    std::same_as<T, std::string> || std::same_as<T, std::string_view>;

}  // namespace attn

namespace attn::detail {

static_assert(std::endian::native == std::endian::little, "attn: GGUF files are little-endian");

/// Reads a file from front to back, and never past its end.
class GgufReader {
 public:
  GgufReader(std::span<const std::byte> bytes, std::string_view name, std::size_t at = 0)
      : bytes_(bytes), name_(name), at_(at) {}

  [[nodiscard]] std::size_t at() const { return at_; }
  [[nodiscard]] std::size_t left() const { return bytes_.size() - at_; }
  [[nodiscard]] std::string_view name() const { return name_; }

  /// Takes n bytes. Errors: fewer are left.
  const std::byte* take(std::uint64_t n, std::string_view what) {
    require(n <= left(), "GgufFile", what, " at byte ", at_, " of ", name_, ", expected ", as_signed(n), " bytes, got ",
            left(), " to the end of the file");
    return bytes_.data() + std::exchange(at_, at_ + static_cast<std::size_t>(n));
  }
  template <class T>
  T number(std::string_view what) {
    T result;
    std::memcpy(&result, take(sizeof(T), what), sizeof(T));
    return result;
  }
  std::string_view string(std::string_view what) {
    const auto length = number<std::uint64_t>(what);
    return {reinterpret_cast<const char*>(take(length, what)), static_cast<std::size_t>(length)};
  }
  /// Takes n values of a type, without decoding them. Errors: an unknown type, an array of arrays.
  void skip_values(std::uint32_t type, std::uint64_t n, std::string_view key) {
    if (const std::uint64_t bytes = gguf_value_bytes(type); bytes > 0) {
      require(n <= left() / bytes, "GgufFile", "value of ", key, " at byte ", at_, " of ", name_, ", expected ",
              as_signed(n), " values of type ", gguf_value_name(type), ", got ", left(),
              " bytes to the end of the file");
      take(n * bytes, key);
      return;
    }
    require(type == static_cast<std::uint32_t>(GgufValueType::string), "GgufFile", "type of ", key, " in ", name_,
            ", expected a type from 0 to 12, no array in an array, got ", type);
    require(n <= left() / 8, "GgufFile", "value of ", key, " at byte ", at_, " of ", name_, ", expected ", as_signed(n),
            " strings, got ", left(), " bytes to the end of the file");
    for (std::uint64_t i = 0; i < n; ++i) string(key);
  }

 private:
  /// A count for messages, which print signed numbers.
  [[nodiscard]] static std::int64_t as_signed(std::uint64_t n) {
    return static_cast<std::int64_t>(std::min<std::uint64_t>(n, std::numeric_limits<std::int64_t>::max()));
  }

  std::span<const std::byte> bytes_;
  std::string_view name_;
  std::size_t at_;
};

/// A value's place in the file.
struct GgufPlace {
  std::uint32_t type = 0;  ///< of the value, or of the elements of an array
  bool is_array = false;
  std::uint64_t count = 1;  ///< values
  std::size_t at = 0;       ///< the first byte of the first value
};

/// Where the keys are, in alphabetical order. It takes 8 bytes for each; the values stay in the file.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  /// Reads over `count` pairs. Errors: anything that is not as the format says, a key that comes twice.
  GgufMetadata(GgufReader& reader, std::size_t count) {
    keys_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string_view key = reader.string("key");
      keys_.push_back({key.data()});
      const GgufPlace place = place_of(reader, key);
      reader.skip_values(place.type, place.count, key);
    }
    std::sort(keys_.begin(), keys_.end(), [](const Key& a, const Key& b) { return a.text() < b.text(); });
    const auto twice =
        std::adjacent_find(keys_.begin(), keys_.end(), [](const Key& a, const Key& b) { return a.text() == b.text(); });
    require(twice == keys_.end(), "GgufFile", "keys in ", reader.name(), ", expected each once, got ",
            twice == keys_.end() ? "" : twice->text(), " twice");
  }

  [[nodiscard]] std::vector<std::string_view> keys() const {
    std::vector<std::string_view> all;
    all.reserve(keys_.size());
    for (const Key& key : keys_) all.push_back(key.text());
    return all;
  }
  [[nodiscard]] bool has(std::string_view key) const { return find(key) != nullptr; }
  /// Errors: a key that is not there.
  [[nodiscard]] GgufPlace place(std::string_view fn, std::span<const std::byte> file, std::string_view name,
                                std::string_view key) const {
    const Key* const found = find(key);
    require(found != nullptr, fn, "key in ", name, ", expected one of the file's, got ", key);
    const auto* const text = reinterpret_cast<const std::byte*>(found->data);
    GgufReader reader(file, name, static_cast<std::size_t>(text - file.data()) + key.size());
    return place_of(reader, key);
  }

 private:
  struct Key {
    const char* data;  // in the file, where its length comes before it

    [[nodiscard]] std::string_view text() const {
      std::uint64_t length = 0;
      std::memcpy(&length, data - sizeof length, sizeof length);
      return {data, static_cast<std::size_t>(length)};
    }
  };
  [[nodiscard]] const Key* find(std::string_view key) const {
    const auto found = std::lower_bound(keys_.begin(), keys_.end(), key,
                                        [](const Key& a, std::string_view b) { return a.text() < b; });
    return found != keys_.end() && found->text() == key ? &*found : nullptr;
  }
  /// The place of the value that comes next.
  static GgufPlace place_of(GgufReader& reader, std::string_view key) {
    GgufPlace place;
    place.type = reader.number<std::uint32_t>(key);
    if (place.type == static_cast<std::uint32_t>(GgufValueType::array)) {
      place.is_array = true;
      place.type = reader.number<std::uint32_t>(key);
      place.count = reader.number<std::uint64_t>(key);
    }
    place.at = reader.at();
    return place;
  }

  std::vector<Key> keys_;
};

/// Decodes one value, of a type that a file has, and goes on behind it.
template <GgufValue T>
class GgufDecoder {
 public:
  GgufDecoder(std::string_view fn, GgufReader reader, std::uint32_t type, std::string_view key)
      : fn_(fn), reader_(reader), type_(type), key_(key) {}

  /// Errors: a value of another kind, a number that T cannot hold.
  T next() {
    if constexpr (std::same_as<T, std::string> || std::same_as<T, std::string_view>) {
      refuse_unless(type_ == static_cast<std::uint32_t>(GgufValueType::string), "a string");
      return T(reader_.string(key_));
    } else if constexpr (std::same_as<T, bool>) {
      refuse_unless(type_ == static_cast<std::uint32_t>(GgufValueType::boolean), "a bool");
      const auto byte = reader_.number<std::uint8_t>(key_);
      require(byte <= 1, fn_, key_, ", expected a bool of 0 or 1, got ", byte);
      return byte != 0;
    } else {
      return number();
    }
  }

 private:
  void refuse_unless(bool ok, std::string_view kind) const {
    require(ok, fn_, key_, ", expected ", kind, ", got one of type ", gguf_value_name(type_));
  }
  T number() {
    switch (static_cast<GgufValueType>(type_)) {
      case GgufValueType::u8:
        return converted(reader_.number<std::uint8_t>(key_));
      case GgufValueType::i8:
        return converted(reader_.number<std::int8_t>(key_));
      case GgufValueType::u16:
        return converted(reader_.number<std::uint16_t>(key_));
      case GgufValueType::i16:
        return converted(reader_.number<std::int16_t>(key_));
      case GgufValueType::u32:
        return converted(reader_.number<std::uint32_t>(key_));
      case GgufValueType::i32:
        return converted(reader_.number<std::int32_t>(key_));
      case GgufValueType::u64:
        return converted(reader_.number<std::uint64_t>(key_));
      case GgufValueType::i64:
        return converted(reader_.number<std::int64_t>(key_));
      case GgufValueType::f32:
        return converted(reader_.number<float>(key_));
      case GgufValueType::f64:
        return converted(reader_.number<double>(key_));
      case GgufValueType::boolean:
      case GgufValueType::string:
      case GgufValueType::array:
        break;
    }
    refuse_unless(false, std::integral<T> ? "an integer" : "a number");
    return {};
  }
  template <class Stored>
  [[nodiscard]] T converted(Stored stored) const {
    if constexpr (std::floating_point<T>) {
      return static_cast<T>(stored);
    } else {
      refuse_unless(std::integral<Stored>, "an integer");
      if constexpr (std::integral<Stored>) {
        const auto fits = [](auto number) {
          using Number = decltype(number);
          if constexpr (std::signed_integral<Number>) {
            if (number < 0)
              return std::signed_integral<T> && std::int64_t{number} >= std::int64_t{std::numeric_limits<T>::min()};
          }
          return static_cast<std::uint64_t>(number) <= static_cast<std::uint64_t>(std::numeric_limits<T>::max());
        };
        require(fits(stored), fn_, key_, ", expected an integer of ", 8 * sizeof(T), " bits, ",
                std::signed_integral<T> ? "signed" : "unsigned", ", got ", stored);
        return static_cast<T>(stored);
      } else {
        return {};
      }
    }
  }

  std::string_view fn_;
  GgufReader reader_;
  std::uint32_t type_;
  std::string_view key_;
};

}  // namespace attn::detail
