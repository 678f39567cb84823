// Writes the seeds of the fuzzers for GGUF files, tokenizers and llama2.c's checkpoints: make_seeds FOLDER
#include "../gguf_support.hpp"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

using attn::GgufType;
using attn_test::gguf::Bytes;
using attn_test::gguf::bytes_of;
using attn_test::gguf::put;
using attn_test::gguf::Writer;
using Strings = std::vector<std::string>;

void write(const std::filesystem::path& path, const Bytes& bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
}
Bytes bytes_of_text(const std::string& text) { return bytes_of(std::vector<char>(text.begin(), text.end())); }

void gguf(const std::filesystem::path& folder) {
  Writer values;
  values.add("u8", std::uint8_t{1})
      .add("i8", std::int8_t{-1})
      .add("u16", std::uint16_t{1})
      .add("i16", std::int16_t{-1});
  values.add("u32", std::uint32_t{1}).add("i32", -1).add("u64", std::uint64_t{1}).add("i64", std::int64_t{-1});
  values.add("f32", 1.F).add("f64", 1.0).add("bool", true).add("string", "text");
  values.add_array("strings", Strings{"a", "bc"}).add_array("numbers", std::vector<std::int32_t>{1, 2, 3});
  write(folder / "values", values.bytes());

  Writer small_types, large_types;
  small_types.alignment = 8;
  small_types.add("general.alignment", std::uint32_t{8});
  for (const attn::detail::GgufTypeFacts& facts : attn::detail::gguf_types) {
    Writer& writer = facts.block <= 32 ? small_types : large_types;
    writer.add_tensor(std::string(facts.name), facts.type, {facts.block}, Bytes(facts.bytes, std::byte{0x35}));
  }
  write(folder / "small_types", small_types.bytes());
  write(folder / "large_types", large_types.bytes());
  Writer ranks;
  ranks.version = 2;
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{}, {1}, {1, 1}, {1, 1, 1}, {1, 1, 1, 1}, {0, 3}})
    ranks.add_tensor(std::string(shape.size() + 1, 'r') + std::to_string(shape.empty() ? 1 : shape[0]), GgufType::f32,
                     shape, Bytes(shape.empty() || shape[0] > 0 ? 4 : 0));
  write(folder / "ranks", ranks.bytes());

  Writer pieces;
  pieces.add("tokenizer.ggml.model", "llama")
      .add_array("tokenizer.ggml.tokens", Strings{"<unk>", "<s>", "</s>", "<0x0A>", "\xE2\x96\x81", "a",
                                                  "\xE2\x96\x81"
                                                  "a",
                                                  "<turn>"});
  pieces.add_array("tokenizer.ggml.scores", std::vector<float>{0, 0, 0, 0, -3, -2, -1, 0});
  pieces.add_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{2, 3, 3, 6, 1, 1, 1, 4});
  pieces.add("tokenizer.ggml.bos_token_id", std::uint32_t{1}).add("tokenizer.ggml.add_bos_token", true);
  write(folder / "sentence_piece", pieces.bytes());
  Writer pairs;
  pairs.add("tokenizer.ggml.model", "gpt2").add("tokenizer.ggml.pre", "llama-bpe");
  pairs.add_array("tokenizer.ggml.tokens", Strings{"a", "1", "2", "\xC4\xA0", "12", "t", "\xC4\xA0t", "<s>"});
  pairs.add_array("tokenizer.ggml.merges", Strings{"1 2", "\xC4\xA0 t"})
      .add("tokenizer.ggml.eos_token_id", std::uint32_t{7});
  pairs.add_array("tokenizer.ggml.token_type", std::vector<std::int32_t>{1, 1, 1, 1, 1, 1, 1, 3});
  write(folder / "byte_pairs", pairs.bytes());
}

/// As tokenizer_fuzz.cpp reads them.
void tokenizers(const std::filesystem::path& folder) {
  const std::string pieces = std::string(
                                 "\x01\x80 \x01\x81"
                                 "a\x01\x82"
                                 "b\x02\x90"
                                 "ab\x02\x91 a\x63\x80<s>\x83\x80<t>",
                                 27) +
                             '\0' + '\0';
  for (int choices = 0; choices < 64; choices += 3)
    write(folder / ("choices_" + std::to_string(choices)),
          bytes_of_text(static_cast<char>(choices) + pieces + "ab a<s>b\n\n12345 don't \xC3\xA9\xFF<t>"));
}

void checkpoints(const std::filesystem::path& folder) {
  for (const int vocabulary : {3, -3}) {
    const int E = 4, F = 3, L = 1, H = 2, G = 1, V = 3, length = 2, D = E / H;
    Bytes bytes = bytes_of({E, F, L, H, G, vocabulary, length});
    const int floats =
        V * E + L * (2 * E + 2 * E * E + 2 * G * D * E + 3 * E * F) + E + length * D + (vocabulary > 0 ? 0 : V * E);
    for (int i = 0; i < floats; ++i) put(bytes, 0.25F * static_cast<float>(i % 7 - 3));
    write(folder / (vocabulary > 0 ? "tied" : "untied"), bytes);
  }
  Bytes tokenizer = bytes_of({6});
  for (const std::string piece : {"<unk>", "<s>", "</s>", " ", "a", "t", " t", "<0x0A>"}) {
    put(tokenizer, -static_cast<float>(piece.size()));
    put(tokenizer, static_cast<std::int32_t>(piece.size()));
    for (const char c : piece) put(tokenizer, c);
  }
  write(folder / "tokenizer", tokenizer);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_seeds FOLDER\n";
    return 1;
  }
  const std::filesystem::path folder = argv[1];
  gguf(folder / "gguf");
  tokenizers(folder / "tokenizer");
  checkpoints(folder / "checkpoint");
  return 0;
}
