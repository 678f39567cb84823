// examples/llama2c.hpp: a small Llama, held against llama2.c's formulas in double; bad checkpoints; sampling and writing.
#include "llama2c_support.hpp"

namespace {

using namespace attn_test::llama2c;

TEST_F(Llama2c, MatchesLlama2csFormula) {
  for (const bool tied : {true, false}) {
    const TinyCheckpoint checkpoint(tied);
    EXPECT_LT(max_difference(logits_of(model(checkpoint), some_tokens), by_hand(checkpoint, some_tokens)), 1e-4)
        << (tied ? "tied" : "untied");
  }
}

TEST_F(Llama2c, GivesTheSameLogitsTokenByTokenAndInOnePrefill) {
  const Llama llama = model(TinyCheckpoint());
  const Tensor<float, 3> without = logits_of(llama, some_tokens);
  LlamaCache cache = llama.make_cache(1, 12);
  EXPECT_LT(max_difference(logits_of(llama, some_tokens, &cache), without), same);
  EXPECT_LT(max_difference(one_by_one(llama, some_tokens), without), same);
}

TEST_F(Llama2c, GivesTheSameLogitsForAPrefillInTwoParts) {
  const Llama llama = model(TinyCheckpoint());
  LlamaCache cache = llama.make_cache(1, 12);
  const Tensor<float, 3> all = logits_of(llama, some_tokens);
  (void)logits_of(llama, Tokens(some_tokens.begin(), some_tokens.begin() + 5), &cache);
  const Tensor<float, 3> rest = logits_of(llama, Tokens(some_tokens.begin() + 5, some_tokens.end()), &cache);
  const Index V = llama.config.vocabulary;
  EXPECT_LT(max_difference(rest, View<const float, 3>(&all(0, 5, 0), {1, 7, V})), same);
}

TEST_F(Llama2c, GivesTheSameLogitsInTheHalfSplitLayout) {
  const TinyCheckpoint checkpoint;
  const Llama interleaved = model(checkpoint), half_split = model(checkpoint, RotaryLayout::half_split);
  EXPECT_LT(max_difference(logits_of(interleaved, some_tokens), logits_of(half_split, some_tokens)), same);
  EXPECT_GT(
      max_difference(interleaved.layers[0].attention.query().weight(), half_split.layers[0].attention.query().weight()),
      0.0F);
}

TEST_F(Llama2c, TakesPromptsOfDifferentLengthInOneBatch) {
  const Llama llama = model(TinyCheckpoint());
  const std::vector<Tokens> prompts{{1, 260, 17, 5, 262}, {1, 99}, {1, 3, 261}};
  const Tokens follow{7, 8, 9, 10};
  const Index B = 3, S = 5, V = llama.config.vocabulary;

  Tensor<Token, 2> padded(B, S);
  padded.setZero();
  for (Index b = 0; b < B; ++b) {
    const Tokens& prompt = prompts[static_cast<std::size_t>(b)];
    std::copy(prompt.begin(), prompt.end(), &padded(b, 0));
  }
  LlamaCache cache = llama.make_cache(B, S + std::ssize(follow));
  const Tensor<float, 3> prefill = llama.forward(padded, &cache);
  for (auto& layer : cache)
    for (Index b = 0; b < B; ++b) layer.roll_back(b, S - std::ssize(prompts[static_cast<std::size_t>(b)]));
  std::vector<Tensor<float, 3>> steps;
  for (const Token token : follow) {
    Tensor<Token, 2> next(B, 1);
    for (Index b = 0; b < B; ++b) next(b, 0) = token + static_cast<Token>(b);
    steps.push_back(llama.forward(next, &cache));
  }

  for (Index b = 0; b < B; ++b) {
    Tokens alone = prompts[static_cast<std::size_t>(b)];
    const Index length = std::ssize(alone);
    for (const Token token : follow) alone.push_back(token + static_cast<Token>(b));
    const Tensor<float, 3> expected = logits_of(llama, alone);
    for (Index v = 0; v < V; ++v) {
      for (Index s = 0; s < length; ++s) ASSERT_NEAR(prefill(b, s, v), expected(0, s, v), same);
      for (std::size_t s = 0; s < steps.size(); ++s)
        ASSERT_NEAR(steps[s](b, 0, v), expected(0, length + static_cast<Index>(s), v), same);
    }
  }
}

TEST_F(Llama2c, RefusesTokensOutsideTheVocabulary) {
  const Llama llama = model(TinyCheckpoint());
  expect_error([&] { (void)logits_of(llama, {1, 263}); }, {"[attn::examples::Llama::forward]", "0 to 262", "got 263"});
  expect_error([&] { (void)logits_of(llama, {-1}); }, {"got -1"});
}

TEST_F(Llama2c, RefusesCachesOfAnotherModel) {
  const Llama llama = model(TinyCheckpoint());
  LlamaCache none;
  expect_error([&] { (void)logits_of(llama, {1}, &none); }, {"expected one for each of 2 layers, got 0"});
}

// ---- Bad checkpoints ------------------------------------------------------------------------------------------------

TEST_F(Llama2c, RefusesAMissingFile) {
  expect_error(
      [&] { (void)load_checkpoint("no/such/file.bin"); },
      {"[attn::examples::load_checkpoint] ", "no/such/file.bin", "expected a file that can be read, got none"});
}

TEST_F(Llama2c, RefusesAFolder) {
  expect_error([&] { (void)load_checkpoint(testing::TempDir()); }, {"expected a file that can be read"});
}

TEST_F(Llama2c, RefusesATruncatedFile) {
  const std::string bytes = TinyCheckpoint().bytes();
  for (std::size_t length = 0; length < 28; ++length)
    expect_error([&] { (void)load_checkpoint(file(bytes.substr(0, length))); },
                 {"[attn::examples::load_checkpoint] ", "is truncated, expected at least ",
                  (" bytes, got " + std::to_string(length))});
  for (const std::size_t length :
       {std::size_t{28}, std::size_t{29}, std::size_t{31}, bytes.size() / 2, bytes.size() - 1})
    expect_error([&] { (void)load_checkpoint(file(bytes.substr(0, length))); },
                 {"is truncated, expected ", (std::to_string(bytes.size()) + " bytes, got "), std::to_string(length)});
}

TEST_F(Llama2c, RefusesAFileThatIsTooLong) {
  const std::string bytes = TinyCheckpoint().bytes();
  expect_error(
      [&] { (void)load_checkpoint(file(bytes + "x")); },
      {"is too long, expected ", (std::to_string(bytes.size()) + " bytes, got "), std::to_string(bytes.size() + 1)});
}

TEST_F(Llama2c, RefusesTheWrongSignOfTheVocabulary) {
  TinyCheckpoint tied, untied(false);
  tied.header[5] = -263;
  untied.header[5] = 263;
  expect_error([&] { (void)model(tied); }, {"is truncated, expected "});
  expect_error([&] { (void)model(untied); }, {"is too long, expected "});
}

TEST_F(Llama2c, RefusesSizesOutsideTheirRange) {
  const char* const names[] = {"dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len"};
  constexpr std::int32_t huge = std::numeric_limits<std::int32_t>::max(),
                         least = std::numeric_limits<std::int32_t>::min();
  for (std::size_t field = 0; field < 7; ++field)
    for (const std::int32_t bad : {0, -1, huge, least}) {
      if (field == 5 && bad == -1) continue;  // an untied vocabulary of one
      TinyCheckpoint checkpoint;
      checkpoint.header[field] = bad;
      expect_error([&] { (void)model(checkpoint); }, {names[field], "expected 1 to ", std::to_string(bad)});
    }
}

TEST_F(Llama2c, RefusesTheLargestSizesWithoutOverflow) {
  TinyCheckpoint checkpoint;
  constexpr std::int32_t most = 1 << 24;
  checkpoint.header = {most, most, 1024, 1, 1, -most, most};
  expect_error([&] { (void)model(checkpoint); }, {"is truncated, expected 80", " bytes, got "});
}

TEST_F(Llama2c, RefusesHeadsThatDoNotDivide) {
  TinyCheckpoint checkpoint;
  checkpoint.header[3] = 3;
  expect_error([&] { (void)model(checkpoint); }, {"dim", "3 heads, got 16"});
  checkpoint.header[3] = 16;  // head size 1, which rotary cannot turn
  expect_error([&] { (void)model(checkpoint); }, {"an even head size for each of 16 heads, got 16"});
  checkpoint.header[3] = 4, checkpoint.header[4] = 3;
  expect_error([&] { (void)model(checkpoint); }, {"n_heads", "expected a multiple of 3 key/value heads, got 4"});
  checkpoint.header[4] = 8;
  expect_error([&] { (void)model(checkpoint); }, {"n_kv_heads", "expected 1 to 4, got 8"});
}

// ---- Sampling and writing -------------------------------------------------------------------------------------------

Token draw(Sampler& sampler, const std::vector<float>& logits) {
  return sampler({logits.data(), {std::ssize(logits)}});
}

TEST(Llama2cSampler, TakesTheFirstOfTheLikeliestAtTemperatureZero) {
  Sampler sampler(0.0F);
  EXPECT_EQ(draw(sampler, {1.0F, 3.0F, -2.0F, 3.0F}), 1);
}

TEST(Llama2cSampler, DrawsByProbability) {
  Sampler sampler(2.0F, 1.0F, 5);
  std::vector<int> count(3);
  const auto logit = [](double p) { return static_cast<float>(2.0 * std::log(p)); };
  for (int i = 0; i < 20000; ++i)
    ++count[static_cast<std::size_t>(draw(sampler, {logit(0.2), logit(0.7), logit(0.1)}))];
  EXPECT_NEAR(count[0], 4000, 300);  // five standard deviations
  EXPECT_NEAR(count[1], 14000, 330);
  EXPECT_NEAR(count[2], 2000, 220);
}

TEST(Llama2cSampler, LeavesOutTheUnlikelyWithTopP) {
  Sampler sampler(1.0F, 0.8F, 5);
  std::vector<int> count(3);
  const auto logit = [](double p) { return static_cast<float>(std::log(p)); };
  for (int i = 0; i < 9000; ++i) ++count[static_cast<std::size_t>(draw(sampler, {logit(0.3), logit(0.1), logit(0.6)}))];
  EXPECT_EQ(count[1], 0);
  EXPECT_NEAR(count[0], 3000, 230);
}

TEST(Llama2cSampler, DrawsTheSameFromTheSameSeed) {
  const std::vector<float> logits(50, 0.0F);
  Sampler a(1.0F, 0.9F, 3), b(1.0F, 0.9F, 3), c(1.0F, 0.9F, 4);
  int differences = 0;
  for (int i = 0; i < 50; ++i) {
    const Token token = draw(a, logits);
    EXPECT_EQ(token, draw(b, logits));
    if (token != draw(c, logits)) ++differences;
  }
  EXPECT_GT(differences, 10);
}

TEST(Llama2cSampler, TakesTheLikeliestAtAVerySmallTemperature) {
  Sampler sampler(1e-38F);
  EXPECT_EQ(draw(sampler, {1e30F, 3e30F, -2e30F}), 1);
}

TEST(Llama2cSampler, RefusesBadValues) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {-1.0F, nan, infinity})
    expect_error([&] { (void)Sampler(bad); }, {"[attn::examples::Sampler] temperature, expected "});
  for (const float bad : {-0.1F, 1.1F, nan}) expect_error([&] { (void)Sampler(1.0F, bad); }, {"top_p, expected "});
  expect_error([] { (void)Sampler(1.0F, 1.0F, 0); }, {"seed, expected "});
  Sampler sampler(1.0F, 0.9F);
  expect_error([&] { (void)draw(sampler, {1.0F, nan, 2.0F}); }, {"logits, expected numbers, got NaN"});
}

