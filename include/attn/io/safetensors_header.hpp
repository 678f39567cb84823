// Edge. The header of a safetensors file: read event by event, and held against every rule of the format.
#pragma once

#if !__has_include(<nlohmann/json.hpp>)
#error "attn: files in safetensors need nlohmann-json 3.11 (Debian: nlohmann-json3-dev)"
#include "stopped_by_the_error_above"
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "elements.hpp"

namespace attn::detail {

/// What a safetensors file says of a tensor. Offsets count from the end of the header.
struct SafetensorsRecord {
  std::string dtype;
  std::vector<Index> shape;
  std::uint64_t begin = 0, end = 0;
};

/// What is in a header, all of it checked.
struct SafetensorsHeader {
  std::map<std::string, SafetensorsRecord, std::less<>> tensors;
  std::map<std::string, std::string> metadata;
  std::size_t data = 0;  ///< where the data begins, in bytes from the beginning of the file
};

inline constexpr std::size_t safetensors_prefix = 8;           // bytes that say how long the header is
inline constexpr Index most_safetensors_header = 100'000'000;  // by the format
inline constexpr Index most_safetensors_axes = 64;             // as in NumPy and PyTorch

/// A text from a file as messages show it: quoted, without control characters, cut where it is long.
[[nodiscard]] inline std::string quote_text(std::string_view text) {
  constexpr std::size_t longest = 100;
  std::string shown = "'" + std::string(text.substr(0, longest)) + (text.size() > longest ? "...'" : "'");
  for (char& c : shown)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  return shown;
}

/// Takes what nlohmann's parser finds in a header, and refuses what a header cannot have as soon as it comes: other
/// nesting, duplicate and unknown keys, numbers that are no offsets or sizes.
class SafetensorsEvents {
 public:
  SafetensorsEvents(std::string_view function, std::string_view file, SafetensorsHeader& header)
      : function_(function), file_(file), header_(header) {}

  bool start_object(std::size_t) {
    if (next_ == Next::root) return go_to(Next::name);
    if (next_ == Next::tensor) return go_to(Next::field);
    return next_ == Next::metadata ? go_to(Next::metadata_key) : unexpected("an object");
  }
  bool key(std::string& text) {
    if (next_ == Next::name) return name(text);
    if (next_ == Next::field) return field(text);
    spend(node + text.size());
    const auto [place, is_new] = header_.metadata.try_emplace(text);
    if (!is_new) refuse("expected each key once, got a second " + quote_text(text));
    value_ = &place->second;
    return go_to(Next::metadata_value);
  }
  bool end_object() {
    if (next_ == Next::field && fields_ != all_fields) refuse("expected dtype, shape and data_offsets, got fewer");
    return go_to(next_ == Next::name ? Next::end : Next::name);
  }
  bool start_array(std::size_t) {
    if (next_ == Next::shape) return go_to(Next::size);
    return next_ == Next::offsets ? go_to(Next::offset) : unexpected("an array");
  }
  bool end_array() {
    if (next_ == Next::offset && offsets_ != 2) refuse("data_offsets, expected [begin, end], got fewer numbers");
    return go_to(Next::field);
  }
  bool string(std::string& text) {
    if (next_ != Next::dtype && next_ != Next::metadata_value) return unexpected("a string");
    spend(text.size());
    (next_ == Next::dtype ? record_->dtype : *value_) = text;
    return go_to(next_ == Next::dtype ? Next::field : Next::metadata_key);
  }
  bool number_unsigned(std::uint64_t number) {
    if (next_ == Next::offset) {
      if (offsets_ == 2) refuse("data_offsets, expected [begin, end], got more numbers");
      (offsets_++ == 0 ? record_->begin : record_->end) = number;
      return true;
    }
    if (next_ != Next::size) return unexpected("a number");
    if (std::ssize(record_->shape) == most_safetensors_axes)
      refuse("shape, expected at most " + std::to_string(most_safetensors_axes) + " axes, got more");
    if (number > static_cast<std::uint64_t>(std::numeric_limits<Index>::max()))
      refuse("shape, expected sizes that memory can hold, got " + std::to_string(number));
    spend(2 * sizeof(Index));  // vectors grow by doubling
    record_->shape.push_back(static_cast<Index>(number));
    return true;
  }
  bool number_integer(std::int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) { return unexpected("a number that is no integer of 64 bits"); }
  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("true or false"); }
  bool binary(std::vector<std::uint8_t>&) { return unexpected("binary data"); }
  bool parse_error(std::size_t at, const std::string&, const nlohmann::detail::exception&) {
    tensor_ = {};
    refuse("header, expected JSON in UTF-8, got an error at its byte " + std::to_string(at));
  }

