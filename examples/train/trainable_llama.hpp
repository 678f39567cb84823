// A Llama that trains: forward keeps what backward needs, backward adds up gradients, AdamW changes the parameters.
// Letters: B batch, S tokens of a row, E hidden size, F feed-forward size, V vocabulary.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "../llama2c.hpp"

namespace attn::examples {

/// y = down(silu(gate(x)) * up(x)), forward and backward.
class TrainableSwiGlu {
 public:
  /// Keeps gate(x), up(x) and their product.
  void forward(const SwiGlu& layer, const Tensor<float, 3>& x, Tensor<float, 3>& y) {
    layer.gate.forward_into(fit(gate_, x, layer.gate), x);
    layer.up.forward_into(fit(up_, x, layer.up), x);
    fit(product_, x, layer.up);
    product_ = gate_ * gate_.sigmoid() * up_;
    layer.down.forward_into(y, product_);
  }
  /// grad_x += the gradient of x.
  void backward(SwiGlu& layer, const Tensor<float, 3>& x, const Tensor<float, 3>& grad_y, Tensor<float, 3>& grad_x) {
    fit(grad_product_, x, layer.up);
    layer.down.backward_into(grad_product_, grad_y, product_);
    const Index n = product_.size();
    for (Index i = 0; i < n; ++i) {
      const float g = gate_.data()[i], u = up_.data()[i], grad = grad_product_.data()[i];
      const float sigmoid = 1.F / (1.F + std::exp(-g));
      up_.data()[i] = grad * g * sigmoid;                                  // gradient of up(x)
      gate_.data()[i] = grad * u * sigmoid * (1.F + g * (1.F - sigmoid));  // gradient of gate(x)
    }
    layer.gate.backward_add(grad_x, gate_, x);
    layer.up.backward_add(grad_x, up_, x);
  }

 private:
  static Tensor<float, 3>& fit(Tensor<float, 3>& tensor, const Tensor<float, 3>& x, const Linear<float>& layer) {
    if (tensor.size() == 0) tensor = Tensor<float, 3>(x.dimension(0), x.dimension(1), layer.out_features());
    return tensor;
  }
  Tensor<float, 3> gate_, up_, product_, grad_product_;
};

/// What an optimiser changes: elementwise, so that the order of elements does not matter.
struct Trained {
  std::span<float> values, gradient;
  bool decays;  // matrices do, norms do not
};

/// Rows of tokens: row b predicts targets[b,s] from tokens[b,0..s]. A target below 0 does not count.
struct Rows {
  Tensor<Token, 2> tokens, targets;
};

class TrainableLlama {
 public:
  TrainableLlama(Llama& model, Index B, Index S)
      : model_(model), x_(model.layers.size() * 2 + 1, make(B, S)), steps_(model.layers.size()) {
    const LlamaConfig& c = model.config;
    normed_.assign(model.layers.size() * 2 + 1, make(B, S));
    y_ = grad_ = grad_normed_ = make(B, S);
    logits_ = Tensor<float, 3>(B, S, c.vocabulary);
    embedding_gradient_ = Tensor<float, 2>(c.vocabulary, c.hidden_size);
    zero_gradients();
  }

  /// The mean loss, in nats, of the targets that count.
  [[nodiscard]] double loss(const Rows& rows) {
    embed(rows.tokens);
    for (std::size_t l = 0; l < model_.layers.size(); ++l) {
      const LlamaLayer& layer = model_.layers[l];
      layer.attention_norm.forward_into(normed_[2 * l], x_[2 * l]);
      layer.attention.forward_into(y_, normed_[2 * l], Causal{}, steps_[l].attention);
      x_[2 * l + 1] = x_[2 * l] + y_;
      layer.feed_forward_norm.forward_into(normed_[2 * l + 1], x_[2 * l + 1]);
      steps_[l].feed_forward.forward(layer.feed_forward, normed_[2 * l + 1], y_);
      x_[2 * l + 2] = x_[2 * l + 1] + y_;
    }
    model_.final_norm.forward_into(normed_.back(), x_.back());
    model_.output.forward_into(logits_, normed_.back());
    return cross_entropy(rows.targets);
  }

