// Who looks at whom: runs attn::LlamaAttention over a sentence and draws the attention of each head, in the terminal
// and as an SVG picture. Before that it checks itself against PyTorch. Needs no files.
#include <attn/attn.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <numbers>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "heat_map.hpp"

#if __has_include(<unistd.h>) && __has_include(<sys/ioctl.h>)
#include <sys/ioctl.h>
#include <unistd.h>
#define ATTENTION_MAP_HAS_TERMINAL
#endif

namespace {

using attn::Index;

/// Element i of a random stream: in [-1, 1), a multiple of 2^-23, so that float holds it exactly and PyTorch can be
/// given the very same numbers. tests/data/README.md describes it.
double stream_value(std::uint64_t seed, std::uint64_t stream, std::uint64_t i) {
  std::uint64_t z = ((seed * 256 + stream) << 32 | i) + 0x9E3779B97F4A7C15U;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
  z = (z ^ z >> 27) * 0x94D049BB133111EBU;
  return static_cast<double>((z ^ z >> 31) >> 40) * 0x1p-23 - 1.0;
}

template <int Rank>
attn::Tensor<float, Rank> stream(attn::Tensor<float, Rank> tensor, std::uint64_t seed, std::uint64_t number,
                                 double scale) {
  for (Index i = 0; i < tensor.size(); ++i)
    tensor.data()[i] = static_cast<float>(scale * stream_value(seed, number, static_cast<std::uint64_t>(i)));
  return tensor;
}

// ----------------------------------------------------------------------------------------- 1. The same as PyTorch?

// PyTorch 1.13.1, float64: output [6,16] and the weights [4,6] of the last query. Made by
// tests/data/make_attention_map_case.py, which holds the same module in Python.
constexpr double torch_output[] = {
    0.234242748,    0.428589931,    0.676127709,   1.03817191,    -0.220532389,  -2.30529647,   -0.107634717,
    0.000336448283, 0.923511692,    -0.486400329,  0.309687179,   -0.274792721,  -0.380364414,  -1.20813816,
    -2.25827139,    0.720871143,    -0.0913967109, -0.0819455468, 1.02970697,    0.0587315087,  -0.330202156,
    -1.01047938,    -0.00953701167, 0.840754507,   0.52573179,    0.20054209,    -0.0469880944, -0.066675143,
    -0.526889884,   -0.556703727,   -0.721081652,  0.126746843,   0.32060571,    -0.505965779,  -0.251166674,
    1.11563493,     -0.903254958,   -1.26977835,   0.249572048,   0.329246398,   1.60844489,    -0.99897379,
    -0.680216592,   0.381709593,    -0.661748231,  -1.84171415,   -2.6577109,    0.139642111,   0.211980087,
    0.677157567,    0.379173902,    0.411840355,   -0.35009761,   -1.19566699,   0.440114759,   0.374392468,
    0.76373576,     0.186574688,    0.471268454,   -0.41617086,   -0.0450535029, 0.0416678425,  -0.974338784,
    -0.129228071,   -0.555261477,   0.626504713,   0.551450815,   0.0195443944,  -0.184690066,  -0.337391109,
    0.314362765,    0.0623829599,   0.363938426,   0.156738567,   0.22981168,    -0.304837031,  -0.0832748335,
    -0.0278658758,  0.271221731,    -0.255754727,  -0.108174505,  0.510658738,   0.886873527,   0.331139312,
    -0.225647917,   -0.812650984,   0.921782952,   -0.050060835,  0.11191226,    0.605819664,   0.240050059,
    -0.619842077,   0.252029146,    -0.293009305,  -0.290347654,  -0.312551734,
};
constexpr double torch_weights[] = {
    0.247312871, 0.180028418,   0.116773718, 0.19587699,  0.0718574623,  0.18815054,    0.345638363,  0.0515188229,
    0.218294921, 0.0620050577,  0.206562629, 0.115980206, 0.234597243,   0.00447036079, 0.730502993,  0.0130778917,
    0.016780262, 0.00057124926, 0.113575185, 0.127970039, 0.00498275513, 0.056459194,   0.0272470244, 0.669765803,
};
constexpr double torch_float32_error_output = 3.6e-07;  // how far PyTorch's own float32 falls from its float64
constexpr double torch_float32_error_weights = 1.5e-07;

/// Prints the largest difference from PyTorch; false where it is not rounding.
bool same_as_torch() {
  constexpr Index B = 1, S = 6, E = 16, H = 4;
  constexpr std::uint64_t seed = 2026;
  attn::LlamaAttention<float> attention(E, H);
  attention.eval();
  const auto set = [&](attn::Linear<float>& linear, std::uint64_t number, double scale) {
    linear.set_weight(stream(attn::Tensor<float, 2>(E, E), seed, number, scale));
    linear.set_bias(stream(attn::Tensor<float, 1>(E), seed, number + 1, scale / 2));
  };
  set(attention.query(), 2, 1.0);
  set(attention.key(), 4, 1.0);
  set(attention.value(), 6, 0.5);
  set(attention.out_proj(), 8, 0.5);
  const attn::Tensor<float, 3> x = stream(attn::Tensor<float, 3>(B, S, E), seed, 1, 1.0);
  const auto result = attention.forward_with_weights(x, attn::Causal{});

  double output = 0, weights = 0;
  for (Index s = 0; s < S; ++s)
    for (Index e = 0; e < E; ++e)
      output = std::max(output, std::abs(static_cast<double>(result.output(0, s, e)) - torch_output[s * E + e]));
  for (Index h = 0; h < H; ++h)
    for (Index t = 0; t < S; ++t)
      weights =
          std::max(weights, std::abs(static_cast<double>(result.weights(0, h, S - 1, t)) - torch_weights[h * S + t]));
  const bool same = output < 4 * torch_float32_error_output && weights < 4 * torch_float32_error_weights;
  std::printf("PyTorch   largest difference from its float64: output %.1e, weights %.1e\n", output, weights);
  std::printf("          (PyTorch's own float32: %.1e and %.1e)%s\n", torch_float32_error_output,
              torch_float32_error_weights, same ? "" : "  NOT THE SAME");
  return same;
}

// ------------------------------------------------------------------------------------------- 2. Words to numbers

// A word is 64 numbers for how it is spelt, then 64 for where it stands: 32 pairs of sine and cosine.
constexpr Index spelling_size = 64, pairs = 32, hidden_size = spelling_size + 2 * pairs, head_size = 64;

/// Radians that pair i turns from one word to the next: from half a turn down to a fiftieth of that.
double frequency(Index i) {
  return std::numbers::pi * std::pow(50.0, -static_cast<double>(i) / static_cast<double>(pairs - 1));
}

/// Adds the direction of each run of two and three letters, so that words that share some lie close together.
void write_spelling(std::string_view word, float* to) {
  std::string text = "^";
  for (const char c : word)
    if (const auto byte = static_cast<unsigned char>(c); byte >= 0x80 || std::isalnum(byte) != 0)
      text += static_cast<char>(byte < 0x80 ? std::tolower(byte) : byte);
  if (text.size() == 1) text += word;  // nothing but punctuation
  text += '$';
  std::fill_n(to, spelling_size, 0.F);
  for (std::size_t length = 2; length <= 3; ++length)
    for (std::size_t start = 0; start + length <= text.size(); ++start) {
      std::uint64_t hash = 0xCBF29CE484222325U;  // FNV-1a
      for (const char c : text.substr(start, length)) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
      for (Index i = 0; i < spelling_size; ++i)
        to[i] += static_cast<float>(stream_value(hash & 0xFFFF, hash >> 16 & 0xFF, static_cast<std::uint64_t>(i)));
    }
  float square = 0.F;
  for (Index i = 0; i < spelling_size; ++i) square += to[i] * to[i];
  for (Index i = 0; i < spelling_size; ++i) to[i] *= std::sqrt(static_cast<float>(spelling_size) / square);
}

attn::Tensor<float, 3> embed(const std::vector<std::string>& words) {
  attn::Tensor<float, 3> x(1, std::ssize(words), hidden_size);
  for (Index s = 0; s < std::ssize(words); ++s) {
    write_spelling(words[static_cast<std::size_t>(s)], &x(0, s, 0));
    for (Index i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(s) * frequency(i);
      x(0, s, spelling_size + 2 * i) = static_cast<float>(std::sin(angle));
      x(0, s, spelling_size + 2 * i + 1) = static_cast<float>(std::cos(angle));
    }
  }
  return x;
}

// ------------------------------------------------------------------------------- 3. Weights that do something

// Untrained weights attend to everything about alike. So each head is given a query and a key projection by hand,
// of one of four kinds in turn. Their rows [head * 64, head * 64 + 64) are the head's own.

/// score = sharpness * cosine of the angle between the spellings.
void by_spelling(attn::Tensor<float, 2>& q, attn::Tensor<float, 2>& k, Index row, float sharpness) {
  for (Index i = 0; i < spelling_size; ++i) {
    q(row + i, i) = sharpness / std::sqrt(static_cast<float>(head_size));
    k(row + i, i) = 1.F;
  }
}

/// score = sharpness * mean over the pairs of cos(frequency * (query - back - key)): largest where key = query - back.
/// The query's pairs are turned back, which a matrix can do: that is what sine and cosine are for.
void by_position(attn::Tensor<float, 2>& q, attn::Tensor<float, 2>& k, Index row, double back, double sharpness) {
  const double gain = sharpness * std::sqrt(static_cast<double>(head_size)) / static_cast<double>(pairs);
  for (Index i = 0; i < pairs; ++i) {
    const Index sine = 2 * i, cosine = sine + 1, from = spelling_size + sine;
    const double turn = back * frequency(i);
    q(row + sine, from) = q(row + cosine, from + 1) = static_cast<float>(gain * std::cos(turn));
    q(row + sine, from + 1) = static_cast<float>(-gain * std::sin(turn));
    q(row + cosine, from) = static_cast<float>(gain * std::sin(turn));
    k(row + sine, from) = k(row + cosine, from + 1) = 1.F;
  }
}

/// Random, twice as large as a new module's, so that there is something to see.
void by_chance(attn::Tensor<float, 2>& q, attn::Tensor<float, 2>& k, Index row, std::uint64_t seed) {
  const double bound = 2.0 / std::sqrt(static_cast<double>(hidden_size));
  for (Index r = row; r < row + head_size; ++r)
    for (Index e = 0; e < hidden_size; ++e) {
      const auto i = static_cast<std::uint64_t>((r - row) * hidden_size + e);
      q(r, e) = static_cast<float>(bound * stream_value(seed, 1, i));
      k(r, e) = static_cast<float>(bound * stream_value(seed, 2, i));
    }
}

/// Sets the query and key projections and returns what each head does.
std::vector<std::string> set_heads(attn::LlamaAttention<float>& attention) {
  const Index heads = attention.config().num_attention_heads;
  attn::Tensor<float, 2> q(heads * head_size, hidden_size), k(heads * head_size, hidden_size);
  q.setZero();
  k.setZero();
  std::vector<std::string> titles;
  for (Index h = 0; h < heads; ++h) {
    const Index row = h * head_size, round = h / 4;
    switch (h % 4) {
      case 0:
        by_spelling(q, k, row, 3.5F / static_cast<float>(round + 1));
        titles.push_back(round == 0 ? "similar spelling" : "similar spelling, softer");
        break;
      case 1:
        by_position(q, k, row, static_cast<double>(round + 1), 9.0);
        titles.push_back(round == 0 ? "the word before" : std::to_string(round + 1) + " words before");
        break;
      case 2:
        by_position(q, k, row, 0.0, 3.5 / static_cast<double>(round + 1));
        titles.push_back(round == 0 ? "nearby words" : "nearby words, wider");
        break;
      default:
        by_chance(q, k, row, static_cast<std::uint64_t>(round));
        titles.emplace_back("random weights");
    }
    titles.back() = "Head " + std::to_string(h + 1) + ": " + titles.back();
  }
  attention.query().set_weight(q);
  attention.key().set_weight(k);
  return titles;
}

// --------------------------------------------------------------------------------------------------- 4. The program

constexpr std::string_view help = R"(usage: attention_map [--heads N] [--causal] [--svg FILE] [WORD ...]

Draws which words attend to which, in each head of an attn::LlamaAttention. Each row is a word that looks, the columns
are what it looks at, the colour is how much.

