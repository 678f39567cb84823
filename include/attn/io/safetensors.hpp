// Edge. Tensors in safetensors files: read without copies where possible, and written.
#pragma once

#if !__has_include(<nlohmann/json.hpp>)
#error "attn: safetensors.hpp needs nlohmann-json 3.11 (Debian: nlohmann-json3-dev)"
#endif

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../tensor.hpp"
#include "elements.hpp"
#include "mapped_file.hpp"
#include "safetensors_header.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

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
  [[nodiscard]] bool contains(std::string_view name) const { return header_.tensors.contains(std::string(name)); }
  /// What the writer of the file noted: names and texts.
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  /// A tensor's type, shape and bytes. Errors: a name that is not there; a file that has become shorter.
  [[nodiscard]] SafetensorsTensor tensor(std::string_view name) const {
    const auto found = header_.tensors.find(std::string(name));
    if (found == header_.tensors.end()) refuse_name(name);
    if (file_) file_->check_unchanged("SafetensorsFile::tensor");
    const detail::SafetensorsEntry& entry = found->second;
    return {entry.dtype, entry.shape, data_.subspan(entry.begin, entry.end - entry.begin)};
  }

  /// The elements as they lie in the file. Errors: besides, another rank or type, an address that is not aligned for T;
  /// read() copies.
  template <Scalar T, int Rank>
  [[nodiscard]] View<const T, Rank> view(std::string_view name) const {
    constexpr auto fn = "SafetensorsFile::view";
    const SafetensorsTensor found = tensor(name);
    const auto shape = shape_of<Rank>(fn, name, found);
    detail::require(found.dtype == detail::element_name<T>, fn, name, ", expected elements ", detail::element_name<T>,
                    ", got ", std::string_view(found.dtype), "; read() converts");
    detail::require(reinterpret_cast<std::uintptr_t>(found.bytes.data()) % alignof(T) == 0, fn, name,
                    ", expected an aligned address; read() copies");
    return {static_cast<const T*>(static_cast<const void*>(found.bytes.data())), shape};
  }
  /// A copy, its elements converted. Errors: besides, a type of element that attn does not read.
  template <Scalar T, int Rank>
  [[nodiscard]] Tensor<T, Rank> read(std::string_view name) const {
    constexpr auto fn = "SafetensorsFile::read";
    const SafetensorsTensor found = tensor(name);
    auto result = detail::make_tensor<T, Rank>(shape_of<Rank>(fn, name, found));
    detail::require(detail::convert_elements(found.dtype, found.bytes, result.data(), result.size()), fn, name,
                    ", expected F64, F32, F16, BF16, integers or BOOL, got ", std::string_view(found.dtype));
    return result;
  }

 private:
  void read_header(std::span<const std::byte> bytes) {
    header_ = detail::read_safetensors_header(bytes);
    data_ = bytes.subspan(header_.size);
  }
  template <int Rank>
  static std::array<Index, std::size_t{Rank}> shape_of(std::string_view fn, std::string_view name,
                                                       const SafetensorsTensor& tensor) {
    detail::require(std::ssize(tensor.shape) == Rank, fn, name, ", expected rank ", Index{Rank}, ", got ",
                    Shape(tensor.shape));
    std::array<Index, std::size_t{Rank}> shape{};
    if constexpr (Rank > 0) std::copy(tensor.shape.begin(), tensor.shape.end(), shape.begin());
    return shape;
  }
  /// Names the nearest name: the one with the longest common end, where exporters differ in prefixes.
  [[noreturn]] void refuse_name(std::string_view name) const {
    std::string_view nearest;
    std::ptrdiff_t best = 3;
    for (const auto& [other, entry] : header_.tensors) {
      const auto end = std::mismatch(name.rbegin(), name.rend(), other.rbegin(), other.rend()).first;
      if (end - name.rbegin() > best) best = end - name.rbegin(), nearest = other;
    }
    const std::string file = file_ ? file_->path().string() : "memory";
    detail::fail("SafetensorsFile::tensor", "name, expected one of ", static_cast<Index>(header_.tensors.size()),
                 " in ", std::string_view(file), ", got ", name, nearest.empty() ? "" : "; there is ", nearest);
  }

  std::shared_ptr<const MappedFile> file_;  // null over the caller's memory
  detail::SafetensorsHeader header_;
  std::span<const std::byte> data_;
};

