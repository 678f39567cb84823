// attn for compare.js: one command per line of standard input, one answer per line of standard output.
//
//   machine                       -> instruction set, threads, peak in GFLOP/s, read bandwidth in GB/s
//   peak                          -> GFLOP/s of one burst of multiply-adds
//   attention full   B S H D      -> 32 numbers of the result; what follows times this
//   attention causal B S H D      -> the same
//   layer B S E H                 -> the same; LlamaAttention without a mask
//   training B S E H              -> the same, of the input's gradient; forward and backward of LlamaAttention
//   gqa B S H G D past            -> the same; causal, S new tokens appended to a cache of `past` ones
//   quantised BITS M N K          -> the same; M rows through a Linear of N x K in int8 or int4
//   run N                         -> milliseconds of one run, the mean of N
//
// Inputs are [B,S,H*D] tensors by the formula in support.hpp. An error is answered by "error ..." and ends the program.
#include <cstddef>
#include <functional>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "../support.hpp"

namespace attn_bench {
namespace {

/// What is timed, and where its result lies.
struct Task {
  std::function<void()> run;
  std::shared_ptr<Tensor<float, 3>> y;
};

Task attention(const std::string& mask, Index B, Index S, Index H, Index D) {
  const auto q = std::make_shared<Tensor<float, 3>>(random<3>({B, S, H * D}, 1));
  const auto k = std::make_shared<Tensor<float, 3>>(random<3>({B, S, H * D}, 2));
  const auto v = std::make_shared<Tensor<float, 3>>(random<3>({B, S, H * D}, 3));
  const auto y = std::make_shared<Tensor<float, 3>>(B, S, H * D);
  const auto with = [=](const auto& typed) {
    return Task{[=] {
                  attn::scaled_dot_product_attention_into(attn::split_heads(*y, H), attn::split_heads(*q, H),
                                                          attn::split_heads(*k, H), attn::split_heads(*v, H), typed);
                },
                y};
  };
  if (mask == "full") return with(attn::NoMask{});
  if (mask == "causal") return with(attn::Causal{});
  throw std::invalid_argument("no such mask: " + mask);
}

std::shared_ptr<attn::LlamaAttention<float>> make_module(Index E, Index H) {
  auto module = std::make_shared<attn::LlamaAttention<float>>(E, H);
  module->eval();
  std::uint32_t seed = 10;
  const double bound = 1.0 / std::sqrt(static_cast<double>(E));
  for (attn::Linear<float>* linear : {&module->query(), &module->key(), &module->value(), &module->out_proj()}) {
    Tensor<float, 2> weight(E, E);
    fill(weight.data(), E * E, seed++, bound);
    linear->set_weight(weight);
    Tensor<float, 1> bias(E);
    fill(bias.data(), E, seed++, bound);
    linear->set_bias(bias);
  }
  return module;
}

Task layer(Index B, Index S, Index E, Index H) {
  const auto module = make_module(E, H);
  const auto x = std::make_shared<Tensor<float, 3>>(random<3>({B, S, E}, 1));
  const auto y = std::make_shared<Tensor<float, 3>>(B, S, E);
  return {[=] { module->forward_into(*y, *x); }, y};
}

Task training(Index B, Index S, Index E, Index H) {
  const auto module = make_module(E, H);
  const auto saved = std::make_shared<attn::LlamaAttention<float>::Activations>();
  const auto x = std::make_shared<Tensor<float, 3>>(random<3>({B, S, E}, 1));
  const auto grad_y = std::make_shared<Tensor<float, 3>>(random<3>({B, S, E}, 2));
  const auto y = std::make_shared<Tensor<float, 3>>(B, S, E), grad_x = std::make_shared<Tensor<float, 3>>(B, S, E);
  return {[=] {
            module->forward_into(*y, *x, attn::NoMask{}, *saved);
            module->backward_into(*grad_x, *grad_y, *saved);
          },
          grad_x};
}

Task group_query(Index B, Index S, Index H, Index G, Index D, Index past) {
  const auto q = std::make_shared<Tensor<float, 3>>(random<3>({B, S, H * D}, 1));
  const auto k = std::make_shared<Tensor<float, 3>>(random<3>({B, S, G * D}, 2));
  const auto v = std::make_shared<Tensor<float, 3>>(random<3>({B, S, G * D}, 3));
  const auto cache = std::make_shared<attn::KvCache<float>>(B, G, past + S, D);
  const auto past_keys = random<4>({B, G, past, D}, 4), past_values = random<4>({B, G, past, D}, 5);
  cache->append(View<const float, 4>(past_keys), View<const float, 4>(past_values));
  const auto y = std::make_shared<Tensor<float, 3>>(B, S, H * D);
  return {[=] {
            cache->append(attn::split_heads(View<const float, 3>(*k), G),
                          attn::split_heads(View<const float, 3>(*v), G));
            attn::scaled_dot_product_attention_into(attn::split_heads(*y, H), attn::split_heads(*q, H), cache->keys(),
                                                    cache->values(), attn::Causal{});
            cache->roll_back(S);
          },
          y};
}

/// Numbers from 0 to 2^bits - 1 by the formula, of which 2^(bits - 1) stands for 0, times 2^-12: as blocks of GGUF's.
Task quantised(Index bits, Index M, Index N, Index K) {
  if ((bits != 8 && bits != 4) || K % 32 != 0) throw std::invalid_argument("expected 8 or 4 bits, K a multiple of 32");
  std::vector<float> numbers(static_cast<std::size_t>(N * K));
  fill(numbers.data(), N * K, 20);
  const double zero = bits == 8 ? 128 : 8;
  const auto number = [&](Index i) {
    const double x = double{numbers[static_cast<std::size_t>(i)]};
    return static_cast<int>(std::max(zero - 127, std::floor((x + 1) * zero)));
  };
  std::vector<std::byte> blocks;
  for (Index i = 0; i < N * K; i += 32) {
    blocks.insert(blocks.end(), {std::byte{0x00}, std::byte{0x0C}});  // 2^-12 as half
    for (Index j = 0; j < (bits == 8 ? 32 : 16); ++j)
      blocks.push_back(
          static_cast<std::byte>(bits == 8 ? number(i + j) - 128 : number(i + j) | number(i + j + 16) << 4));
  }
  const auto linear = std::make_shared<attn::Linear<float>>(K, N, false);
  linear->set_quantised_weight(blocks);
  const auto x = std::make_shared<Tensor<float, 3>>(random<3>({1, M, K}, 1));
  const auto y = std::make_shared<Tensor<float, 3>>(1, M, N);
  return {[=] { linear->forward_into(*y, *x); }, y};
}

std::string answer(const std::string& line, Task& task) {
  std::istringstream words(line);
  std::ostringstream out;
  out << std::setprecision(9);
  std::string command, mask;
  Index n[6] = {};
  words >> command;
  if (command == "attention") words >> mask;
  if (command == "run") {
    words >> n[0];
  } else if (command != "machine" && command != "peak") {
    words >> n[0] >> n[1] >> n[2] >> n[3];
    if (command == "gqa") words >> n[4] >> n[5];
  }
  if (words.fail()) throw std::invalid_argument("expected a command and its sizes, got: " + line);

  if (command == "machine") {
    out << attn::isa_name(attn::active_isa()) << ' ' << attn::current_executor().concurrency() << ' '
        << best_of(10, peak_burst) * 1e-9 << ' ' << best_of(5, bandwidth_burst) * 1e-9;
  } else if (command == "peak") {
    out << peak_burst() * 1e-9;
  } else if (command == "run") {
    if (!task.run || n[0] < 1) throw std::invalid_argument("nothing to run");
    const double time = seconds([&] {
      for (Index i = 0; i < n[0]; ++i) task.run();
    });
    out << time * 1e3 / static_cast<double>(n[0]);
  } else {
    task = {};  // frees the one before
    if (command == "attention")
      task = attention(mask, n[0], n[1], n[2], n[3]);
    else if (command == "layer")
      task = layer(n[0], n[1], n[2], n[3]);
    else if (command == "training")
      task = training(n[0], n[1], n[2], n[3]);
    else if (command == "quantised")
      task = quantised(n[0], n[1], n[2], n[3]);
    else if (command == "gqa")
      task = group_query(n[0], n[1], n[2], n[3], n[4], n[5]);
    else
      throw std::invalid_argument("no such command: " + command);
    task.run();
    for (Index i = 0; i < 32; ++i) out << (i > 0 ? " " : "") << task.y->data()[i * (task.y->size() - 1) / 31];
  }
  return out.str();
}

}  // namespace
}  // namespace attn_bench

int main() {
  try {
    attn_bench::Task task;
    for (std::string line; std::getline(std::cin, line);) std::cout << attn_bench::answer(line, task) << std::endl;
    return 0;
  } catch (const std::exception& error) {
    std::cout << "error " << error.what() << std::endl;
    return 1;
  }
}
