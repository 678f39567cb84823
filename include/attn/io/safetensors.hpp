// Edge. Tensors in safetensors files: read without copies where possible; with the writer of such files.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../tensor.hpp"
#include "elements.hpp"
#include "mapped_file.hpp"
#include "safetensors_header.hpp"
#include "safetensors_writer.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A tensor of a safetensors file.
struct SafetensorsTensor {
  std::string dtype;                 ///< "F32", "BF16", ...
  std::vector<Index> shape;          ///< row-major; empty of a single number
  std::span<const std::byte> bytes;  ///< in the file, of any alignment
};

/// A safetensors file: names, shapes, and elements as they lie in the file.
///
/// Types: every dtype of the format is listed; F64, F32, F16, BF16, integers and BOOL are read as any scalar of attn, rounded
/// to nearest, ties to even.
/// Conventions: row-major, little-endian. The file is mapped: what is not looked at is not read. Views are valid as long as
/// this object, or a copy of it, is.
/// Errors: every rule of the format is checked when the file is opened; names are checked when they are asked for.
/// Source: the safetensors format, https://github.com/huggingface/safetensors.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path) : file_(std::make_shared<MappedFile>(path)) {
    read_header(file_->bytes());
  }
  /// Over memory of the caller's that holds a whole file.
  explicit SafetensorsFile(std::span<const std::byte> bytes) { read_header(bytes); }

  /// All names, sorted.
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, tensor] : header_.tensors) all.push_back(name);
    return all;
  }
  [[nodiscard]] bool contains(std::string_view name) const { return header_.tensors.contains(name); }
  /// What the writer of the file noted: names and texts.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  /// A tensor's type, shape and bytes. Errors: a name that is not there; a file that has become shorter.
  [[nodiscard]] SafetensorsTensor tensor(std::string_view name) const {
    const detail::SafetensorsRecord& record = find("SafetensorsFile::tensor", name);
    return {record.dtype, record.shape, bytes_of(record)};
  }

  /// The elements as they lie in the file, without a copy. Errors: besides, another rank or type, an address that is not
  /// aligned for T; read() converts and copies.
  template <Scalar T, int Rank>
  [[nodiscard]] View<const T, Rank> view(std::string_view name) const {
    constexpr std::string_view fn = "SafetensorsFile::view";
    const detail::SafetensorsRecord& record = find(fn, name);
    const auto shape = shape_of<Rank>(fn, name, record);
    const std::span<const std::byte> bytes = bytes_of(record);
    detail::require(record.dtype == detail::element_name<T>, fn, std::string_view(title(name)), ", expected ",
                    detail::element_name<T>, ", got ", std::string_view(record.dtype), "; read() converts");
    detail::require(bytes.empty() || reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(T) == 0, fn,
                    std::string_view(title(name)), ", expected data aligned to ", alignof(T),
                    " bytes, got an address that is not; read() copies");
    return {static_cast<const T*>(static_cast<const void*>(bytes.data())), shape};
  }
  /// A copy, its elements converted. Errors: besides, a type of element that attn does not read.
  template <Scalar T, int Rank>
  [[nodiscard]] Tensor<T, Rank> read(std::string_view name) const {
    constexpr std::string_view fn = "SafetensorsFile::read";
    const detail::SafetensorsRecord& record = find(fn, name);
    const auto shape = shape_of<Rank>(fn, name, record);
    detail::require(detail::is_readable(record.dtype), fn, std::string_view(title(name)),
                    ", expected F64, F32, F16, BF16, integers or BOOL, got ", std::string_view(record.dtype));
    auto result = detail::make_tensor<T, Rank>(shape);
    detail::convert_elements(record.dtype, bytes_of(record), result.data(), result.size());
    return result;
  }

 private:
  void read_header(std::span<const std::byte> bytes) {
    header_ = detail::read_safetensors_header(title(), bytes);
    data_ = bytes.subspan(header_.data);
  }
  /// What messages call this file, and a tensor in it.
  [[nodiscard]] std::string title() const { return file_ ? "file " + file_->path().string() : "file in memory"; }
  [[nodiscard]] std::string title(std::string_view tensor) const {
    return title() + ", tensor " + detail::quote_text(tensor);
  }
  [[nodiscard]] const detail::SafetensorsRecord& find(std::string_view fn, std::string_view name) const {
    const auto found = header_.tensors.find(name);
    if (found == header_.tensors.end()) refuse_name(fn, name);
    if (file_) file_->check_unchanged(fn);
    return found->second;
  }
  [[nodiscard]] std::span<const std::byte> bytes_of(const detail::SafetensorsRecord& record) const {
    return data_.subspan(static_cast<std::size_t>(record.begin), static_cast<std::size_t>(record.end - record.begin));
  }
  template <int Rank>
  [[nodiscard]] std::array<Index, std::size_t{Rank}> shape_of(std::string_view fn, std::string_view name,
                                                              const detail::SafetensorsRecord& record) const {
    detail::require(std::ssize(record.shape) == Rank, fn, std::string_view(title(name)), ", expected rank ", Rank,
                    ", got ", Shape(record.shape));
    std::array<Index, std::size_t{Rank}> shape{};
    if constexpr (Rank > 0) std::ranges::copy(record.shape, shape.begin());
    return shape;
  }
  /// Names what is nearest, too: exporters differ in prefixes, and people in letters.
  [[noreturn]] void refuse_name(std::string_view fn, std::string_view name) const {
    std::string_view nearest;
    std::size_t least = name.size() / 2 + 1;
    for (const auto& [other, record] : header_.tensors) {
      const std::size_t apart = difference(name, other);
      if (apart < least) least = apart, nearest = other;
    }
    const std::string hint = nearest.empty() ? "" : "; there is " + detail::quote_text(nearest);
    detail::fail(fn, std::string_view(title()), ", expected the name of one of ", header_.tensors.size(),
                 " tensors, got ", std::string_view(detail::quote_text(name)), std::string_view(hint));
  }
  /// How many characters of the longer name lie between what both begin and end with.
  [[nodiscard]] static std::size_t difference(std::string_view a, std::string_view b) {
    const auto [a_rest, b_rest] = std::ranges::mismatch(a, b);
    a.remove_prefix(static_cast<std::size_t>(a_rest - a.begin()));
    b.remove_prefix(static_cast<std::size_t>(b_rest - b.begin()));
    const auto end = std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend()).first - a.rbegin();
    return std::max(a.size(), b.size()) - static_cast<std::size_t>(end);
  }

  std::shared_ptr<const MappedFile> file_;  // null over the caller's memory
  detail::SafetensorsHeader header_;
  std::span<const std::byte> data_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
