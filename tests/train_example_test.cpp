// The parts of examples/train.cpp: the stories and their entropy, the model's gradients, going on after a break.
#include "file_support.hpp"
#include "module_support.hpp"

#include <set>

#include "../examples/train/corpus.hpp"
#include "../examples/train/files.hpp"

namespace {

using namespace attn::examples;
using attn::Index;
using attn::Tensor;
using attn_test::random_tensor;
using attn_test::TemporaryFolder;

TEST(Stories, TellTheirChoices) {
  const Stories stories;
  Random random(3);
  double tokens = 0;
  std::set<std::string> different;
  constexpr int count = 3000;
  for (int i = 0; i < count; ++i) {
    const std::string story = stories.draw(random);
    ASSERT_EQ(stories.parses(story), 1) << story;
    tokens += static_cast<double>(story.size()) + 1.0;
    different.insert(story);
  }
  EXPECT_GT(different.size(), 2900U);
  // Choices are as likely as each other: each story of a plot has the same probability, and its length is what varies.
  const double per_story = stories.entropy_per_token() * tokens / count;
  EXPECT_NEAR(per_story, std::log(3.0) + std::log(4.0 * 6 * 4 * 6 * 4 * 4 * 3), 0.5);
  EXPECT_EQ(stories.parses(" Once upon a time there was a red fox."), 0);
  EXPECT_EQ(stories.parses(""), 0);
}

struct Small {
  Corpus corpus;
  Llama model{LlamaConfig{32, 48, 2, 2, 2, std::ssize(corpus.pieces()), 200, attn::RotaryLayout::interleaved}};
  TrainableLlama llama{model, 2, 200};

  Small() {
    Random random(7);
    for (const Trained& parameter : llama.parameters())
      for (float& value : parameter.values)
        if (parameter.decays && (value != 0.F || parameter.values.data() == model.embedding.data()))
          value = static_cast<float>(0.4 * random() - 0.2);
  }
  std::vector<float> after(AdamW& optimiser, Index first, Index last) {
    for (Index step = first; step <= last; ++step) {
      const Rows rows = corpus.training_rows(2, 200, static_cast<std::uint64_t>(step));
      llama.zero_gradients();
      (void)llama.loss(rows);
      llama.backward(rows);
      optimiser.step(step, 0.01F);
    }
    std::vector<float> values;
    for (const Trained& parameter : llama.parameters())
      values.insert(values.end(), parameter.values.begin(), parameter.values.end());
    return values;
  }
};

TEST(TrainableLlama, HasTheGradientsOfItsLoss) {
  Small small;
  const Rows rows = small.corpus.training_rows(2, 200, 1);
  (void)small.llama.loss(rows);
  small.llama.backward(rows);
  unsigned seed = 1;
  for (const Trained& parameter : small.llama.parameters()) {
    // One direction for each parameter, the gradient's own: the slope is the gradient's length.
    double squares = 0;
    for (const float g : parameter.gradient) squares += double{g} * double{g};
    const double length = std::sqrt(squares);
    if (length < 1e-4) continue;
    const std::vector<float> before(parameter.values.begin(), parameter.values.end());
    const auto moved = [&](double by) {
      for (std::size_t i = 0; i < before.size(); ++i)
        parameter.values[i] = before[i] + static_cast<float>(by * double{parameter.gradient[i]} / length);
      return small.llama.loss(rows);
    };
    const double slope = (moved(0.01) - moved(-0.01)) / 0.02;
    std::copy(before.begin(), before.end(), parameter.values.begin());
    EXPECT_NEAR(slope, length, 0.02 * length) << "parameter " << seed;
    ++seed;
  }
  EXPECT_GT(seed, 10U);
}

TEST(TrainableLlama, LearnsTheSameOnAnyNumberOfThreads) {
  const auto run = [](int threads) {
    attn::ThreadPool pool(threads);
    const attn::UseExecutor use(pool);
    Small small;
    AdamW optimiser(small.llama.parameters(), {});
    return small.after(optimiser, 1, 3);
  };
  const auto expected = run(1);
  for (const int threads : {2, 5}) EXPECT_EQ(run(threads), expected) << threads;
}

TEST(TrainableLlama, GoesOnAsIfThereHadBeenNoBreak) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "state.bin";
  Small whole, first, second;
  AdamW whole_optimiser(whole.llama.parameters(), {}), first_optimiser(first.llama.parameters(), {}),
      second_optimiser(second.llama.parameters(), {});
  (void)first.after(first_optimiser, 1, 2);
  save_state(first_optimiser, 2, {{1, 3.0, -1.0}, {2, 2.5, 2.6}}, path);
  std::vector<LossPoint> curve;
  EXPECT_EQ(load_state(second_optimiser, curve, path), 2);
  ASSERT_EQ(curve.size(), 2U);
  EXPECT_EQ(curve[1].validation, 2.6);
  EXPECT_EQ(second.after(second_optimiser, 3, 5), whole.after(whole_optimiser, 1, 5));
}

TEST(TrainableLlama, WritesCheckpointsThatAreReadAgain) {
  const TemporaryFolder folder;
  const auto model_path = folder.path() / "model.bin", tokenizer_path = folder.path() / "tokenizer.bin";
  Small small;
  save_checkpoint(small.model, model_path);
  save_tokenizer(small.corpus.pieces(), tokenizer_path);
  const Llama read = load_checkpoint(model_path);
  const Tokenizer tokenizer(tokenizer_path);
  const auto tokens = tokenizer.encode("One day Lily the girl");
  EXPECT_TRUE(attn_test::same_bits(read.forward({tokens.data(), {1, std::ssize(tokens)}}),
                                   small.model.forward({tokens.data(), {1, std::ssize(tokens)}})));
  std::string text;
  for (std::size_t i = 1; i < tokens.size(); ++i) text += tokenizer.decode(tokens[i - 1], tokens[i]);
  EXPECT_EQ(text, "One day Lily the girl");
}

TEST(TrainingFiles, OfAnotherModelAreRefused) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "other.bin";
  Small small;
  AdamW optimiser(small.llama.parameters(), {});
  save_state(optimiser, 1, {}, path);
  Llama other(LlamaConfig{16, 24, 1, 2, 2, 42, 200, attn::RotaryLayout::interleaved});
  TrainableLlama llama(other, 1, 200);
  AdamW of_other(llama.parameters(), {});
  std::vector<LossPoint> curve;
  EXPECT_THROW((void)load_state(of_other, curve, path), attn::Error);
  EXPECT_THROW((void)load_state(of_other, curve, folder.path() / "none.bin"), attn::Error);
}

}  // namespace