  /// Adds the gradients of the last loss to those of all parameters. Forward's steps, in reverse.
  void backward(const Rows& rows) {
    model_.output.backward_into(grad_normed_, logits_, normed_.back());
    model_.final_norm.backward_into(grad_, grad_normed_, x_.back());
    for (std::size_t l = model_.layers.size(); l-- > 0;) {
      LlamaLayer& layer = model_.layers[l];
      grad_normed_.setZero();
      steps_[l].feed_forward.backward(layer.feed_forward, normed_[2 * l + 1], grad_, grad_normed_);
      layer.feed_forward_norm.backward_into(y_, grad_normed_, x_[2 * l + 1]);
      grad_ += y_;
      layer.attention.backward_into(grad_normed_, grad_, steps_[l].attention);
      layer.attention_norm.backward_into(y_, grad_normed_, x_[2 * l]);
      grad_ += y_;
    }
    const Index E = model_.config.hidden_size;
    for (Index i = 0; i < rows.tokens.size(); ++i)
      for (Index e = 0; e < E; ++e) embedding_gradient_(rows.tokens.data()[i], e) += grad_.data()[i * E + e];
  }

  void zero_gradients() {
    embedding_gradient_.setZero();
    for (LlamaLayer& layer : model_.layers) {
      layer.attention_norm.zero_gradients();
      layer.attention.zero_gradients();
      layer.feed_forward_norm.zero_gradients();
      for (Linear<float>* linear : {&layer.feed_forward.gate, &layer.feed_forward.up, &layer.feed_forward.down})
        linear->zero_gradients();
    }
    model_.final_norm.zero_gradients();
    model_.output.zero_gradients();
  }

  /// All parameters of the model, always in the same order.
  [[nodiscard]] std::vector<Trained> parameters() {
    std::vector<Trained> all;
    const auto size = static_cast<std::size_t>(embedding_gradient_.size());
    all.push_back({{model_.embedding.data(), size}, {embedding_gradient_.data(), size}, true});
    const auto add = [&](auto& module, bool decays) {
      for (const Parameter<float>& p : module.parameters()) all.push_back({p.values(), p.gradient(), decays});
    };
    for (LlamaLayer& layer : model_.layers) {
      add(layer.attention_norm, false);
      add(layer.attention, true);
      add(layer.feed_forward_norm, false);
      for (Linear<float>* linear : {&layer.feed_forward.gate, &layer.feed_forward.up, &layer.feed_forward.down})
        add(*linear, true);
    }
    add(model_.final_norm, false);
    add(model_.output, true);
    return all;
  }

 private:
  struct Step {
    LlamaAttention<float>::Activations attention;
    TrainableSwiGlu feed_forward;
  };

  [[nodiscard]] Tensor<float, 3> make(Index B, Index S) const {
    return Tensor<float, 3>(B, S, model_.config.hidden_size);
  }
  void embed(const Tensor<Token, 2>& tokens) {
    const Index E = model_.config.hidden_size;
    for (Index i = 0; i < tokens.size(); ++i)
      std::copy_n(&model_.embedding(tokens.data()[i], 0), E, x_.front().data() + i * E);
  }
  /// The loss; logits become their gradients, (softmax - target) / count.
  double cross_entropy(const Tensor<Token, 2>& targets) {
    Softmax<float>().forward_into(logits_, logits_);
    const Index V = model_.config.vocabulary;
    Index count = 0;
    for (Index i = 0; i < targets.size(); ++i) count += targets.data()[i] >= 0 ? 1 : 0;
    const float share = 1.F / static_cast<float>(std::max<Index>(count, 1));
    double sum = 0.0;
    for (Index i = 0; i < targets.size(); ++i) {
      float* const row = logits_.data() + i * V;
      const Token target = targets.data()[i];
      const float factor = target >= 0 ? share : 0.F;
      if (target >= 0) sum -= std::log(std::max(double{row[target]}, 1e-30));
      for (Index v = 0; v < V; ++v) row[v] *= factor;
      if (target >= 0) row[target] -= share;
    }
    return sum / static_cast<double>(std::max<Index>(count, 1));
  }