  WORD ...      the sentence, in one argument or several (default: one about a cat)
  --heads N     number of attention heads, 1 to 64 (default 4)
  --causal      a word sees only itself and the words before it
  --svg FILE    where the picture goes (default attention_map.svg)
  --help        this text
)";

struct Arguments {
  std::string sentence;
  Index heads = 4;
  bool causal = false, help = false;
  std::string svg = "attention_map.svg";
};

Arguments parse(int count, char** values) {
  Arguments arguments;
  bool flags = true;
  for (int i = 1; i < count; ++i) {
    const std::string_view argument = values[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 >= count) throw std::invalid_argument(std::string(argument) + " expects a value");
      return values[++i];
    };
    if (!flags || !argument.starts_with("--")) {
      arguments.sentence += std::string(argument) + ' ';
    } else if (argument == "--") {
      flags = false;
    } else if (argument == "--help") {
      arguments.help = true;
    } else if (argument == "--causal") {
      arguments.causal = true;
    } else if (argument == "--svg") {
      arguments.svg = value();
      if (arguments.svg.empty()) throw std::invalid_argument("--svg expects the name of a file");
    } else if (argument == "--heads") {
      const std::string_view text = value();
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), arguments.heads);
      if (error != std::errc{} || end != text.data() + text.size() || arguments.heads < 1 || arguments.heads > 64)
        throw std::invalid_argument("--heads expects a number from 1 to 64, got '" + std::string(text) + "'");
    } else {
      throw std::invalid_argument("unknown flag " + std::string(argument));
    }
  }
  return arguments;
}