TEST_F(Llama2c, WritesTheSameWithAndWithoutACache) {
  const Llama llama = model(TinyCheckpoint(false));
  const Tokenizer tokenizer(file(tiny_tokenizer()));
  Sampler sampler(1.0F, 1.0F, 13);  // no draw of this seed is within 1e-4 of the next token's
  Tokens tokens = tokenizer.encode("abba");
  std::string text = "abba";
  while (std::ssize(tokens) <= 20) {
    const Tensor<float, 3> logits = logits_of(llama, tokens);
    const Token next = sampler({&logits(0, std::ssize(tokens) - 1, 0), {263}});
    if (next == 1 || next == 2) break;
    text += tokenizer.decode(tokens.back(), next);
    tokens.push_back(next);
  }
  EXPECT_EQ(text_of(llama, tokenizer, Sampler(1.0F, 1.0F, 13), 20, "abba"), text);
  EXPECT_GT(text.size(), 10U);
}

TEST_F(Llama2c, RefusesAnotherVocabularyAndTooManySteps) {
  const Llama llama = model(TinyCheckpoint());
  const Tokenizer fits(file(tiny_tokenizer())), other(file(tiny_tokenizer({" ", "a"})));
  const auto run = [&](const Tokenizer& tokenizer, Index steps, const char* prompt) {
    return [&llama, &tokenizer, steps, prompt] { (void)text_of(llama, tokenizer, Sampler(0.0F), steps, prompt); };
  };
  expect_error(run(other, 5, ""), {"[attn::examples::generate]", "expected the model's 263, got 261"});
  expect_error(run(fits, 0, ""), {"steps, expected 1 to the model's 24, got 0"});
  expect_error(run(fits, 25, ""), {"steps, expected 1 to the model's 24, got 25"});
  expect_error(run(fits, 3, "abba"), {"tokens in the prompt, expected at most 3, got 5"});
}

}  // namespace
