// Trains a small Llama from nothing, on the CPU and on attn alone, until it writes stories.
//     train && generate --checkpoint story_model.bin --tokenizer story_tokenizer.bin
// The model's backward pass is in train/trainable_llama.hpp, the source of stories in train/stories.hpp.
#include <chrono>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>
#include <string>

#include "train/corpus.hpp"
#include "train/curve.hpp"
#include "train/files.hpp"

namespace {

using namespace attn::examples;
using attn::Index;

constexpr auto help = R"(usage: train [options]
  --text F          learn from this text (UTF-8); default: stories from a small grammar, whose entropy is known
  --steps N         steps of the optimiser (default: 1500)
  --out NAME        writes NAME_model.bin and NAME_tokenizer.bin for generate, NAME_state.bin, NAME_loss.svg (default: story)
  --resume          goes on from NAME_state.bin, as if there had been no break
  --stop-at N       stops after step N of --steps and saves, for --resume
  --hidden N        hidden size (default: 96)      --layers N        (default: 2)
  --heads N         (default: 4)                   --length N        tokens of a row (default: 256)
  --batch N         rows of a step (default: 6)    --rate X          highest learning rate (default: 0.004)
  --seed N          of the first parameters (default: 1)
  --help            this text
)";

struct Options {
  std::string text, out = "story";
  Index steps = 1500, stop_at = 0, hidden = 96, layers = 2, heads = 4, length = 256, batch = 6;
  std::uint64_t seed = 1;
  float rate = 0.004F;
  bool resume = false, help = false;
};

template <class Number>
void read_value(const std::string& flag, const std::string& text, Number& to) {
  std::istringstream in(text);
  if (text.starts_with('-') || !(in >> to) || !in.eof() || !(to > Number{0}))
    throw attn::Error("[train] " + flag + ", expected a number above 0, got \"" + text + '"');
}
void read_value(const std::string&, const std::string& text, std::string& to) { to = text; }

Options parse(const std::vector<std::string>& arguments) {
  Options o;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& flag = arguments[i];
    const auto is = [&](std::string_view name, auto& to) {
      if (flag != name) return false;
      if (i + 1 == arguments.size()) throw attn::Error("[train] " + flag + ", expected a value after it, got none");
      read_value(flag, arguments[++i], to);
      return true;
    };
    if (flag == "--help")
      o.help = true;
    else if (flag == "--resume")
      o.resume = true;
    else if (!is("--text", o.text) && !is("--steps", o.steps) && !is("--out", o.out) && !is("--hidden", o.hidden) &&
             !is("--layers", o.layers) && !is("--heads", o.heads) && !is("--length", o.length) &&
             !is("--batch", o.batch) && !is("--rate", o.rate) && !is("--seed", o.seed) && !is("--stop-at", o.stop_at))
      throw attn::Error("[train] flags, expected one of those that --help lists, got \"" + flag + '"');
  }
  if (o.stop_at == 0) o.stop_at = o.steps;
  return o;
}

/// Draws the parameters as GPT-2 does: normal, with deviation 0.02. Norms stay 1, and what only fills a panel stays 0.
void draw_parameters(Llama& model, const std::vector<Trained>& parameters, std::uint64_t seed) {
  Random random(seed);
  const auto normal = [&] {
    return std::sqrt(-2.0 * std::log(1.0 - random())) * std::cos(6.283185307179586 * random());
  };
  model.embedding.setConstant(1.F);  // not 0, so that it is drawn
  for (const Trained& parameter : parameters)
    for (float& value : parameter.values)
      if (parameter.decays && value != 0.F) value = static_cast<float>(0.02 * normal());
}

/// One line that is written over: a bar, step, loss, speed and the time that is left.
class Progress {
 public:
  Progress(Index done, Index steps, Index tokens) : first_(done), steps_(steps), tokens_(tokens) {}

  void show(Index step, double loss) {
    const double now = seconds();
    if (now - shown_ < 0.2 && step < steps_) return;
    shown_ = now;
    const auto done = static_cast<double>(step - first_), left = static_cast<double>(steps_ - step);
    const int filled = static_cast<int>(30 * step / std::max<Index>(steps_, 1));
    std::string bar;
    for (int i = 0; i < 30; ++i) bar += i < filled ? "█" : "░";
    std::fprintf(stderr, "\r%s step %td/%td  loss %.3f  %.0f tokens/s  %.0f s left ", bar.c_str(), step, steps_, loss,
                 done * static_cast<double>(tokens_) / now, left * now / done);
  }
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Index first_, steps_, tokens_;
  double shown_ = 0.0;
};

