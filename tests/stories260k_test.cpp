// stories260K, where it is at hand, held against what is published for it.
#include "llama2c_support.hpp"

namespace {

using namespace attn_test::llama2c;

class Stories260K : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(folder / "checkpoint_legacy.bin"))
      GTEST_SKIP() << "stories260K is not at hand: no " << folder / "checkpoint_legacy.bin";
  }
  [[nodiscard]] static Llama model(RotaryLayout layout = RotaryLayout::interleaved) {
    return load_checkpoint(folder / "checkpoint_legacy.bin", layout);
  }
  [[nodiscard]] static Tokenizer tokenizer() { return Tokenizer(folder / "tokenizer.bin"); }

  inline static const std::filesystem::path folder = std::filesystem::path(ATTN_SHARED_DATA_DIR) / "stories260K";
  // What llama2.c prints at temperature 0. Source: the page it is published on.
  static constexpr const char* published =
      "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
      "big, red ball. She wanted to play with it, but it was too high.\n"
      "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to "
      "play with your ball, but I can't find it.\"\n"
      "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n"
      "Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" Her mom said, "
      "\"Don't worry, Lily. We can help you.";
};

TEST_F(Stories260K, HasThePublishedSizes) {
  const Llama llama = model();
  const attn::examples::LlamaConfig& c = llama.config;
  EXPECT_EQ((std::vector<Index>{c.hidden_size, c.feed_forward_size, c.layers, c.heads, c.key_value_heads, c.vocabulary,
                                c.max_length}),
            (std::vector<Index>{64, 172, 5, 8, 4, 512, 512}));
}

TEST_F(Stories260K, GivesThePublishedFirstLogits) {
  const Tensor<float, 3> logits = logits_of(model(), {begin_of_text});
  EXPECT_NEAR(logits(0, 0, 0), -6.222914, 1e-4);
  EXPECT_NEAR(logits(0, 0, 1), 8.404342, 1e-4);
  EXPECT_NEAR(logits(0, 0, 2), -6.223739, 1e-4);
}

TEST_F(Stories260K, TellsThePublishedStory) { EXPECT_EQ(text_of(model(), tokenizer(), Sampler(0.0F), 256), published); }

TEST_F(Stories260K, TellsThePublishedStoryWithHalfSplitRotary) {
  EXPECT_EQ(text_of(model(RotaryLayout::half_split), tokenizer(), Sampler(0.0F), 256), published);
}

TEST_F(Stories260K, ContinuesThePublishedStory) {
  EXPECT_EQ(text_of(model(), tokenizer(), Sampler(0.0F), 256, std::string(published, 150)), published);
}

// Each token from all tokens before it, without a cache. The beginning of the story will do: this is cubic.
TEST_F(Stories260K, TellsThePublishedStoryWithoutCache) {
  const Llama llama = model();
  const Tokenizer tokenizer_ = tokenizer();
  Tokens tokens{begin_of_text};
  std::string text;
  while (tokens.size() <= 80) {
    const Tensor<float, 3> logits = logits_of(llama, tokens);
    const Token next = Sampler(0.0F)({&logits(0, std::ssize(tokens) - 1, 0), {512}});
    text += tokenizer_.decode(tokens.back(), next);
    tokens.push_back(next);
  }
  EXPECT_EQ(text, std::string(published, text.size()));
}

// From the same seeds, the stories that llama2.c tells. Sources: the model's page; the tests of llama2.zig.
TEST_F(Stories260K, TellsLlama2csStoriesFromItsSeeds) {
  const Llama llama = model();
  EXPECT_EQ(text_of(llama, tokenizer(), Sampler(1.0F, 1.0F, 42), 200),
            "Once upon a time, there was a big roof. The fox was ready to look for people inside. He saw a big rock "
            "near a big tree. The roof was very small and fun! He ate the roof too. He got a shiny stool, so he sicked "
            "the roof with his friend, the girl named Mia.\n\"Help, Mia. Why are you sad, Mia?\" she asked.\n\"I want "
            "to try us,\" Mia said. \"It is cute. We have to find one of smells!\"\nMia felt proud of");
  EXPECT_EQ(
      text_of(llama, tokenizer(), Sampler(1.0F, 0.95F, 42), 200),
      "Once upon a time, there was a little boy named Timmy. Timmy loved going to the park with his mom. One day, "
      "Lily went outside to play outside in her pocket. He was scared and didn't know where to buy some colorful "
      "animals.\nLater that day, Timmy's mom came outside and saw Timmy just playing in the shore. She didn't see "
      "that made him happy, but Timmy's mom said he had to sort his cobwebs and write cold colors. Timmy asked his "
      "mom if he was amazed! His mom");
  EXPECT_EQ(
      text_of(llama, tokenizer(), Sampler(1.0F, 0.9F, 133742), 256),
      "Once upon a time, there was a little boy named Timmy. Timmy loved to play with his toys and eat sandwiches. "
      "One day, Timmy's mom told him it was time to rest for a while. Timmy's friend Billy came over and took him "
      "a down.\nTimmy's mom saw that Timmy was sad, but Timmy said, \"I didn't understand what is it! We need to "
      "find some leafs.\" Timmy thought about it and took a deep breath on a spoon. He hoped it was important to "
      "be kind and continued to find its image next time.\nAfter they finished getting, Timmy's dad came up to his "
      "house and promised to help Timmy.");
}

TEST_F(Stories260K, GivesTheSameLogitsWithACacheAndHalfSplit) {
  const Llama llama = model();
  const Tokens tokens = tokenizer().encode(std::string(published, 300));
  const Tensor<float, 3> without = logits_of(llama, tokens);
  LlamaCache cache = llama.make_cache(1, 512);
  EXPECT_LT(max_difference(logits_of(llama, tokens, &cache), without), 1e-4);
  EXPECT_LT(max_difference(one_by_one(llama, tokens), without), 1e-4);
  EXPECT_LT(max_difference(logits_of(model(RotaryLayout::half_split), tokens), without), 1e-4);
}

TEST_F(Stories260K, DecodesWhatItEncodes) {
  const Tokenizer tokenizer_ = tokenizer();
  EXPECT_EQ(tokenizer_.size(), 512);
  for (const std::string& text : texts) EXPECT_EQ(round_trip(tokenizer_, text), text);
  EXPECT_EQ(round_trip(tokenizer_, published), published);
}

}  // namespace
