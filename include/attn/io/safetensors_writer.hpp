// Edge. Writes safetensors files.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../tensor.hpp"
#include "elements.hpp"
#include "new_file.hpp"
#include "safetensors_header.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// The elements of a view of any strides, row after row.
template <class T, int Rank>
[[nodiscard]] std::vector<std::byte> packed_bytes(const View<const T, Rank>& x) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(x.size()) * sizeof(T));
  if (bytes.empty()) return bytes;
  std::byte* to = bytes.data();
  if (is_packed(x)) {
    std::memcpy(to, static_cast<const void*>(x.data()), bytes.size());
    return bytes;
  }
  const Index columns = x.dimension(Rank - 1), stride = x.stride(Rank - 1);
  for (Index row = 0; row < x.size() / columns; ++row) {
    const T* from = x.data();
    Index rest = row;
    for (int axis = Rank - 1; axis-- > 0; rest /= x.dimension(axis)) from += rest % x.dimension(axis) * x.stride(axis);
    for (Index i = 0; i < columns; ++i, to += sizeof(T))
      std::memcpy(to, static_cast<const void*>(from + i * stride), sizeof(T));
  }
  return bytes;
}

/// A text as JSON. Errors: one that is not UTF-8.
[[nodiscard]] inline std::string json_text(std::string_view function, std::string_view text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    fail(function, "text, expected UTF-8, got ", std::string_view(quote_text(text)));
  }
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// Collects tensors and writes them as a safetensors file.
///
/// Types: float F32, double F64, half F16, bfloat16 BF16. Conventions: wider elements first, then by name, so that all are
/// aligned in a mapped file. The file is written beside its place and moved there: a failure leaves what was there, and
/// views of a file that is replaced stay valid.
class SafetensorsWriter {
 public:
  /// Copies a tensor or a view of any strides. Errors: a name that is empty, not UTF-8, was added before, or is
  /// "__metadata__".
  template <detail::TensorLike X>
  requires Scalar<detail::Element<X>>
  void add(const std::string& name, const X& x) {
    using T = detail::Element<X>;
    const View<const T, X::NumDimensions> view(x);
    check_name(name);
    put<T>(name, view, std::make_shared<const std::vector<std::byte>>(detail::packed_bytes(view)));
  }
  /// The same of a tensor that is given away: kept without a copy.
  template <Scalar T, int Rank>
  void add(const std::string& name, Tensor<T, Rank>&& x) {
    check_name(name);
    auto kept = std::make_shared<const Tensor<T, Rank>>(std::move(x));
    const View<const T, Rank> view(*kept);
    put<T>(name, view, std::move(kept));
  }
  /// Copies elements of any dtype of the format as bytes. Errors: besides, bytes that are not as many as the shape says.
  void add_bytes(const std::string& name, std::string dtype, std::vector<Index> shape,
                 std::span<const std::byte> bytes) {
    check_name(name);
    const std::uint64_t expected = detail::safetensors_bytes(fn, name, dtype, shape);
    detail::require(expected == bytes.size(), fn, std::string_view(name), ", expected ", expected, " bytes for ",
                    Shape(shape), " of ", std::string_view(dtype), ", got ", bytes.size());
    auto kept = std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
    const std::span<const std::byte> copy(*kept);
    tensors_[name] = {std::move(dtype), std::move(shape), copy, std::move(kept)};
  }
  /// Notes a text under a name, and replaces one that was there. Errors: texts that are not UTF-8.
  void set_metadata(const std::string& name, std::string text) {
    for (const std::string& part : {name, text}) (void)detail::json_text("SafetensorsWriter::set_metadata", part);
    metadata_[name] = std::move(text);
  }

  /// May be called again, as after more was added. Errors: a place that cannot be written to; names, shapes and metadata
  /// that SafetensorsFile would not take, of 50 MB and more.
  void write(const std::filesystem::path& path) const;

 private:
  static constexpr std::string_view fn = "SafetensorsWriter::add";

  struct Held {
    std::string dtype;
    std::vector<Index> shape;
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> memory;  // in which they lie
  };
  using Item = const std::pair<const std::string, Held>*;

  void check_name(const std::string& name) const {
    detail::require(!name.empty() && name != "__metadata__" && !tensors_.contains(name), fn,
                    "name, expected one that is not taken, got ", std::string_view(detail::quote_text(name)));
    (void)detail::json_text(fn, name);
  }
  template <class T, int Rank, class Memory>
  void put(const std::string& name, const View<const T, Rank>& view, std::shared_ptr<const Memory> memory) {
    const std::span bytes(reinterpret_cast<const std::byte*>(memory->data()),
                          static_cast<std::size_t>(view.size()) * sizeof(T));
    tensors_[name] = {
        std::string(detail::element_name<T>), {view.shape().begin(), view.shape().end()}, bytes, std::move(memory)};
  }
  [[nodiscard]] std::vector<Item> in_order() const {
    std::vector<Item> items;
    for (const auto& item : tensors_) items.push_back(&item);
    std::ranges::stable_sort(items, std::ranges::greater{},
                             [](Item item) { return detail::element_bits(item->second.dtype); });
    return items;
  }
  [[nodiscard]] std::string header(std::string_view function, const std::vector<Item>& items) const;

  std::map<std::string, Held> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// The JSON that stands before the data, padded to a multiple of 8 bytes.
inline std::string SafetensorsWriter::header(std::string_view function, const std::vector<Item>& items) const {
  std::string text = "{", separator;
  if (!metadata_.empty()) {
    text += "\"__metadata__\":{";
    for (const auto& [name, value] : metadata_) {
      text += separator + detail::json_text(function, name) + ":" + detail::json_text(function, value);
      separator = ",";
    }
    text += "}";
  }
  std::size_t end = 0;
  for (const Item item : items) {
    const auto& [name, held] = *item;
    const std::size_t begin = std::exchange(end, end + held.bytes.size());
    text += separator + detail::json_text(function, name) + ":{\"dtype\":\"" + held.dtype + "\",\"shape\":[";
    for (std::size_t axis = 0; axis < held.shape.size(); ++axis)
      text += (axis == 0 ? "" : ",") + std::to_string(held.shape[axis]);
    text += "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
    separator = ",";
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

inline void SafetensorsWriter::write(const std::filesystem::path& path) const {
  constexpr std::string_view function = "SafetensorsWriter::write";
  const std::vector<Item> items = in_order();
  const std::string text = header(function, items);
  (void)detail::parse_safetensors_header(function, "file " + path.string(), text);  // what is written can be read

  detail::NewFile file(function, path);
  std::array<std::byte, detail::safetensors_prefix> size{};
  for (std::size_t i = 0; i < size.size(); ++i) size[i] = static_cast<std::byte>(std::uint64_t{text.size()} >> (8 * i));
  file.write(size);
  file.write(std::as_bytes(std::span(text)));
  for (const Item item : items) file.write(item->second.bytes);
  file.finish();
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