heat_map::Screen screen_of_stdout() {
  heat_map::Screen screen;
  const auto variable = [](const char* name) {
    const char* text = std::getenv(name);
    return std::string_view(text == nullptr ? "" : text);
  };
#ifdef ATTENTION_MAP_HAS_TERMINAL
  if (isatty(STDOUT_FILENO) != 0 && variable("TERM") != "dumb") {
    winsize window{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) screen.columns = window.ws_col;
    const bool fine = variable("COLORTERM") == "truecolor" || variable("COLORTERM") == "24bit";
    if (variable("NO_COLOR").empty()) screen.ink = fine ? heat_map::Ink::colours24bit : heat_map::Ink::colours256;
  }
#endif
  return screen;
}

int run(const Arguments& arguments) {
  const std::vector<std::string> words = heat_map::split_words(
      arguments.sentence.empty() ? "the cat sat on the mat because it was tired" : arguments.sentence);
  if (words.empty()) throw std::invalid_argument("the sentence has no words");
  if (words.size() > 128)
    throw std::invalid_argument("expected at most 128 words, got " + std::to_string(words.size()));

  const bool same = same_as_torch();

  attn::LlamaAttention<float> attention(attn::LlamaAttentionConfig{
      .hidden_size = hidden_size, .num_attention_heads = arguments.heads, .head_dim = head_size, .bias = false});
  attention.eval();
  const std::vector<std::string> titles = set_heads(attention);
  const attn::Tensor<float, 3> x = embed(words);

  // A mask is a type, so the choice between two is a choice between two calls.
  const auto attend = [&] {
    return arguments.causal ? attention.forward_with_weights(x, attn::Causal{}) : attention.forward_with_weights(x);
  };
  const auto result = attend();
  std::array<double, 9> milliseconds{};
  for (double& time : milliseconds) {
    const auto start = std::chrono::steady_clock::now();
    attend();
    time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + 4, milliseconds.end());

  heat_map::Figure figure;
  for (const std::string& word : words) figure.title += (figure.title.empty() ? "" : " ") + word;
  figure.note = "each row is a word that looks, the columns are what it looks at";
  if (arguments.causal) figure.note += "; causal";
  figure.words = words;
  const Index S = std::ssize(words);
  for (Index h = 0; h < arguments.heads; ++h) {
    const float* weights = &result.weights(0, h, 0, 0);
    figure.panels.push_back({titles[static_cast<std::size_t>(h)], {weights, weights + S * S}});
  }

  std::printf("shapes    x [1,%td,%td], %td heads of size %td, weights [1,%td,%td,%td], y [%td,%td,%td]\n", S,
              hidden_size, arguments.heads, head_size, arguments.heads, S, S, result.output.dimension(0),
              result.output.dimension(1), result.output.dimension(2));
  std::printf("time      %.3f ms a forward pass (median of 9, attn %s, threads: %d)\n\n", milliseconds[4],
              attn::version, attn::current_executor().concurrency());
  std::cout << heat_map::to_text(figure, screen_of_stdout()) << figure.note << '\n';

  std::ofstream file(arguments.svg, std::ios::binary);
  file << heat_map::to_svg(figure);
  file.close();
  if (!file) throw std::runtime_error("cannot write " + arguments.svg);
  std::cout << "picture: " << arguments.svg << '\n';
  return same ? 0 : 1;
}

}  // namespace

int main(int count, char** values) {
  try {
    const Arguments arguments = parse(count, values);
    if (!arguments.help) return run(arguments);
    std::cout << help;
    return 0;
  } catch (const std::invalid_argument& error) {
    std::cerr << "attention_map: " << error.what() << " (see attention_map --help)\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "attention_map: " << error.what() << '\n';
    return 1;
  }
}
