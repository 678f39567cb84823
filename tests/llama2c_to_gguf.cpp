// Converts a model of llama2.c: llama2c_to_gguf CHECKPOINT TOKENIZER F32|F16|Q8_0 OUT
#include "llama2c_to_gguf.hpp"

#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  using attn::GgufType;
  const std::string type = argc == 5 ? argv[3] : "";
  if (type != "F32" && type != "F16" && type != "Q8_0") {
    std::cerr << "usage: llama2c_to_gguf CHECKPOINT TOKENIZER F32|F16|Q8_0 OUT\n";
    return 1;
  }
  const attn_test::gguf::Bytes bytes = attn_test::gguf::llama2c_to_gguf(argv[1], argv[2],
                                                                        type == "F32"   ? GgufType::f32
                                                                        : type == "F16" ? GgufType::f16
                                                                                        : GgufType::q8_0);
  std::ofstream out(argv[4], std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
  out.close();
  if (!out) throw attn::Error(std::string("[llama2c_to_gguf] ") + argv[4] + ", expected a file that can be written");
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
