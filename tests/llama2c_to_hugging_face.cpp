// Converts a model of llama2.c: llama2c_to_hugging_face CHECKPOINT FOLDER
#include "llama2c_to_hugging_face.hpp"

#include <exception>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: llama2c_to_hugging_face CHECKPOINT FOLDER\n";
    return 1;
  }
  std::filesystem::create_directories(argv[2]);
  attn_test::llama2c_to_hugging_face(argv[1], argv[2]);
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
