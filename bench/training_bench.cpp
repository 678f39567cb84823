// Gradients: how fast backward runs beside forward. Bursts of both alternate, so that ratios hold on a shared machine.
//
//   training_bench [--pairs N] [--json FILE]
//
// A backward pass of attention counts as five products where forward has two, that of Linear as two where forward has one:
// `rate` is the share of forward's own operations per second. What has no such count is given as a multiple of a time.
#include <chrono>
#include <functional>
#include <fstream>
#include <iomanip>

#include "support.hpp"

namespace attn_bench {
namespace {

using attn::Causal;
using attn::NoMask;
using attn::NoScore;
using Bfloat16 = Eigen::bfloat16;

struct Row {
  std::string work, what;
  std::vector<double> values;  // of each pair
  double forward_ms = 0.0, backward_ms = 0.0;
};

/// Times two functions in turns: the medians of both, and value(first, second) of each pair.
template <class Value>
Row take_turns(const std::string& work, const std::string& what, int pairs, const std::function<void()>& first,
               const std::function<void()>& second, const Value& value) {
  first(), second();
  const int of_first = std::max(1, static_cast<int>(0.1 / seconds(first)));
  const int of_second = std::max(1, static_cast<int>(0.1 / seconds(second)));
  const auto burst = [](int runs, const std::function<void()>& run) {
    return seconds([&] {
             for (int i = 0; i < runs; ++i) run();
           }) /
           runs * 1e3;
  };
  Row row{work, what, {}};
  std::vector<double> a, b;
  for (int pair = 0; pair < pairs; ++pair) {
    a.push_back(burst(of_first, first));
    b.push_back(burst(of_second, second));
    row.values.push_back(value(a.back(), b.back()));
  }
  row.forward_ms = median(a), row.backward_ms = median(b);
  return row;
}

/// Whether the gradients of sum(grad * y) are right: two derivatives in a random direction, one by central differences.
bool agree(double by_gradient, double by_differences) {
  return std::abs(by_gradient - by_differences) <= 0.03 * std::abs(by_differences) + 0.5;
}
double dot(const Tensor<float, 4>& a, const Tensor<float, 4>& b) {
  double sum = 0;
  for (Index i = 0; i < a.size(); ++i) sum += double{a.data()[i]} * double{b.data()[i]};
  return sum;
}

/// An attention with all that its backward pass needs.
template <class M, class F>
class Attention {
 public:
  Attention(Index B, Index S, Index H, Index D, M mask, F score, double dropout)
      : mask_(mask), score_(score), q_(B, H, S, D), k_(B, H, S, D), v_(B, H, S, D), grad_(B, H, S, D) {
    std::uint32_t seed = 1;
    for (auto* x : {&q_, &k_, &v_, &grad_}) fill(x->data(), x->size(), seed++);
    options_.log_sum_exp = true, options_.dropout = dropout;
    result_ = attn::scaled_dot_product_attention(q_, k_, v_, mask_, score_, options_);
    gradients_ = attn::scaled_dot_product_attention_backward(grad_, q_, k_, v_, result_, mask_, score_, options_);
  }

  void forward() {
    attn::AttentionOutputs<float> out;
    out.output = result_.output, out.log_sum_exp = result_.log_sum_exp;
    attn::scaled_dot_product_attention_into(out, q_, k_, v_, mask_, score_, options_);
  }
  void backward() {
    const attn::AttentionGradientOutputs<float> out{gradients_.q, gradients_.k, gradients_.v, {}, {}};
    attn::scaled_dot_product_attention_backward_into(out, grad_, q_, k_, v_, result_.output, result_.log_sum_exp, mask_,
                                                     score_, options_);
  }
  /// By central differences in a random direction, for each of q, k and v.
  bool is_right() {
    backward();
    bool right = true;
    for (auto [x, gradient] : {std::pair(&q_, &gradients_.q), {&k_, &gradients_.k}, {&v_, &gradients_.v}}) {
      Tensor<float, 4> direction = *x, before = *x;
      fill(direction.data(), direction.size(), 99);
      double values[2];
      for (int side = 0; side < 2; ++side) {
        for (Index i = 0; i < x->size(); ++i)
          x->data()[i] = before.data()[i] + (side == 0 ? 0.02F : -0.02F) * direction.data()[i];
        forward();
        values[side] = dot(grad_, result_.output);
      }
      *x = before;
      forward();
      right = right && agree(dot(*gradient, direction), (values[0] - values[1]) / 0.04);
    }
    return right;
  }

 private:
  M mask_;
  F score_;
  Tensor<float, 4> q_, k_, v_, grad_;
  attn::AttentionOptions options_;
  attn::AttentionResult<float> result_;
  attn::AttentionGradients<float> gradients_;
};

/// A layer with what training takes.
template <class T>
struct Training {
  attn::LlamaAttention<T> module;
  Tensor<T, 3> x, grad_y, y, grad_x;
  typename attn::LlamaAttention<T>::Activations saved;