 private:
  /// What must come next.
  enum class Next : std::uint8_t {
    root,
    name,
    tensor,
    field,
    dtype,
    shape,
    size,
    offsets,
    offset,
    metadata,
    metadata_key,
    metadata_value,
    end
  };
  static constexpr std::size_t node = 200;  // bytes of a map's, with a record and what allocations take besides
  enum Field : unsigned { dtype_field = 1, shape_field = 2, offsets_field = 4, all_fields = 7 };

  bool go_to(Next next) {
    next_ = next;
    return true;
  }
  bool name(const std::string& text) {
    tensor_ = {};
    if (text == "__metadata__") {
      if (std::exchange(has_metadata_, true)) refuse("expected __metadata__ once, got a second");
      return go_to(Next::metadata);
    }
    spend(node + text.size());
    const auto [place, is_new] = header_.tensors.try_emplace(text);
    tensor_ = place->first;
    if (!is_new) refuse("expected each name once, got a second of that name");
    record_ = &place->second;
    fields_ = offsets_ = 0;
    return go_to(Next::tensor);
  }
  bool field(const std::string& text) {
    const unsigned bit = text == "dtype"          ? dtype_field
                         : text == "shape"        ? shape_field
                         : text == "data_offsets" ? offsets_field
                                                  : 0U;
    if (bit == 0) refuse("expected dtype, shape and data_offsets, got " + quote_text(text));
    if ((fields_ & bit) != 0) refuse("expected each key once, got a second " + text);
    fields_ |= bit;
    return go_to(bit == dtype_field ? Next::dtype : bit == shape_field ? Next::shape : Next::offsets);
  }
  /// Counts the memory that the header's contents take: short texts could become ten times as much.
  void spend(std::size_t bytes) {
    constexpr std::size_t most = 50'000'000;
    spent_ += bytes;
    if (spent_ > most) refuse("header, expected contents that take at most 50 MB of memory, got more");
  }
  bool unexpected(std::string_view got) const {
    static constexpr std::array<std::string_view, 13> expected{"an object",
                                                               "a name",
                                                               "an object",
                                                               "a key",
                                                               "dtype, expected a string",
                                                               "shape, expected an array",
                                                               "shape, expected sizes, integers from 0 on",
                                                               "data_offsets, expected an array",
                                                               "data_offsets, expected integers from 0 on",
                                                               "__metadata__, expected an object",
                                                               "a key",
                                                               "__metadata__, expected values that are strings",
                                                               "nothing more"};
    const std::string_view what = expected[static_cast<std::size_t>(next_)];
    refuse((what.find("expected") == what.npos ? "expected " : "") + std::string(what) + ", got " + std::string(got));
  }
  [[noreturn]] void refuse(std::string_view what) const {
    const std::string tensor = tensor_.empty() ? "" : "tensor " + quote_text(tensor_) + ", ";
    fail(function_, file_, ", ", std::string_view(tensor), what);
  }

  std::string_view function_, file_;  // for messages
  SafetensorsHeader& header_;
  Next next_ = Next::root;
  bool has_metadata_ = false;
  unsigned fields_ = 0;                  // of the tensor, which have come
  unsigned offsets_ = 0;                 // how many of its numbers have come
  std::string_view tensor_;              // for messages
  SafetensorsRecord* record_ = nullptr;  // of the tensor
  std::string* value_ = nullptr;         // of the metadata's last key
  std::size_t spent_ = 0;
};

/// Refuses headers on which the JSON parser would spend memory: it keeps each string, number and run of spaces whole.
/// Also NUL, which it takes for the end.
inline void check_safetensors_text(std::string_view function, std::string_view file, std::string_view json) {
  constexpr std::size_t longest_string = 8'000'000, longest_other = 1000;
  bool in_string = false;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < json.size(); ++i) {
    switch (json[i]) {
      case '\0':
        fail(function, file, ", header, expected JSON, got a NUL at its byte ", i + 1);
      case '\\':
        i += in_string ? 1 : 0;
        break;
      case '"':
        in_string = !in_string;
        begin = i;
        break;
      case ',':
      case ':':
      case '[':
      case ']':
      case '{':
      case '}':
        if (!in_string) begin = i;
        break;
      default:
        break;
    }
    if (i - begin > (in_string ? longest_string : longest_other))
      fail(function, file, ", header, expected strings of at most ", longest_string, " bytes and at most ",
           longest_other, " spaces or digits, got more before its byte ", i + 1);
  }
}

