#pragma once
// Safetensors files written by hand.

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace attn_test {

/// A file: the length of its header, the header, the data.
[[nodiscard]] inline std::string file_of(const std::string& header, const std::string& data = {}) {
  std::string bytes(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(std::uint64_t{header.size()} >> (8 * i) & 0xFF);
  return bytes + header + data;
}
[[nodiscard]] inline std::string data_of(std::initializer_list<float> numbers) {
  std::string bytes;
  for (const float number : numbers) bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
  return bytes;
}

}  // namespace attn_test
