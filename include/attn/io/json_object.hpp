// Edge, outside the umbrella. A JSON object whose values are asked for by key and checked; what nobody asked for is refused.
#pragma once

#if !__has_include(<nlohmann/json.hpp>)
#error "attn: json_object.hpp needs nlohmann-json 3.11 (Debian: nlohmann-json3-dev)"
#endif

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../error.hpp"

namespace attn::detail {

/// The text of a file. Errors: a file that is missing, cannot be read, or is larger than `most` bytes.
[[nodiscard]] inline std::string read_text(std::string_view function, const std::filesystem::path& path,
                                           std::uintmax_t most) {
  const std::string name = path.string();
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(path, error);
  require(!error, function, std::string_view(name), ", expected a file, got: ", std::string_view(error.message()));
  require(size <= most, function, std::string_view(name), ", expected at most ", most, " bytes, got ", size);
  std::string text(static_cast<std::size_t>(size), '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(text.data(), static_cast<std::streamsize>(size));
  require(file.gcount() == static_cast<std::streamsize>(size), function, std::string_view(name), ", expected ", size,
          " bytes that can be read, got ", file.gcount());
  return text;
}

/// Parses a JSON object. `where`, a file's name, stands in messages. Errors: any other text, more than 32 levels, which
/// would also take that much stack to print or compare.
[[nodiscard]] inline nlohmann::json parse_object(std::string_view function, std::string_view where,
                                                 std::string_view text) {
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    require(depth <= 32, function, where, ", expected at most 32 levels");
    return true;
  };
  nlohmann::json object = nlohmann::json::parse(text, check_depth, false);
  require(!object.is_discarded() && object.is_object(), function, where, ", expected a JSON object, got ",
          object.is_discarded() ? std::string_view("text that is not JSON") : object.type_name());
  return object;
}

/// Whether a value is an integer from `least` to `most`.
template <std::integral T>
[[nodiscard]] bool is_integer(const nlohmann::json& value, T least, T most) {
  const auto is_between = [&](auto x) { return std::cmp_less_equal(least, x) && std::cmp_less_equal(x, most); };
  if (value.is_number_unsigned()) return is_between(value.get<std::uint64_t>());
  return value.is_number_integer() && is_between(value.get<std::int64_t>());
}
/// An integer from `least` to `most`. Errors, of `function` and `what`: another value.
template <std::integral T>
[[nodiscard]] T integer_of(std::string_view function, std::string_view what, const nlohmann::json& value,
                           T least = std::numeric_limits<T>::min(), T most = std::numeric_limits<T>::max()) {
  if (is_integer(value, least, most)) return value.get<T>();
  const std::string got = value.is_number() ? value.dump() : value.type_name();
  fail(function, what, ", expected an integer from ", +least, " to ", +most, ", got ", std::string_view(got));
}

/// A JSON object whose values are taken by key. A value of null counts as absent.
///
/// The object must outlive this reader. Errors name where the object stands and the key, and say what was expected.
class JsonObject {
 public:
  /// `where`: what stands before keys in messages, as "config.json: " or "config.json: rope_scaling.".
  JsonObject(std::string_view function, std::string where, const nlohmann::json& object)
      : function_(function), where_(std::move(where)), object_(&object) {}

  /// Whether the key is there, be it with null.
  [[nodiscard]] bool contains(const char* key) const { return object_->contains(key); }
  /// The value of a key, null where there is none. The key counts as taken.
  [[nodiscard]] const nlohmann::json* take(const char* key) {
    taken_.insert(key);
    const auto found = object_->find(key);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
  }

  [[nodiscard]] std::optional<double> number(const char* key) {
    const auto* const value = take(key);
    if (value == nullptr) return {};
    if (!value->is_number()) refuse(key, "a number");
    return value->get<double>();
  }
  /// An integer from `least` to `most`.
  [[nodiscard]] std::optional<Index> integer(const char* key, Index least = 1, Index most = Index{1} << 40) {
    const auto* const value = take(key);
    if (value == nullptr) return {};
    if (!value->is_number_integer()) refuse(key, "an integer");
    if (!is_integer(*value, least, most))
      refuse(key, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return value->get<Index>();
  }
  [[nodiscard]] std::optional<bool> boolean(const char* key) {
    const auto* const value = take(key);
    if (value == nullptr) return {};
    if (!value->is_boolean()) refuse(key, "true or false");
    return value->get<bool>();
  }
  [[nodiscard]] std::optional<std::string> text(const char* key) {
    const auto* const value = take(key);
    if (value == nullptr) return {};
    if (!value->is_string()) refuse(key, "a text");
    return value->get<std::string>();
  }
  [[nodiscard]] std::optional<JsonObject> object(const char* key) {
    const auto* const value = take(key);
    if (value == nullptr) return {};
    if (!value->is_object()) refuse(key, "an object");
    return JsonObject(function_, where_ + key + ".", *value);
  }
  /// The elements of an array, null where there is none.
  [[nodiscard]] const std::vector<nlohmann::json>* array(const char* key) {
    const auto* const value = take(key);
    if (value == nullptr) return nullptr;
    if (!value->is_array()) refuse(key, "an array");
    return &value->get_ref<const std::vector<nlohmann::json>&>();
  }

  /// Throws unless the key is absent or has this value.
  void expect(const char* key, const nlohmann::json& value) {
    const auto* const found = take(key);
    if (found != nullptr && *found != value) refuse(key, value.dump());
  }
  /// The value, which must be there.
  template <class T>
  [[nodiscard]] T required(const char* key, const std::optional<T>& value) const {
    if (!value) refuse(key, "a value");
    return *value;
  }
  /// Throws of a key that is there, not null, was not taken, and is not in the list.
  void refuse_others(std::span<const std::string_view> unrelated, std::span<const std::string> more) const {
    for (const auto& [key, value] : object_->items()) {
      const bool known = value.is_null() || taken_.contains(key) ||
                         std::find(unrelated.begin(), unrelated.end(), key) != unrelated.end() ||
                         std::find(more.begin(), more.end(), key) != more.end();
      if (!known) refuse(key.c_str(), "no such key, which is none that attn knows for this model");
    }
  }
  [[noreturn]] void refuse(const char* key, std::string_view expected) const {
    const auto found = object_->find(key);
    constexpr std::size_t longest = 80;
    std::string got = found == object_->end() ? "nothing" : found->dump();
    if (got.size() > longest) got = got.substr(0, longest) + "...";
    fail(function_, std::string_view(where_), key, ", expected ", expected, ", got ", std::string_view(got));
  }

 private:
  std::string_view function_;      // in messages
  std::string where_;              // before keys in messages
  const nlohmann::json* object_;   // whose values are taken
  std::set<std::string> taken_{};  // keys asked for so far
};

}  // namespace attn::detail