  Llama& model_;
  std::vector<Tensor<float, 3>> x_,
      normed_;  // what each half of a layer reads, and the same normalised; the last: output
  std::vector<Step> steps_;
  Tensor<float, 3> y_, grad_, grad_normed_, logits_;
  Tensor<float, 2> embedding_gradient_;
};

/// AdamW with gradients clipped to a global norm. Source: Loshchilov, Hutter, "Decoupled weight decay regularization", 2019.
class AdamW {
 public:
  struct Settings {
    float beta1 = 0.9F, beta2 = 0.95F, epsilon = 1e-8F, weight_decay = 0.1F, largest_norm = 1.F;
  };

  AdamW(std::vector<Trained> parameters, Settings settings) : parameters_(std::move(parameters)), settings_(settings) {
    std::size_t size = 0;
    for (const Trained& parameter : parameters_) size += parameter.values.size();
    first_.assign(size, 0.F), second_.assign(size, 0.F);
  }

  /// One step, the `number`-th from 1 on. Returns the norm of the gradients before they were clipped.
  double step(Index number, float rate) {
    double squares = 0.0;
    for (const Trained& parameter : parameters_)
      for (const float g : parameter.gradient) squares += double{g} * double{g};
    const double norm = std::sqrt(squares);
    const float clip = norm > double{settings_.largest_norm} ? settings_.largest_norm / static_cast<float>(norm) : 1.F;
    const auto n = static_cast<float>(number);
    const float unbias1 = 1.F / (1.F - std::pow(settings_.beta1, n)),
                unbias2 = 1.F / (1.F - std::pow(settings_.beta2, n));
    float *first = first_.data(), *second = second_.data();
    for (const Trained& parameter : parameters_) {
      const float decay = 1.F - (parameter.decays ? rate * settings_.weight_decay : 0.F);
      const std::size_t size = parameter.values.size();
      for (std::size_t i = 0; i < size; ++i) {
        const float g = parameter.gradient[i] * clip;
        first[i] = settings_.beta1 * first[i] + (1.F - settings_.beta1) * g;
        second[i] = settings_.beta2 * second[i] + (1.F - settings_.beta2) * g * g;
        const float change = first[i] * unbias1 / (std::sqrt(second[i] * unbias2) + settings_.epsilon);
        parameter.values[i] = parameter.values[i] * decay - rate * change;
      }
      first += size, second += size;
    }
    return norm;
  }

  /// What it takes to go on later, with the parameters.
  [[nodiscard]] std::span<float> first() { return first_; }
  [[nodiscard]] std::span<float> second() { return second_; }
  [[nodiscard]] const std::vector<Trained>& parameters() const { return parameters_; }

 private:
  std::vector<Trained> parameters_;
  Settings settings_;
  std::vector<float> first_, second_;
};

/// Warm-up from 0, then half a cosine down to a tenth.
inline float learning_rate(Index step, Index warm_up, Index steps, float highest) {
  if (step <= warm_up) return highest * static_cast<float>(step) / static_cast<float>(warm_up);
  const double done = static_cast<double>(step - warm_up) / static_cast<double>(std::max<Index>(steps - warm_up, 1));
  return highest * static_cast<float>(0.1 + 0.45 * (1.0 + std::cos(std::min(done, 1.0) * 3.14159265358979323846)));
}

}  // namespace attn::examples
