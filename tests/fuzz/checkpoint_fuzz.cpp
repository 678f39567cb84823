// Checkpoints and tokenizer files of llama2.c, of any bytes: read or refused with attn::Error.
#include "../../examples/llama2c.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

namespace {

/// A file in memory, at a path of its own.
class MemoryFile {
 public:
  MemoryFile(const std::uint8_t* data, std::size_t size) : descriptor_(::memfd_create("attn_fuzz", 0)) {
    if (descriptor_ < 0 || ::write(descriptor_, data, size) != static_cast<ssize_t>(size)) std::abort();
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(descriptor_); }

  [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const MemoryFile file(data, size);
  try {
    const attn::examples::Llama model = attn::examples::load_checkpoint(file.path());
    const attn::examples::Token token = 0;
    (void)model.forward({&token, {1, 1}});
  } catch (const attn::Error&) {
  }
  try {
    const attn::examples::Tokenizer tokenizer(file.path());
    const std::string text = "a text, don't \n";
    const auto tokens = tokenizer.encode(text);
    for (std::size_t i = 1; i < tokens.size(); ++i) (void)tokenizer.decode(tokens[i - 1], tokens[i]);
  } catch (const attn::Error&) {
  }
  return 0;
}
