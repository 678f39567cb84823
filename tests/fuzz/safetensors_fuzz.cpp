// safetensors files of any bytes: read or refused with attn::Error.
#include <attn/io/safetensors.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

template <class T, int Rank>
void read(const attn::SafetensorsFile& file, const std::string& name) {
  try {
    const auto copy = file.read<T, Rank>(name);
    const auto view = file.view<T, Rank>(name);
    require(copy.size() == view.size());
    require(std::equal(copy.data(), copy.data() + copy.size(), view.data(), [](const T& a, const T& b) {
      return a == b || (!(a == a) && !(b == b));  // NaN
    }));
  } catch (const attn::Error&) {  // another rank or type, or an alignment that is not taken
  }
}

void read(std::span<const std::byte> bytes) {
  try {
    const attn::SafetensorsFile file(bytes);
    std::size_t sum = 0;
    for (const std::string& name : file.names()) {
      require(file.contains(name));
      const attn::SafetensorsTensor tensor = file.tensor(name);
      require(tensor.bytes.empty() || (tensor.bytes.data() >= bytes.data() &&
                                       tensor.bytes.data() + tensor.bytes.size() <= bytes.data() + bytes.size()));
      sum += tensor.bytes.size();
      read<float, 0>(file, name), read<float, 1>(file, name), read<float, 2>(file, name);
      read<double, 2>(file, name), read<Eigen::half, 1>(file, name), read<Eigen::bfloat16, 3>(file, name);
    }
    require(sum <= bytes.size());
    for (const auto& [name, text] : file.metadata()) require(name.size() + text.size() <= bytes.size());
    try {
      (void)file.tensor("no.such.tensor");
    } catch (const attn::Error&) {
    }
  } catch (const attn::Error&) {
  }
}

}  // namespace

/// The file as it is, and once more with a header that ends at the last '}': fuzzers seldom guess how long it is.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  read(std::as_bytes(std::span(data, size)));
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::size_t end = text.rfind('}');
  if (end == text.npos || end < 8) return 0;
  std::vector<std::uint8_t> mended(data, data + size);
  for (std::size_t i = 0; i < 8; ++i) mended[i] = static_cast<std::uint8_t>(std::uint64_t{end - 7} >> (8 * i));
  if (!std::equal(mended.begin(), mended.begin() + 8, data)) read(std::as_bytes(std::span(mended)));
  return 0;
}
