// stories260K, where it is at hand, as GGUF files: the stories they tell, and their tokenizer.
#include "../examples/model_files.hpp"
#include "llama2c_support.hpp"
#include "llama2c_to_gguf.hpp"

#include <attn/io/gguf_tokenizer.hpp>

namespace {

using namespace attn_test::llama2c;
using attn::GgufFile;
using attn::GgufType;
using attn::WeightFormat;
using attn_test::gguf::Bytes;

class Stories260KGguf : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(folder / "checkpoint_legacy.bin"))
      GTEST_SKIP() << "stories260K is not at hand: no " << folder / "checkpoint_legacy.bin";
  }
  [[nodiscard]] static Bytes file(GgufType type) {
    return attn_test::gguf::llama2c_to_gguf(folder / "checkpoint_legacy.bin", folder / "tokenizer.bin", type);
  }
  [[nodiscard]] static Llama checkpoint() { return load_checkpoint(folder / "checkpoint_legacy.bin"); }
  [[nodiscard]] static Tokenizer tokenizer() { return Tokenizer(folder / "tokenizer.bin"); }
  [[nodiscard]] static std::string story(const Llama& llama, const Tokenizer& tokenizer) {
    return text_of(llama, tokenizer, Sampler(0.0F), 256);
  }

  inline static const std::filesystem::path folder = std::filesystem::path(ATTN_SHARED_DATA_DIR) / "stories260K";
};

TEST_F(Stories260KGguf, TellsTheCheckpointsStoryWordForWord) {
  const std::string expected = story(checkpoint(), tokenizer());
  ASSERT_GT(expected.size(), 500U);
  for (const GgufType type : {GgufType::f32, GgufType::f16}) {
    const Bytes bytes = file(type);
    const GgufFile gguf(bytes);
    EXPECT_EQ(story(attn::examples::load_gguf(gguf), sentence_piece_tokenizer(gguf)), expected) << gguf_type_name(type);
  }
}

/// To the bit: the numbers are the same.
TEST_F(Stories260KGguf, GivesTheCheckpointsLogits) {
  const Bytes bytes = file(GgufType::f32);
  const Llama llama = attn::examples::load_gguf(GgufFile(bytes)), expected = checkpoint();
  EXPECT_EQ(max_difference(logits_of(llama, some_tokens), logits_of(expected, some_tokens)), 0);
}

/// Blocks of Q8_0 are the checkpoint's weights stored as int8. ffn_down has rows of 172, which are not whole blocks.
TEST_F(Stories260KGguf, ComputesWithQ8_0AsWithInt8) {
  const Bytes bytes = file(GgufType::q8_0);
  const GgufFile gguf(bytes);
  EXPECT_EQ(gguf.tensor("blk.0.ffn_down.weight").type, GgufType::f16);
  const Llama llama = attn::examples::load_gguf(gguf);
  EXPECT_EQ(llama.layers[0].attention.query().weight_format(), WeightFormat::int8);
  Llama expected = checkpoint();
  expected.store_weights(WeightFormat::int8);
  for (std::size_t l = 0; l < expected.layers.size(); ++l)
    expected.layers[l].feed_forward.down = llama.layers[l].feed_forward.down;
  for (Index v = 0; v < expected.config.vocabulary; ++v)
    expected.output.weight_row(v, {&expected.embedding(v, 0), {expected.config.hidden_size}});
  EXPECT_EQ(max_difference(logits_of(llama, some_tokens), logits_of(expected, some_tokens)), 0);
  EXPECT_EQ(story(llama, tokenizer()).substr(0, 90), story(checkpoint(), tokenizer()).substr(0, 90));
}

TEST_F(Stories260KGguf, HasTheTokenizerOfTheFile) {
  const Bytes bytes = file(GgufType::f32);
  const Tokenizer from_gguf = sentence_piece_tokenizer(GgufFile(bytes)), from_file = tokenizer();
  ASSERT_EQ(from_gguf.size(), from_file.size());
  for (const std::string& text : texts) {
    if (text.find("<s>") == std::string::npos) {  // which the GGUF file's takes whole
      EXPECT_EQ(from_gguf.encode(text), from_file.encode(text)) << text;
    }
    EXPECT_EQ(round_trip(from_gguf, text), text);
  }
  const std::string told = story(checkpoint(), from_file);
  EXPECT_EQ(from_gguf.encode(told), from_file.encode(told));
}

}  // namespace
