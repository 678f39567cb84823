// Edge. The header of a safetensors file: parsed in one pass, every rule of the format checked.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "elements.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A tensor of a safetensors file.
struct SafetensorsTensor {
  std::string dtype;                 ///< "F32", "BF16", ...
  std::vector<Index> shape;          ///< row-major; empty of a single number
  std::span<const std::byte> bytes;  ///< in the file, of any alignment
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// Where a tensor lies, in bytes from the first of the data.
struct SafetensorsEntry {
  std::string dtype;
  std::vector<Index> shape;
  std::size_t begin = 0, end = 0;
};
struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
  std::size_t size = 0;  ///< bytes of the file before the data
};

/// How many bytes a tensor takes. Errors: a type that does not exist, a negative size, more than memory can hold, elements
/// of less than a byte that do not fill their last one.
inline std::size_t size_in_bytes(std::string_view fn, std::string_view name, std::string_view dtype,
                                 const std::vector<Index>& shape) {
  const int bits = element_bits(dtype);
  require(bits > 0, fn, name, ", expected a dtype of the format, got ", dtype);
  constexpr auto most = std::uint64_t{std::numeric_limits<Index>::max()} / 8;  // bits, too, can be counted
  std::uint64_t elements = 1;
  for (const Index size : shape) {
    const auto n = static_cast<std::uint64_t>(size);
    require(size >= 0 && (n == 0 || elements <= most / n), fn, name, ", expected a shape that memory can hold, got ",
            Shape(shape));
    elements *= n;
  }
  require(elements <= most / static_cast<std::uint64_t>(bits), fn, name,
          ", expected a shape that memory can hold, got ", Shape(shape));
  const std::uint64_t all = elements * static_cast<std::uint64_t>(bits);
  require(all % 8 == 0, fn, name, ", expected whole bytes, got ", Shape(shape), " of ", dtype);
  return static_cast<std::size_t>(all / 8);
}

/// Reads the JSON of a header event by event, so that keys which come twice and nesting are seen, and no memory is taken
/// that the text does not fill.
class SafetensorsReader {
 public:
  static constexpr auto fn = "SafetensorsFile";
  static constexpr std::size_t most_axes = 64;
  explicit SafetensorsReader(SafetensorsHeader& header) : header_(header) {}

  // The names and results of these are nlohmann::json's.
  bool null() { return refuse("null"); }
  bool boolean(bool) { return refuse("a boolean"); }
  bool number_float(double, const std::string&) { return refuse("a number that is not an integer"); }
  bool binary(std::vector<std::uint8_t>&) { return refuse("binary"); }
  bool number_integer(std::int64_t) { return refuse("a negative number"); }
  bool number_unsigned(std::uint64_t x) {
    if (numbers_ == nullptr) return refuse("a number");
    require(x <= std::uint64_t{std::numeric_limits<Index>::max()}, fn, at(), ", expected sizes below 2^63");
    require(numbers_->size() < most_axes, fn, at(), ", expected at most 64 axes");
    numbers_->push_back(static_cast<Index>(x));
    return true;
  }
  bool string(std::string& text) {
    if (depth_ != 2 || numbers_ != nullptr) return refuse("a text");
    if (in_metadata()) {
      header_.metadata[field_] = text;
      return true;
    }
    require(field_ == "dtype", fn, at(), ", expected numbers, got a text");
    entry_.dtype = text;
    return true;
  }
  bool start_object(std::size_t) {
    require(depth_ < 2 && numbers_ == nullptr, fn, at(), ", expected no deeper objects");
    ++depth_;
    fields_.clear();
    if (depth_ == 2) entry_ = {}, offsets_.clear();
    return true;
  }
  bool key(std::string& name) {
    if (depth_ == 1) {
      require(names_.insert(name).second, fn, "header, expected each name once, got ", std::string_view(name));
      name_ = name;
      field_.clear();
      return true;
    }
    require(fields_.insert(name).second, fn, at(), ", expected each field once, got ", std::string_view(name));
    require(in_metadata() || name == "dtype" || name == "shape" || name == "data_offsets", fn, at(),
            ", expected dtype, shape and data_offsets, got ", std::string_view(name));
    field_ = name;
    return true;
  }
  bool start_array(std::size_t) {
    require(depth_ == 2 && numbers_ == nullptr && (field_ == "shape" || field_ == "data_offsets") && !in_metadata(), fn,
            at(), ", expected no array here");
    numbers_ = field_ == "shape" ? &entry_.shape : &offsets_;
    return true;
  }
  bool end_array() {
    numbers_ = nullptr;
    return true;
  }
  bool end_object() {
    if (depth_-- == 2 && !in_metadata()) finish_tensor();
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
    fail(fn, "header, expected JSON, got something else at byte ", static_cast<Index>(position));
  }

