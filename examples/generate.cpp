// Tells a story: a Llama on attn::LlamaAttention, with weights from a checkpoint of llama2.c, a GGUF file, or a folder of Hugging Face.
//     generate --checkpoint stories260K.bin --tokenizer tok512.bin --prompt "One day, a dog" --temperature 0
//     generate --checkpoint SmolLM2-135M.Q8_0.gguf --prompt "One day, a dog"
// The model and the loop are in llama2c.hpp, files in model_files.hpp.
#include <cctype>
#include <cstdio>
#include <exception>
#include <iostream>
#include <optional>

#include "model_files.hpp"

namespace {

constexpr auto help = R"(usage: generate --checkpoint F [--tokenizer F] [options]
  --checkpoint F    weights: a llama2.c checkpoint (legacy layout), a GGUF file, or a folder of Hugging Face
  --tokenizer F     its tokenizer, from llama2.c, where none comes with the weights (GGUF; tokenizer.json of byte-level
                    pairs) or in place of it
  --prompt T        the text to go on from (default: none)
  --steps N         tokens in all, the prompt's included (default: 256, or what the model can see)
  --temperature X   0: always the likeliest token; higher: bolder (default: 1)
  --top-p X         draw from the likeliest tokens that reach this probability together; 1: from all (default: 0.9)
  --weights F       store weights as bfloat16, half, int8 or int4 (default: as in the file)
  --cache F         cache keys and values as bfloat16, half or int8 (default: native)
  --seed N          the same seed tells the same story, and llama2.c's (default: 42)
  --help            this text
The text goes to standard output, the speed to standard error.
)";

struct Options {
  std::string checkpoint, tokenizer, prompt;
  std::optional<attn::WeightFormat> weights;
  attn::CacheFormat cache = attn::CacheFormat::native;
  std::optional<attn::Index> steps;
  float temperature = 1.0F, top_p = 0.9F;
  std::uint64_t seed = 42;
  bool help = false;
};

void read_value(const std::string&, const std::string& text, std::string& to) { to = text; }
/// One of the first `count` formats, by its name.
template <class Format>
void read_format(const std::string& flag, const std::string& text, Format& to, int count,
                 std::string_view (*name)(Format)) {
  for (int i = 0; i < count; ++i) {
    to = static_cast<Format>(i);
    if (text == name(to)) return;
  }
  throw attn::Error("[generate] " + flag + ", expected a format that --help lists, got \"" + text + '"');
}
void read_value(const std::string& flag, const std::string& text, attn::WeightFormat& to) {
  read_format(flag, text, to, 5, attn::weight_format_name);
}
void read_value(const std::string& flag, const std::string& text, attn::CacheFormat& to) {
  read_format(flag, text, to, 4, attn::cache_format_name);
}
template <class Number>
void read_value(const std::string& flag, const std::string& text, Number& to) {
  std::istringstream in(text);
  if (text.starts_with('-') || !(in >> to) || !in.eof())
    throw attn::Error("[generate] " + flag + ", expected a number from 0 on, got \"" + text + '"');
}
template <class Number>
void read_value(const std::string& flag, const std::string& text, std::optional<Number>& to) {
  read_value(flag, text, to.emplace());
}

Options parse(const std::vector<std::string>& arguments) {
  Options o;
  for (std::size_t i = 0; i < arguments.size() && !o.help; i += 2) {
    const std::string& flag = arguments[i];
    const auto is = [&](std::string_view name, auto& to) {
      if (flag != name) return false;
      if (i + 1 == arguments.size()) throw attn::Error("[generate] " + flag + ", expected a value after it, got none");
      read_value(flag, arguments[i + 1], to);
      return true;
    };
    o.help = flag == "--help";
    if (!o.help && !is("--checkpoint", o.checkpoint) && !is("--tokenizer", o.tokenizer) && !is("--prompt", o.prompt) &&
        !is("--steps", o.steps) && !is("--weights", o.weights) && !is("--cache", o.cache) &&
        !is("--temperature", o.temperature) && !is("--top-p", o.top_p) && !is("--seed", o.seed))
      throw attn::Error("[generate] flags, expected one of those that --help lists, got \"" + flag + '"');
  }
  if (!o.help && o.checkpoint.empty())
    throw attn::Error("[generate] files, expected --checkpoint F, got none; see --help");
  return o;
}

/// To the terminal at once, but for bytes that would move its cursor or ring its bell.
void say(const std::string& piece) {
  const auto is_control = [](unsigned char byte) { return std::iscntrl(byte) && !std::isspace(byte); };
  if (piece.size() == 1 && is_control(static_cast<unsigned char>(piece[0]))) return;
  std::cout << piece << std::flush;
}

}  // namespace

int main(int argc, char** argv) try {
  const Options options = parse({argv + 1, argv + argc});
  if (options.help) {
    std::cout << help;
    return 0;
  }
  attn::examples::Sampler sampler(options.temperature, options.top_p, options.seed);
  attn::examples::LoadedModel loaded = attn::examples::load_model(options.checkpoint);
  attn::examples::Llama& model = loaded.llama;
  if (options.weights) model.store_weights(*options.weights);
  model.cache_format = options.cache;
  if (!options.tokenizer.empty()) loaded.tokenizer = attn::examples::Tokenizer(options.tokenizer);
  if (!loaded.tokenizer) throw attn::Error("[generate] tokenizer, expected --tokenizer F: none came with the weights");
  const attn::examples::Tokenizer& tokenizer = *loaded.tokenizer;
  const attn::Index steps = options.steps.value_or(std::min<attn::Index>(256, model.config.max_length));

  const auto done = attn::examples::generate(model, tokenizer, sampler, options.prompt, steps, say);
  std::cout << std::endl;
  std::fprintf(stderr, "prompt: %td tokens in %.1f ms; text: %td tokens in %.2f s, %.0f tokens/s\n", done.prompt_tokens,
               1e3 * done.prompt_seconds, done.new_tokens, done.seconds,
               static_cast<double>(done.new_tokens) / std::max(done.seconds, 1e-9));
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