/// Collects tensors and writes them as a safetensors file.
///
/// Types: float F32, double F64, half F16, bfloat16 BF16. Conventions: wider elements first, then by name, so that all are
/// aligned in a mapped file. The file is written beside its place and moved there: a failure leaves what was there.
class SafetensorsWriter {
 public:
  /// Copies a tensor or a view of any strides. Errors: a name that is empty, was added before, or is "__metadata__".
  template <detail::TensorLike X>
  requires Scalar<detail::Element<X>>
  void add(const std::string& name, const X& x) {
    using T = detail::Element<X>;
    const View<const T, X::NumDimensions> view(x);
    std::vector<T> elements(static_cast<std::size_t>(view.size()));
    for (Index i = 0; i < view.size(); ++i) {
      Index rest = i;
      const T* at = view.data();
      for (int axis = X::NumDimensions; axis-- > 0; rest /= view.dimension(axis))
        at += rest % view.dimension(axis) * view.stride(axis);
      elements[static_cast<std::size_t>(i)] = *at;
    }
    add_bytes(name, std::string(detail::element_name<T>), {view.shape().begin(), view.shape().end()},
              std::as_bytes(std::span(elements)));
  }
  /// Copies elements of any dtype of the format as bytes. Errors: besides, bytes that are not as many as the shape says.
  void add_bytes(const std::string& name, std::string dtype, std::vector<Index> shape,
                 std::span<const std::byte> bytes) {
    constexpr auto fn = "SafetensorsWriter::add";
    detail::require(!name.empty() && name != "__metadata__" && !tensors_.contains(name), fn,
                    "name, expected one that is not taken, got '", std::string_view(name), "'");
    detail::require(detail::size_in_bytes(fn, name, dtype, shape) == bytes.size(), fn, std::string_view(name),
                    ", expected as many bytes as the shape says, got ", static_cast<Index>(bytes.size()));
    tensors_[name] = {std::move(dtype), std::move(shape), {bytes.begin(), bytes.end()}};
  }
  void set_metadata(const std::string& name, std::string text) { metadata_[name] = std::move(text); }

  /// Errors: a place that cannot be written to.
  void write(const std::filesystem::path& path) const;

 private:
  struct Held {
    std::string dtype;
    std::vector<Index> shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Held> tensors_;
  std::map<std::string, std::string> metadata_;
};

inline void SafetensorsWriter::write(const std::filesystem::path& path) const {
  using Item = const std::pair<const std::string, Held>*;
  std::vector<Item> order;
  for (const auto& item : tensors_) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(), [](Item a, Item b) {
    return detail::element_bits(a->second.dtype) > detail::element_bits(b->second.dtype);
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata_.empty()) header["__metadata__"] = metadata_;
  std::size_t end = 0;
  for (const Item item : order) {
    const std::size_t begin = std::exchange(end, end + item->second.bytes.size());
    header[item->first] = {
        {"dtype", item->second.dtype}, {"shape", item->second.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');

  auto beside = path;
  beside += ".part";
  {
    std::ofstream file(beside, std::ios::binary);
    const auto put = [&](std::span<const std::byte> bytes) {
      file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    };
    std::array<std::byte, 8> size{};
    for (std::size_t i = 0; i < 8; ++i) size[i] = static_cast<std::byte>(std::uint64_t{text.size()} >> (8 * i));
    put(size);
    put(std::as_bytes(std::span(text)));
    for (const Item item : order) put(item->second.bytes);
    file.close();
    const std::string name = beside.string();
    if (!file) std::filesystem::remove(beside);
    detail::require(static_cast<bool>(file), "SafetensorsWriter::write", "file, expected one that can be written, got ",
                    std::string_view(name));
  }
  std::filesystem::rename(beside, path);
}

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