/// The bytes that a shape of a dtype takes. `what` stands in messages.
/// Errors: a dtype that the format does not have; sizes that memory cannot hold, also where those of 0 are left out; part
/// of a byte.
[[nodiscard]] inline std::uint64_t safetensors_bytes(std::string_view function, std::string_view what,
                                                     std::string_view dtype, Shape shape) {
  const int bits = element_bits(dtype);
  require(bits > 0, function, what, ", expected a dtype of the format, got ", std::string_view(quote_text(dtype)));
  Index most = bits;  // the product of all sizes but 0, so that no order of them overflows in other code
  bool fits = true, empty = false;
  for (const Index size : shape) {
    require(size >= 0, function, what, ", expected no negative size, got ", shape);
    empty = empty || size == 0;
    fits = fits && !__builtin_mul_overflow(most, size == 0 ? 1 : size, &most);
  }
  require(fits, function, what, ", expected a shape that memory can hold, got ", shape);
  require(empty || most % 8 == 0, function, what, ", expected whole bytes, got ", shape, " of ", bits, " bits");
  return empty ? 0 : static_cast<std::uint64_t>(most) / 8;
}

/// Holds offsets against shapes and against each other: each byte of the data belongs to one tensor.
inline void check_safetensors_offsets(std::string_view file, const SafetensorsHeader& header, std::uint64_t data) {
  constexpr std::string_view function = "SafetensorsFile";
  const auto title = [file](std::string_view name) { return std::string(file) + ", tensor " + quote_text(name); };
  const auto text = [](std::uint64_t number) { return std::to_string(number); };  // as Part, it would be signed
  std::vector<std::pair<const std::string, SafetensorsRecord> const*> tensors;
  tensors.reserve(header.tensors.size());
  for (const auto& tensor : header.tensors) {
    const auto& [name, record] = tensor;
    const std::string what = title(name);
    require(record.begin <= record.end, function, std::string_view(what),
            ", data_offsets, expected an end that is not before the beginning, got ",
            std::string_view(text(record.begin)), " and ", std::string_view(text(record.end)));
    const std::uint64_t bytes = safetensors_bytes(function, what, record.dtype, record.shape);
    require(record.end - record.begin == bytes, function, std::string_view(what), ", data_offsets, expected ", bytes,
            " bytes for ", Shape(record.shape), " of ", std::string_view(record.dtype), ", got ",
            std::string_view(text(record.end - record.begin)));
    require(record.end <= data, function, std::string_view(what), ", data_offsets, expected an end within ", data,
            " bytes of data, got ", std::string_view(text(record.end)));
    tensors.push_back(&tensor);
  }
  std::ranges::sort(tensors, {},
                    [](const auto* tensor) { return std::pair(tensor->second.begin, tensor->second.end); });
  std::uint64_t end = 0;
  for (const auto* tensor : tensors) {
    require(tensor->second.begin == end, function, std::string_view(title(tensor->first)),
            ", expected data without gaps or overlaps, the next at ", end, ", got ", tensor->second.begin);
    end = tensor->second.end;
  }
  require(end == data, function, file, ", expected ", end, " bytes of data, as the tensors take, got ", data);
}

/// Reads the JSON of a header and checks it by itself. `file` stands in messages.
/// Memory: at most 100 MB, whatever it says.
[[nodiscard]] inline SafetensorsHeader parse_safetensors_header(std::string_view function, std::string_view file,
                                                                std::string_view json) {
  require(std::ssize(json) <= most_safetensors_header, function, file, ", header, expected at most ",
          most_safetensors_header, " bytes, got ", json.size());
  require(json.starts_with('{'), function, file, ", header, expected an object, got something else");
  json = json.substr(0, json.find_last_not_of(' ') + 1);
  check_safetensors_text(function, file, json);
  SafetensorsHeader header;
  SafetensorsEvents events(function, file, header);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);
  return header;
}

/// Reads the header of a whole file and checks it against the data.
[[nodiscard]] inline SafetensorsHeader read_safetensors_header(std::string_view file,
                                                               std::span<const std::byte> bytes) {
  constexpr std::string_view function = "SafetensorsFile";
  require(bytes.size() >= safetensors_prefix, function, file, ", expected at least 8 bytes, got ", bytes.size());
  std::uint64_t size = 0;
  std::memcpy(&size, bytes.data(), safetensors_prefix);
  const Index most = std::min(most_safetensors_header, static_cast<Index>(bytes.size() - safetensors_prefix));
  require(size <= static_cast<std::uint64_t>(most), function, file, ", header, expected at most ", most, " bytes, got ",
          std::string_view(std::to_string(size)));
  const std::span<const std::byte> json = bytes.subspan(safetensors_prefix, static_cast<std::size_t>(size));
  SafetensorsHeader header =
      parse_safetensors_header(function, file, {reinterpret_cast<const char*>(json.data()), json.size()});
  header.data = safetensors_prefix + json.size();
  check_safetensors_offsets(file, header, bytes.size() - header.data);
  return header;
}

}  // namespace attn::detail
