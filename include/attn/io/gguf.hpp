// Edge. GGUF files: their metadata and tensors, checked when the file is opened and read when they are asked for.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "../math.hpp"
#include "../parallel.hpp"
#include "../scratch.hpp"
#include "../tensor.hpp"
#include "../view.hpp"
#include "gguf_blocks.hpp"
#include "gguf_header.hpp"
#include "gguf_metadata.hpp"
#include "gguf_types.hpp"
#include "mapped_file.hpp"

namespace attn {
inline namespace ATTN_EIGEN_ABI {

/// A tensor as it lies in the file.
struct GgufTensor {
  GgufType type = GgufType::f32;
  std::vector<Index> shape;          ///< row-major: a weight is [out,in], which the file calls ne = {in, out}
  std::span<const std::byte> bytes;  ///< valid as long as the file is
};

/// A GGUF file of version 2 or 3. It is mapped, or lies in memory of the caller's; tensors and arrays are read when
/// they are asked for. Copies share the mapping.
///
/// The constructor checks the whole structure, and takes memory for what it finds, 8 bytes a key and some 80 a tensor:
/// never for a count that the file only claims. A mapped file must not change while it is used: one that has become
/// shorter is refused, where that is noticed in time.
/// Source: ggml, docs/gguf.md.
class GgufFile {
 public:
  /// Errors: a file that cannot be read, or whose structure is not as the format says.
  explicit GgufFile(const std::filesystem::path& path)
      : mapped_(std::make_shared<const MappedFile>(path)),
        bytes_(mapped_->bytes()),
        name_(path.string()),
        header_(bytes_, name_) {}
  /// A file in memory, which must outlive this object and whatever it hands out. Errors: as above.
  explicit GgufFile(std::span<const std::byte> bytes)
      : bytes_(bytes), name_("a GGUF file in memory"), header_(bytes_, name_) {}

  [[nodiscard]] std::uint32_t version() const { return header_.version(); }
  [[nodiscard]] Index alignment() const { return Index{header_.alignment()}; }

  // ---- Metadata ----

  /// All keys, in alphabetical order.
  [[nodiscard]] std::vector<std::string_view> keys() const {
    check_unchanged("GgufFile::keys");
    return header_.metadata().keys();
  }
  [[nodiscard]] bool has(std::string_view key) const {
    check_unchanged("GgufFile::has");
    return header_.metadata().has(key);
  }
  [[nodiscard]] bool is_array(std::string_view key) const {
    return has(key) && place("GgufFile::is_array", key).is_array;
  }
  /// A single value. Integers are read from any stored integer type, float and double from any number.
  /// Errors: a key that is not there, a value of another kind, a number that T cannot hold.
  template <GgufValue T>
  [[nodiscard]] T get(std::string_view key) const {
    constexpr auto fn = "GgufFile::get";
    const detail::GgufPlace at = place(fn, key);
    detail::require(!at.is_array, fn, key, ", expected a single value, got an array of ", at.count);
    return decoder<T>(fn, at, key).next();
  }
  /// The same, or `otherwise` where there is no such key.
  template <GgufValue T>
  [[nodiscard]] T get_or(std::string_view key, T otherwise) const {
    return has(key) ? get<T>(key) : otherwise;
  }
  /// The values of an array. Errors: as get; a single value.
  template <GgufValue T>
  [[nodiscard]] std::vector<T> array(std::string_view key) const {
    constexpr auto fn = "GgufFile::array";
    const detail::GgufPlace at = place(fn, key);
    detail::require(at.is_array, fn, key, ", expected an array, got a single value");
    detail::GgufDecoder<T> values = decoder<T>(fn, at, key);
    std::vector<T> all;
    all.reserve(static_cast<std::size_t>(at.count));  // the file has been found to hold as many
    for (std::uint64_t i = 0; i < at.count; ++i) all.push_back(values.next());
    return all;
  }

  // ---- Tensors ----

  /// All names, in the order of the file.
  [[nodiscard]] std::vector<std::string_view> names() const {
    check_unchanged("GgufFile::names");
    std::vector<std::string_view> all;
    all.reserve(header_.tensors().size());
    for (const detail::GgufEntry& entry : header_.tensors()) all.push_back(entry.name);
    return all;
  }
  [[nodiscard]] bool contains(std::string_view name) const {
    check_unchanged("GgufFile::contains");
    return header_.find(name) != nullptr;
  }
  /// Errors: a name that is not there, a file that has become shorter.
  [[nodiscard]] GgufTensor tensor(std::string_view name) const { return tensor("GgufFile::tensor", name); }

  /// The numbers of a tensor, converted: quantised ones of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL and
  /// MXFP4 are multiplied out in float; all are rounded to T to nearest.
  /// Errors: a name that is not there, another rank, a type that is not read.
  template <Scalar T, int Rank>
  [[nodiscard]] Tensor<T, Rank> read(std::string_view name) const {
    constexpr auto fn = "GgufFile::read";
    const GgufTensor from = tensor(fn, name);
    detail::require(from.type == GgufType::f64 || detail::dequantise_of(from.type) != nullptr, fn, name,
                    ", expected a type that attn reads, got ", gguf_type_name(from.type));
    auto to = detail::make_tensor<T, Rank>(shape_of_rank<Rank>(fn, name, from));
    convert(from, to.data(), static_cast<Index>(to.size()));
    return to;
  }
  /// The numbers of a tensor where they lie. It is valid as long as the file is.
  /// Errors: a name that is not there, another rank, numbers that are not stored as T or not aligned to it.
  template <Scalar T, int Rank>
  [[nodiscard]] View<const T, Rank> view(std::string_view name) const {
    constexpr auto fn = "GgufFile::view";
    const GgufTensor from = tensor(fn, name);
    const auto shape = shape_of_rank<Rank>(fn, name, from);
    detail::require(from.type == stored_type<T>(), fn, name, ", expected numbers of type ",
                    gguf_type_name(stored_type<T>()), ", got ", gguf_type_name(from.type));
    detail::require(is_aligned<T>(from), fn, name, ", expected bytes that are aligned to ", alignof(T),
                    ", got others; read() takes them");
    return {static_cast<const T*>(static_cast<const void*>(from.bytes.data())), shape};
  }
  /// Whether `view` gives this tensor as T. Errors: a name that is not there.
  template <Scalar T>
  [[nodiscard]] bool has_view(std::string_view name) const {
    const GgufTensor from = tensor("GgufFile::has_view", name);
    return from.type == stored_type<T>() && is_aligned<T>(from);
  }

 private:
  // ---- Reading ----

  void check_unchanged(std::string_view fn) const {
    if (mapped_ != nullptr) mapped_->check_unchanged(fn);
  }
  [[nodiscard]] detail::GgufPlace place(std::string_view fn, std::string_view key) const {
    check_unchanged(fn);
    return header_.metadata().place(fn, bytes_, name_, key);
  }
  template <class T>
  [[nodiscard]] detail::GgufDecoder<T> decoder(std::string_view fn, const detail::GgufPlace& at,
                                               std::string_view key) const {
    return {fn, detail::GgufReader(bytes_, name_, at.at), at.type, key};
  }
  [[nodiscard]] GgufTensor tensor(std::string_view fn, std::string_view name) const {
    check_unchanged(fn);  // names lie in the file, too
    const detail::GgufEntry* const entry = header_.find(name);
    detail::require(entry != nullptr, fn, "tensor in ", std::string_view(name_), ", expected one of the file's, got ",
                    name);
    return {.type = entry->type,
            .shape = {entry->shape.begin(), entry->shape.begin() + entry->rank},
            .bytes = header_.bytes_of(*entry, bytes_)};
  }
  template <int Rank>
  [[nodiscard]] static std::array<Index, std::size_t{Rank}> shape_of_rank(std::string_view fn, std::string_view name,
                                                                          const GgufTensor& tensor) {
    detail::require(tensor.shape.size() == std::size_t{Rank}, fn, name, ", expected rank ", Rank, ", got ",
                    Shape(tensor.shape));
    std::array<Index, std::size_t{Rank}> shape{};
    std::copy_n(tensor.shape.begin(), Rank, shape.begin());
    return shape;
  }
  template <class T>
  [[nodiscard]] static constexpr GgufType stored_type() {
    if constexpr (std::same_as<T, double>) return GgufType::f64;
    if constexpr (std::same_as<T, float>) return GgufType::f32;
    if constexpr (std::same_as<T, Eigen::half>) return GgufType::f16;
    return GgufType::bf16;
  }
  template <class T>
  [[nodiscard]] static bool is_aligned(const GgufTensor& tensor) {
    return reinterpret_cast<std::uintptr_t>(tensor.bytes.data()) % alignof(T) == 0;
  }
  /// Converts n numbers, on several threads where that is worth it. Stretches are whole blocks of every type.
  template <class T>
  static void convert(const GgufTensor& from, T* to, Index n) {
    constexpr Index stretch = 1 << 14;
    const detail::GgufTypeFacts& facts = *detail::find_gguf_type(static_cast<std::uint32_t>(from.type));
    const detail::Dequantise dequantise = detail::dequantise_of(from.type);
    const bool is_double = from.type == GgufType::f64, is_own = from.type == stored_type<T>();
    constexpr bool in_place = std::same_as<T, float>;
    const Index tasks = detail::ceil_div(n, stretch), block = facts.block, bytes = facts.bytes;
    detail::run_tasks(tasks, 4.0 * static_cast<double>(n), in_place ? 0 : stretch * Index{sizeof(float)},
                      [&](Index task, std::byte* memory) {
                        const Index first = task * stretch, count = std::min(stretch, n - first);
                        const std::byte* const source = from.bytes.data() + first / block * bytes;
                        if (is_own) {
                          std::memcpy(static_cast<void*>(to + first), source, static_cast<std::size_t>(count * bytes));
                        } else if (is_double) {
                          for (Index i = 0; i < count; ++i) to[first + i] = static_cast<T>(double_at(source + 8 * i));
                        } else if constexpr (in_place) {
                          dequantise(source, to + first, count / block);
                        } else {
                          auto* const floats = detail::Scratch(memory).take<float>(stretch);
                          dequantise(source, floats, count / block);
                          for (Index i = 0; i < count; ++i) to[first + i] = static_cast<T>(floats[i]);
                        }
                      });
  }
  [[nodiscard]] static double double_at(const std::byte* from) {
    double number = 0;
    std::memcpy(&number, from, sizeof number);
    return number;
  }

  std::shared_ptr<const MappedFile> mapped_;  // null for a file in memory of the caller's
  std::span<const std::byte> bytes_;
  std::string name_;  // for messages
  detail::GgufHeader header_;
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn
