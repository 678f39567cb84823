#pragma once
// GGUF files for tests, written byte by byte: those that a writer should make, and those that none should.
#include <attn/io/gguf_types.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace attn_test::gguf {

using attn::GgufType;
using attn::GgufValueType;
using Bytes = std::vector<std::byte>;

/// Appends numbers as they lie in memory, and strings with their length before them.
template <class T>
void put(Bytes& to, const T& number) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto* const from = reinterpret_cast<const std::byte*>(&number);
  to.insert(to.end(), from, from + sizeof(T));
}
inline void put_text(Bytes& to, std::string_view text) {
  put<std::uint64_t>(to, text.size());
  const auto* const from = reinterpret_cast<const std::byte*>(text.data());
  to.insert(to.end(), from, from + text.size());
}
template <class T>
void write_over(Bytes& bytes, std::size_t at, const T& number) {
  std::memcpy(bytes.data() + at, &number, sizeof(T));
}
/// The bytes of some numbers.
template <class T>
Bytes bytes_of(std::initializer_list<T> numbers) {
  Bytes bytes;
  for (const T& number : numbers) put(bytes, number);
  return bytes;
}
template <class T>
Bytes bytes_of(const std::vector<T>& numbers) {
  Bytes bytes;
  for (const T& number : numbers) put(bytes, number);
  return bytes;
}

template <class T>
constexpr GgufValueType value_type_of() {
  if constexpr (std::is_same_v<T, bool>) return GgufValueType::boolean;
  if constexpr (std::is_same_v<T, float>) return GgufValueType::f32;
  if constexpr (std::is_same_v<T, double>) return GgufValueType::f64;
  if constexpr (std::is_same_v<T, std::string>) return GgufValueType::string;
  constexpr std::array unsigned_types{GgufValueType::u8, GgufValueType::u16, GgufValueType::u32, GgufValueType::u64};
  constexpr std::array signed_types{GgufValueType::i8, GgufValueType::i16, GgufValueType::i32, GgufValueType::i64};
  constexpr std::size_t size = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
  return std::is_signed_v<T> ? signed_types[size] : unsigned_types[size];
}

/// What a tensor's entry in the header says, which need not be true.
struct TensorInfo {
  std::string name;
  std::uint32_t rank = 0;
  std::vector<std::int64_t> ne;
  std::uint32_t type = 0;
  std::uint64_t offset = 0;
};

/// Writes a file: keys and tensors in the order in which they were added.
class Writer {
 public:
  std::uint32_t version = 3;
  std::size_t alignment = 32;

  template <class T>
  Writer& add(std::string_view key, const T& value) {
    begin(key, value_type_of<T>());
    put_value(keys_, value);
    return *this;
  }
  Writer& add(std::string_view key, const char* value) { return add(key, std::string(value)); }
  template <class T>
  Writer& add_array(std::string_view key, const std::vector<T>& values) {
    begin(key, GgufValueType::array);
    put(keys_, static_cast<std::uint32_t>(value_type_of<T>()));
    put<std::uint64_t>(keys_, values.size());
    for (const T& value : values) put_value(keys_, value);
    return *this;
  }
  /// A pair whose type and value are anything.
  Writer& add_raw(std::string_view key, std::uint32_t type, const Bytes& value) {
    begin(key, static_cast<GgufValueType>(type));
    keys_.insert(keys_.end(), value.begin(), value.end());
    return *this;
  }
  /// A tensor of a row-major shape, behind those before it.
  Writer& add_tensor(std::string_view name, GgufType type, const std::vector<std::int64_t>& shape, const Bytes& bytes) {
    add_info({.name = std::string(name),
              .rank = static_cast<std::uint32_t>(shape.size()),
              .ne = {shape.rbegin(), shape.rend()},
              .type = static_cast<std::uint32_t>(type),
              .offset = data_.size()});
    data_.insert(data_.end(), bytes.begin(), bytes.end());
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  /// An entry whose numbers are anything, without bytes of its own.
  Writer& add_info(const TensorInfo& info) {
    put_text(infos_, info.name);
    put(infos_, info.rank);
    for (const std::int64_t n : info.ne) put(infos_, n);
    put(infos_, info.type);
    put(infos_, info.offset);
    ++tensors_;
    return *this;
  }
  [[nodiscard]] Bytes bytes() const {
    Bytes file = bytes_of({'G', 'G', 'U', 'F'});
    put(file, version);
    put(file, tensors_);
    put(file, count_);
    file.insert(file.end(), keys_.begin(), keys_.end());
    file.insert(file.end(), infos_.begin(), infos_.end());
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    file.insert(file.end(), data_.begin(), data_.end());
    return file;
  }

 private:
  void begin(std::string_view key, GgufValueType type) {
    put_text(keys_, key);
    put(keys_, static_cast<std::uint32_t>(type));
    ++count_;
  }
  template <class T>
  static void put_value(Bytes& to, const T& value) {
    if constexpr (std::is_same_v<T, std::string>)
      put_text(to, value);
    else
      put(to, value);
  }

  Bytes keys_, infos_, data_;
  std::int64_t count_ = 0, tensors_ = 0;
};

}  // namespace attn_test::gguf
