// Floor 1. The header of GGUF files: everything but the numbers of the tensors, checked.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "../error.hpp"
#include "gguf_metadata.hpp"
#include "gguf_types.hpp"

namespace attn::detail {

/// What the header says of a tensor.
struct GgufEntry {
  std::string_view name;  ///< in the file
  GgufType type = GgufType::f32;
  std::uint32_t rank = 0;
  std::array<Index, 4> shape{};  ///< row-major
  std::uint64_t offset = 0;      ///< from where the tensors begin
  std::uint64_t size = 0;        ///< in bytes

  [[nodiscard]] Shape sizes() const { return as_shape(shape).first(rank); }
};

/// Reads the header from front to back. Every error is thrown here; what has been read can be relied on.
/// Source: ggml, docs/gguf.md.
class GgufHeader {
 public:
  GgufHeader() = default;
  /// file: the whole file. name: for messages.
  GgufHeader(std::span<const std::byte> file, std::string_view name) {
    GgufReader reader(file, name);
    read_version(reader);
    const std::size_t tensors = count(reader, "tensors", most_tensors, 24);
    const std::size_t keys = count(reader, "keys", most_keys, 13);
    metadata_ = GgufMetadata(reader, keys);
    read_alignment(file, name);
    tensors_.reserve(tensors);
    std::uint64_t offset = 0;
    for (std::size_t i = 0; i < tensors; ++i) offset = read_entry(reader, offset);
    place_data(reader.at(), file.size(), name);
    sort_names(name);
  }

  [[nodiscard]] std::uint32_t version() const { return version_; }
  [[nodiscard]] std::uint32_t alignment() const { return alignment_; }
  [[nodiscard]] const GgufMetadata& metadata() const { return metadata_; }
  /// In the order of the file.
  [[nodiscard]] std::span<const GgufEntry> tensors() const { return tensors_; }
  /// Null where there is no tensor of this name.
  [[nodiscard]] const GgufEntry* find(std::string_view name) const {
    const auto found = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                        [&](std::uint32_t a, std::string_view b) { return tensors_[a].name < b; });
    return found != by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
  }
  /// The bytes of a tensor.
  [[nodiscard]] std::span<const std::byte> bytes_of(const GgufEntry& tensor, std::span<const std::byte> file) const {
    if (tensor.size == 0) return {};
    return file.subspan(static_cast<std::size_t>(data_ + tensor.offset), static_cast<std::size_t>(tensor.size));
  }

 private:
  static constexpr auto fn = "GgufFile";
  // Far above what models have, 10^3 of both; low enough that the lists take less than 32 MB.
  static constexpr std::int64_t most_keys = 1 << 20, most_tensors = 1 << 18;
  static constexpr std::size_t longest_name = 63;
  static constexpr std::uint32_t most_rank = 4;
  static constexpr std::uint64_t most_bytes = std::uint64_t{1} << 60;

