// safetensors files of any bytes: read or refused with attn::Error.
#include <attn/io/safetensors.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const attn::SafetensorsFile file(std::as_bytes(std::span(data, size)));
    for (const std::string& name : file.names()) {
      const attn::SafetensorsTensor tensor = file.tensor(name);
      if (!tensor.bytes.empty() &&
          (tensor.bytes.data() < reinterpret_cast<const std::byte*>(data) ||
           tensor.bytes.data() + tensor.bytes.size() > reinterpret_cast<const std::byte*>(data + size)))
        std::abort();
      try {
        if (tensor.shape.size() == 1) (void)file.read<float, 1>(name);
        if (tensor.shape.size() == 2) (void)file.read<Eigen::bfloat16, 2>(name);
        if (tensor.shape.size() == 3) (void)file.view<float, 3>(name);
      } catch (const attn::Error&) {  // a type or an alignment that is not taken
      }
    }
  } catch (const attn::Error&) {
  }
  return 0;
}