 private:
  [[nodiscard]] bool in_metadata() const { return name_ == "__metadata__"; }
  [[nodiscard]] std::string_view at() const { return name_.empty() ? std::string_view("header") : name_; }
  [[noreturn]] bool refuse(std::string_view what) const {
    fail(fn, at(), ", expected an object of dtype, shape and data_offsets, or texts in __metadata__, got ", what);
  }
  void finish_tensor() {
    require(fields_.size() == 3, fn, at(), ", expected dtype, shape and data_offsets, got ",
            static_cast<Index>(fields_.size()), " of them");
    require(offsets_.size() == 2, fn, at(), ", expected two data_offsets, got ", static_cast<Index>(offsets_.size()));
    require(offsets_[0] <= offsets_[1], fn, at(), ", expected data_offsets that do not end before they begin, got ",
            Shape(offsets_));
    entry_.begin = static_cast<std::size_t>(offsets_[0]), entry_.end = static_cast<std::size_t>(offsets_[1]);
    require(size_in_bytes(fn, name_, entry_.dtype, entry_.shape) == entry_.end - entry_.begin, fn, at(),
            ", expected as many bytes as the shape ", Shape(entry_.shape), " of ", std::string_view(entry_.dtype),
            " says, got data_offsets ", Shape(offsets_));
    header_.tensors[name_] = std::move(entry_);
  }

  SafetensorsHeader& header_;
  int depth_ = 0;
  std::string name_, field_;               // of the tensor, of what is said about it
  std::set<std::string> names_;            // so far
  std::set<std::string> fields_;           // of this tensor
  SafetensorsEntry entry_;                 // this tensor
  std::vector<Index> offsets_;             // its data_offsets
  std::vector<Index>* numbers_ = nullptr;  // the array that is being read
};

/// Throws unless the tensors fill the data without gaps or overlaps.
inline void check_offsets(const SafetensorsHeader& header, std::size_t data) {
  constexpr auto fn = SafetensorsReader::fn;
  std::vector<std::pair<std::size_t, std::size_t>> parts;
  for (const auto& [name, entry] : header.tensors) parts.emplace_back(entry.begin, entry.end);
  std::sort(parts.begin(), parts.end());
  std::size_t end = 0;
  for (const auto& [begin, part_end] : parts) {
    require(begin == end, fn, "data_offsets, expected tensors without gaps or overlaps, the next at ",
            static_cast<Index>(end), ", got ", static_cast<Index>(begin));
    end = part_end;
  }
  require(end == data, fn, "file, expected ", static_cast<Index>(end), " bytes of data, got ",
          static_cast<Index>(data));
}

/// Parses and checks the header of a whole file.
[[nodiscard]] inline SafetensorsHeader read_safetensors_header(std::span<const std::byte> bytes) {
  constexpr auto fn = SafetensorsReader::fn;
  constexpr std::size_t length_bytes = 8, most = 100'000'000;
  require(bytes.size() >= length_bytes, fn, "file, expected at least 8 bytes, got ", static_cast<Index>(bytes.size()));
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), length_bytes);
  require(length <= most && length <= bytes.size() - length_bytes, fn, "header, expected at most ",
          static_cast<Index>(std::min(most, bytes.size() - length_bytes)), " bytes, got ",
          static_cast<Index>(std::min<std::uint64_t>(length, std::numeric_limits<Index>::max())));
  const auto* const text = reinterpret_cast<const char*>(bytes.data()) + length_bytes;
  require(length > 0 && text[0] == '{', fn, "header, expected an object");
  SafetensorsHeader header;
  header.size = length_bytes + static_cast<std::size_t>(length);
  SafetensorsReader reader(header);
  nlohmann::json::sax_parse(text, text + length, &reader);
  check_offsets(header, bytes.size() - header.size);
  return header;
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