  Training(Index B, Index S, Index E, Index H)
      : module({.hidden_size = E,
                .num_attention_heads = H,
                .attention_dropout = 0.0,
                .projection_dropout = 0.0,
                .seed = 1}),
        x(random<3>({B, S, E}, 1).template cast<T>()),
        grad_y(random<3>({B, S, E}, 2).template cast<T>()),
        y(B, S, E),
        grad_x(B, S, E) {}
  void step() {
    module.forward_into(y, x, NoMask{}, saved);
    module.backward_into(grad_x, grad_y, saved);
  }
};

/// Whether a gradient is the same but for the rounding of bfloat16: 3 % of its root mean square.
template <class T, int Rank>
[[nodiscard]] bool is_near(const Tensor<T, Rank>& gradient, const Tensor<float, Rank>& right) {
  double squares = 0, errors = 0;
  for (Index i = 0; i < right.size(); ++i) {
    const double x = right.data()[i], error = static_cast<double>(gradient.data()[i]) - x;
    squares += x * x, errors += error * error;
  }
  return errors <= 0.03 * 0.03 * squares;
}
[[nodiscard]] std::string shape_name(const std::vector<Index>& sizes) {
  std::string name;
  for (const Index size : sizes) name += (name.empty() ? "" : ",") + std::to_string(size);
  return name;
}

class Report {
 public:
  explicit Report(int pairs) : pairs_(pairs) {}

  void attention(Index B, Index S, Index H, Index D) {
    const std::string shape = shape_name({B, S, H, D});
    const auto against_forward = [&](const std::string& name, auto mask) {
      Attention work(B, S, H, D, mask, NoScore{}, 0.0);
      if (!work.is_right()) return reject(name);
      add(take_turns(
          "attention backward, " + name + ' ' + shape, "rate", pairs_, [&] { work.forward(); },
          [&] { work.backward(); }, [](double f, double b) { return 2.5 * f / b; }));
    };
    against_forward("full", NoMask{});
    against_forward("causal", Causal{});
  }

  /// Backward with a score function or dropout, as a multiple of the time without.
  void extras(Index B, Index S, Index H, Index D) {
    const auto user = [](auto score, attn::Position at) { return score - 0.01F * at.distance() * score; };
    Attention plain(B, S, H, D, Causal{}, NoScore{}, 0.0);
    Attention scored(B, S, H, D, Causal{}, user, 0.0);
    Attention capped(B, S, H, D, Causal{}, attn::SoftCap(5.F), 0.0);
    Attention dropped(B, S, H, D, Causal{}, NoScore{}, 0.1);
    const auto compare = [&](const std::string& name, auto& work) {
      if (!work.is_right()) return reject(name);
      add(take_turns(
          "backward, causal, " + name, "times the plain one", pairs_, [&] { plain.backward(); },
          [&] { work.backward(); }, [](double a, double b) { return b / a; }));
    };
    compare("a lambda as score", scored);
    compare("SoftCap", capped);
    compare("dropout 0.1", dropped);
  }

  void linear(Index rows, Index in, Index out) {
    attn::Linear<float> layer(in, out);
    const auto x = random<2>({rows, in}, 1), grad_y = random<2>({rows, out}, 2);
    Tensor<float, 2> y(rows, out), grad_x(rows, in);
    const std::string name =
        "Linear backward, " + std::to_string(rows) + ": " + std::to_string(in) + " -> " + std::to_string(out);
    layer.backward_into(grad_x, grad_y, x);
    const auto weight = layer.weight();
    const auto gradient = layer.weight_gradient();
    bool right = true;
    for (Index i = 0; i < 100; ++i) {
      const Index row = i * 7919 % rows, n = i * 6007 % in, o = i * 3571 % out;
      double of_x = 0, of_weight = 0;
      for (Index j = 0; j < out; ++j) of_x += double{grad_y(row, j)} * double{weight(j, n)};
      for (Index r = 0; r < rows; ++r) of_weight += double{grad_y(r, o)} * double{x(r, n)};
      right = right && std::abs(of_x - double{grad_x(row, n)}) < 1e-4 &&
              std::abs(of_weight - double{gradient(o, n)}) < 1e-3;
    }
    if (!right) return reject(name);
    add(take_turns(
        name, "rate", pairs_, [&] { layer.forward_into(y, x); }, [&] { layer.backward_into(grad_x, grad_y, x); },
        [](double f, double b) { return 2.0 * f / b; }));
  }

  void layer(Index B, Index S, Index E, Index H) {
    Training<float> work(B, S, E, H);
    add(take_turns(
        "whole layer, forward and backward, " + shape_name({B, S, E, H}), "times forward", pairs_,
        [&] { work.module.forward_into(work.y, work.x); }, [&] { work.step(); },
        [](double f, double t) { return t / f; }));
  }