  void read_version(GgufReader& reader) {
    const auto* const magic = reinterpret_cast<const char*>(reader.take(4, "header"));
    require(std::string_view(magic, 4) == "GGUF", fn, "first bytes of ", reader.name(), ", expected GGUF, got others");
    version_ = reader.number<std::uint32_t>("header");
    const bool big_endian = version_ > 0 && version_ % 65536 == 0;
    require(!big_endian, fn, "byte order of ", reader.name(), ", expected little-endian, got big-endian");
    require(version_ == 2 || version_ == 3, fn, "version of ", reader.name(), ", expected 2 or 3, got ", version_);
  }
  /// A count of things of which each takes `least` bytes or more.
  static std::size_t count(GgufReader& reader, std::string_view what, std::int64_t most, std::size_t least) {
    const auto n = reader.number<std::int64_t>("header");
    require(n >= 0 && n <= most, fn, what, " in ", reader.name(), ", expected 0 to ", most, ", got ", n);
    require(static_cast<std::uint64_t>(n) <= reader.left() / least, fn, what, " in ", reader.name(),
            ", expected as many as ", reader.left(), " bytes can hold, got ", n);
    return static_cast<std::size_t>(n);
  }
  void read_alignment(std::span<const std::byte> file, std::string_view name) {
    constexpr auto key = "general.alignment";
    if (!metadata_.has(key)) return;
    const GgufPlace at = metadata_.place(fn, file, name, key);
    require(!at.is_array && at.type == static_cast<std::uint32_t>(GgufValueType::u32), fn, key, " in ", name,
            ", expected a value of type u32, got ", at.is_array ? "an array of " : "", gguf_value_name(at.type));
    alignment_ = GgufReader(file, name, at.at).number<std::uint32_t>(key);
    require(std::has_single_bit(alignment_), fn, key, " in ", name, ", expected a power of two, got ", alignment_);
  }
  /// Reads what the header says of one tensor, which must lie at `offset`. Returns where the next one must.
  std::uint64_t read_entry(GgufReader& reader, std::uint64_t offset) {
    GgufEntry entry{};
    entry.name = reader.string("name of a tensor");
    require(entry.name.size() <= longest_name, fn, "name of tensor ", tensors_.size(), " in ", reader.name(),
            ", expected at most ", longest_name, " bytes, got ", entry.name.size());
    entry.rank = reader.number<std::uint32_t>(entry.name);
    require(entry.rank <= most_rank, fn, "rank of ", entry.name, " in ", reader.name(), ", expected 0 to 4, got ",
            entry.rank);
    for (std::size_t axis = entry.rank; axis-- > 0;)
      entry.shape[axis] = static_cast<Index>(reader.number<std::int64_t>(entry.name));
    const auto type = reader.number<std::uint32_t>(entry.name);
    const GgufTypeFacts* const facts = find_gguf_type(type);
    require(facts != nullptr, fn, "type of ", entry.name, " in ", reader.name(), ", expected one that GGUF has, got ",
            static_cast<std::int32_t>(type));
    entry.type = facts->type;
    entry.size = size_of(reader.name(), entry, *facts);
    entry.offset = reader.number<std::uint64_t>(entry.name);
    require(entry.offset == offset, fn, "offset of ", entry.name, " in ", reader.name(),
            ", expected tensors one after the other, this one at ", static_cast<std::int64_t>(offset), ", got ",
            static_cast<std::int64_t>(entry.offset));
    tensors_.push_back(entry);
    std::uint64_t next = 0;
    const bool fits = !__builtin_add_overflow(offset, entry.size, &next) && next <= most_bytes;
    require(fits, fn, "size of ", entry.name, " in ", reader.name(), ", expected bytes that a file can have, got ",
            entry.sizes());
    return padded(next);
  }
  /// The bytes of a tensor; sizes of 0 do not hide others whose product no file could have.
  [[nodiscard]] static std::uint64_t size_of(std::string_view name, const GgufEntry& entry,
                                             const GgufTypeFacts& facts) {
    const Shape shape = entry.sizes();
    const Index columns = entry.rank == 0 ? 1 : shape.back();
    std::uint64_t elements = 1;
    bool empty = false;
    for (const Index size : shape) {
      require(size >= 0, fn, "shape of ", entry.name, " in ", name, ", expected no negative size, got ", shape);
      empty = empty || size == 0;
      const bool fits =
          !__builtin_mul_overflow(elements, static_cast<std::uint64_t>(std::max<Index>(size, 1)), &elements) &&
          elements <= most_bytes / 8;
      require(fits, fn, "shape of ", entry.name, " in ", name, ", expected a size that a file can have, got ", shape);
    }
    require(columns % static_cast<Index>(facts.block) == 0, fn, "shape of ", entry.name, " in ", name,
            ", expected a multiple of ", facts.block, " numbers in a row of ", facts.name, ", got ", shape);
    return empty ? 0 : elements / facts.block * facts.bytes;
  }
  /// Finds where the tensors begin, behind the header, and that the file goes on to the end of the last one.
  void place_data(std::size_t header, std::size_t size, std::string_view name) {
    data_ = padded(header);
    for (const GgufEntry& tensor : tensors_) {
      if (tensor.size == 0) continue;  // it may stand behind padding that the file's end lacks
      const std::uint64_t end = data_ + tensor.offset + tensor.size;  // each below 2^61
      require(end <= size, fn, "bytes of ", name, ", expected ", end, " to the end of ", tensor.name, ", got ", size);
    }
  }
  void sort_names(std::string_view name) {
    by_name_.resize(tensors_.size());
    for (std::size_t i = 0; i < by_name_.size(); ++i) by_name_[i] = static_cast<std::uint32_t>(i);
    std::sort(by_name_.begin(), by_name_.end(),
              [&](std::uint32_t a, std::uint32_t b) { return tensors_[a].name < tensors_[b].name; });
    for (std::size_t i = 1; i < by_name_.size(); ++i) {
      const std::string_view tensor = tensors_[by_name_[i]].name;
      require(tensor != tensors_[by_name_[i - 1]].name, fn, "names in ", name, ", expected each once, got ", tensor,
              " twice");
    }
  }
  [[nodiscard]] std::uint64_t padded(std::uint64_t bytes) const {
    return (bytes + alignment_ - 1) / alignment_ * alignment_;
  }

  std::uint32_t version_ = 0, alignment_ = 32;
  std::uint64_t data_ = 0;  // where the tensors begin
  GgufMetadata metadata_;
  std::vector<GgufEntry> tensors_;      // in the order of the file
  std::vector<std::uint32_t> by_name_;  // their numbers, in alphabetical order
};

}  // namespace attn::detail