/// The mean loss of rows that training never sees.
double validate(TrainableLlama& llama, const Corpus& corpus, const Options& o, int batches) {
  double sum = 0.0;
  for (int i = 0; i < batches; ++i)
    sum += llama.loss(corpus.validation_rows(o.batch, o.length, static_cast<std::uint64_t>(i)));
  return sum / batches;
}

/// Some stories of the trained model, and how many of them the grammar could have made.
void tell(const Llama& model, const Corpus& corpus, const std::string& tokenizer_path, Index length) {
  const Tokenizer tokenizer(tokenizer_path);
  constexpr int count = 20;
  int grammatical = 0;
  std::string first;
  for (std::uint64_t seed = 1; seed <= count; ++seed) {
    Sampler sampler(1.F, 1.F, seed);
    std::string story = " ";
    generate(model, tokenizer, sampler, "", length, [&](const std::string& piece) { story += piece; });
    grammatical += corpus.stories().parses(story);
    if (seed == 1) first = story;
  }
  std::printf("\na story:%s\n", first.c_str());
  if (corpus.entropy()) std::printf("%d of %d stories are as the grammar makes them\n", grammatical, count);
}

int run(const Options& o) {
  const Corpus corpus = o.text.empty() ? Corpus() : Corpus(o.text, o.length);
  const LlamaConfig config{o.hidden, o.hidden * 8 / 3,
                           o.layers, o.heads,
                           o.heads,  std::ssize(corpus.pieces()),
                           o.length, attn::RotaryLayout::interleaved};
  Llama model(config);
  TrainableLlama llama(model, o.batch, o.length);
  draw_parameters(model, llama.parameters(), o.seed);
  AdamW optimiser(llama.parameters(), {});
  std::vector<LossPoint> curve;
  const Index done = o.resume ? load_state(optimiser, curve, o.out + "_state.bin") : 0;
  std::size_t size = 0;
  for (const Trained& parameter : optimiser.parameters()) size += parameter.values.size();
  std::printf("%zu parameters, %td characters, %d threads\n", size, config.vocabulary,
              attn::current_executor().concurrency());
  if (corpus.entropy()) std::printf("entropy of the source: %.4f nats per character\n", *corpus.entropy());

  Progress progress(done, o.steps, o.batch * o.length);
  double smooth = 0.0;
  for (Index step = done + 1; step <= o.stop_at; ++step) {
    const Rows rows = corpus.training_rows(o.batch, o.length, static_cast<std::uint64_t>(step));
    llama.zero_gradients();
    const double loss = llama.loss(rows);
    llama.backward(rows);
    optimiser.step(step, learning_rate(step, std::min<Index>(50, o.steps / 4 + 1), o.steps, o.rate));
    smooth = smooth == 0.0 ? loss : 0.9 * smooth + 0.1 * loss;
    const bool validated = step % 50 == 0 || step == o.stop_at;
    if (step % 5 == 0 || validated || step == 1)
      curve.push_back({step, loss, validated ? validate(llama, corpus, o, 2) : -1.0});
    progress.show(step, smooth);
  }
  const double seconds = progress.seconds(), loss = validate(llama, corpus, o, 12);
  std::fputc('\n', stderr);
  std::printf("%s\nvalidation loss %.4f nats per character", draw_in_terminal(curve, corpus.entropy()).c_str(), loss);
  if (corpus.entropy()) std::printf(", %.1f %% above the entropy", 100.0 * (loss / *corpus.entropy() - 1.0));
  std::printf("; %.1f s\n", seconds);

  save_state(optimiser, o.stop_at, curve, o.out + "_state.bin");
  save_checkpoint(model, o.out + "_model.bin");
  save_tokenizer(corpus.pieces(), o.out + "_tokenizer.bin");
  write_svg(curve, corpus.entropy(), o.out + "_loss.svg");
  tell(model, corpus, o.out + "_tokenizer.bin", o.length);
  return 0;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse({argv + 1, argv + argc});
  if (options.help) {
    std::cout << help;
    return 0;
  }
  return run(options);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