  /// Training in bfloat16, as float's time by its own.
  void linear_of_bfloat16(Index rows, Index in, Index out) {
    attn::Linear<float> layer(in, out);
    const Tensor<Bfloat16, 2> weight = layer.weight().cast<Bfloat16>();
    const Tensor<Bfloat16, 1> bias = layer.bias().cast<Bfloat16>();
    attn::Linear<Bfloat16> low(weight, bias);
    const auto x = random<2>({rows, in}, 1), grad_y = random<2>({rows, out}, 2);
    const Tensor<Bfloat16, 2> x_low = x.cast<Bfloat16>(), grad_y_low = grad_y.cast<Bfloat16>();
    Tensor<float, 2> grad_x(rows, in);
    Tensor<Bfloat16, 2> grad_x_low(rows, in);
    const auto run = [&] { layer.backward_into(grad_x, grad_y, x); };
    const auto run_low = [&] { low.backward_into(grad_x_low, grad_y_low, x_low); };
    const std::string name = "Linear backward of bfloat16, " + shape_name({rows, in, out});
    run(), run_low();
    if (!is_near(grad_x_low, grad_x) || !is_near(low.weight_gradient(), layer.weight_gradient())) return reject(name);
    add(take_turns(name, "times float's speed", pairs_, run, run_low, [](double f, double l) { return f / l; }));
  }
  void layer_of_bfloat16(Index B, Index S, Index E, Index H) {
    Training<float> plain(B, S, E, H);
    Training<Bfloat16> low(B, S, E, H);
    const std::string name = "whole layer of bfloat16, forward and backward, " + shape_name({B, S, E, H});
    plain.step(), low.step();
    if (!is_near(low.grad_x, plain.grad_x) ||
        !is_near(low.module.query().weight_gradient(), plain.module.query().weight_gradient()))
      return reject(name);
    add(take_turns(
        name, "times float's speed", pairs_, [&] { plain.step(); }, [&] { low.step(); },
        [](double f, double l) { return f / l; }));
  }

  /// What a backward pass of long sequences takes besides inputs, outputs and gradients.
  void memory(Index S, Index H, Index D) {
    Attention work(1, S, H, D, Causal{}, NoScore{}, 0.0);
    attn::Workspace::current().release();
    work.backward();
    const double megabytes = static_cast<double>(attn::Workspace::current().capacity()) / (1 << 20);
    add({"memory of backward, S " + std::to_string(S) + ", H " + std::to_string(H) + ", D " + std::to_string(D),
         "MB besides inputs, outputs and gradients",
         {megabytes}});
  }

  void write_json(std::ostream& file) const {
    file << "[\n";
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const Row& row = rows_[i];
      file << "  {\"work\": \"" << row.work << "\", \"what\": \"" << row.what
           << "\", \"median\": " << median(row.values) << ", \"least\": " << *std::ranges::min_element(row.values)
           << ", \"largest\": " << *std::ranges::max_element(row.values) << '}'
           << (i + 1 < rows_.size() ? ",\n" : "\n");
    }
    file << "]\n";
  }

 private:
  void add(const Row& row) {
    std::cout << std::left << std::setw(56) << row.work << std::right << std::fixed << std::setprecision(2)
              << std::setw(9) << row.forward_ms << " ms" << std::setw(10) << row.backward_ms << " ms" << std::setw(9)
              << median(row.values) << " [" << *std::ranges::min_element(row.values) << ", "
              << *std::ranges::max_element(row.values) << "] " << row.what << std::endl;
    rows_.push_back(row);
  }
  static void reject(const std::string& name) {
    std::cout << name << ": wrong gradients" << std::endl;
    rejected = true;
  }

  int pairs_;
  std::vector<Row> rows_;
};

int training(int argc, char** argv) {
  PairOptions options(argc, argv);
  std::cout << "instruction set " << attn::isa_name(attn::active_isa()) << ", "
            << attn::current_executor().concurrency() << " threads, medians of " << options.pairs
            << " pairs [least, largest]\n";
  Report report(options.pairs);
  report.attention(1, 2048, 32, 128);
  report.attention(1, 1024, 12, 64);
  report.attention(8, 128, 8, 32);
  report.extras(1, 1024, 12, 64);
  for (const auto& shape : {std::array<Index, 3>{512, 4096, 4096}, {2048, 1024, 1024}, {1024, 768, 768}})
    report.linear(shape[0], shape[1], shape[2]);
  for (const auto& shape : {std::array<Index, 4>{8, 128, 256, 8},
                            {1, 1024, 768, 12},
                            {1, 2048, 1024, 8},
                            {1, 512, 4096, 32},
                            {1, 2048, 4096, 32}})
    report.layer(shape[0], shape[1], shape[2], shape[3]);
  report.linear_of_bfloat16(512, 4096, 4096);
  for (const auto& shape : {std::array<Index, 4>{8, 128, 256, 8}, {1, 2048, 1024, 8}, {1, 512, 4096, 32}})
    report.layer_of_bfloat16(shape[0], shape[1], shape[2], shape[3]);
  report.memory(16384, 8, 128);
  report.write_json(options.json);
  return rejected ? 1 : 0;
}

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) try { return attn_bench::training(argc, argv); } catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
