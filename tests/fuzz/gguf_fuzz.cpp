// GGUF files of any bytes: read or refused with attn::Error, within memory in proportion to the file.
#include <attn/io/gguf.hpp>
#include <attn/io/gguf_tokenizer.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace {

using attn::Error;
using attn::GgufFile;

/// Asks for something that may be refused.
template <class F>
void try_to(const F& f) {
  try {
    f();
  } catch (const Error&) {  // a sentence is an answer, too
  }
}
void require(bool ok) {
  if (!ok) std::abort();
}

template <class T>
void read_value(const GgufFile& file, std::string_view key) {
  try_to([&] {
    if (file.is_array(key))
      (void)file.array<T>(key);
    else
      (void)file.get<T>(key);
  });
}
template <int Rank>
void read_tensor(const GgufFile& file, std::string_view name) {
  try_to([&] {
    const auto x = file.read<float, Rank>(name);
    // Where the numbers can be seen as they lie, both ways give the same bits.
    if (file.has_view<float>(name) && x.size() > 0)
      require(std::memcmp(x.data(), file.view<float, Rank>(name).data(),
                          sizeof(float) * static_cast<std::size_t>(x.size())) == 0);
  });
  try_to([&] { (void)file.read<Eigen::half, Rank>(name); });
  try_to([&] { (void)file.read<double, Rank>(name); });
}
template <class Tokenizer>
void encode(const Tokenizer& tokenizer) {
  for (const std::string_view text : {"a text of 12 words, don't", " \n\xC3\xA9\xFF<s>"}) {
    try_to([&] { (void)tokenizer.decode(tokenizer.encode(text)); });
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try_to([&] {
    const GgufFile file(std::as_bytes(std::span(data, size)));
    for (const std::string_view key : file.keys()) {
      require(file.has(key));
      read_value<std::int32_t>(file, key);
      read_value<std::uint64_t>(file, key);
      read_value<double>(file, key);
      read_value<bool>(file, key);
      read_value<std::string_view>(file, key);
    }
    for (const std::string_view name : file.names()) {
      require(file.contains(name));
      require(file.tensor(name).bytes.size() <= size);
      const std::size_t rank = file.tensor(name).shape.size();
      if (rank == 0) read_tensor<0>(file, name);
      if (rank == 1) read_tensor<1>(file, name);
      if (rank == 2) read_tensor<2>(file, name);
      if (rank == 3) read_tensor<3>(file, name);
      if (rank == 4) read_tensor<4>(file, name);
    }
    try_to([&] { encode(sentence_piece_tokenizer(file)); });
    try_to([&] { encode(byte_pair_tokenizer(file)); });
  });
  return 0;
}
