// Attention forward and backward against what a user would write by hand: OpenBLAS's products and a vectorised softmax over an
// S x S matrix of each head, heads in parallel. In one process, taking turns.
//
//   blas_bench [--pairs N] [--json FILE]
#include <cblas.h>

#include <Eigen/Core>
#include <atomic>
#include <chrono>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "../support.hpp"

namespace attn_bench {
namespace {

using Matrix = Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// c [rows, columns] = factor a b, each transposed where asked for.
void multiply(bool a_transposed, bool b_transposed, Index rows, Index columns, Index depth, float factor,
              const float* a, Index a_row, const float* b, Index b_row, float* c, Index c_row) {
  const auto n = [](Index x) { return static_cast<int>(x); };
  cblas_sgemm(CblasRowMajor, a_transposed ? CblasTrans : CblasNoTrans, b_transposed ? CblasTrans : CblasNoTrans,
              n(rows), n(columns), n(depth), factor, a, n(a_row), b, n(b_row), 0.F, c, n(c_row));
}

/// All tensors [B,H,S,D], and for each thread two S x S matrices; the weights of every head are kept for backward.
class ByHand {
 public:
  ByHand(Index B, Index S, Index H, Index D, bool causal)
      : heads_(B * H), S_(S), D_(D), causal_(causal), weights_(static_cast<std::size_t>(heads_), Matrix(S, S)) {
    for (int i = 0; i < attn::current_executor().concurrency(); ++i) scratch_.emplace_back(S, S);
    openblas_set_num_threads(1);  // heads are what runs in parallel
  }

  void run(const Tensor<float, 4>& q, const Tensor<float, 4>& k, const Tensor<float, 4>& v,
           const Tensor<float, 4>& grad, Tensor<float, 4>& y, Tensor<float, 4>& grad_q, Tensor<float, 4>& grad_k,
           Tensor<float, 4>& grad_v) {
    std::atomic<Index> next{0};
    attn::current_executor().parallel_for(static_cast<int>(scratch_.size()), [&](int worker) {
      for (Index head = next++; head < heads_; head = next++) {
        const auto of = [&](const Tensor<float, 4>& x) { return x.data() + head * S_ * D_; };
        const auto to = [&](Tensor<float, 4>& x) { return x.data() + head * S_ * D_; };
        Matrix& p = weights_[static_cast<std::size_t>(head)];
        forward(of(q), of(k), of(v), p, to(y));
        backward(of(q), of(k), of(v), of(grad), p, scratch_[static_cast<std::size_t>(worker)], to(grad_q), to(grad_k),
                 to(grad_v));
      }
    });
  }
  [[nodiscard]] double megabytes() const {
    return static_cast<double>((weights_.size() + scratch_.size()) * static_cast<std::size_t>(S_ * S_) *
                               sizeof(float)) /
           (1 << 20);
  }

 private:
  void forward(const float* q, const float* k, const float* v, Matrix& p, float* y) const {
    multiply(false, true, S_, S_, D_, scale(), q, D_, k, D_, p.data(), S_);
    for (Index s = 0; s < S_; ++s) {
      const Index n = causal_ ? s + 1 : S_;
      auto row = p.row(s).head(n);
      row = (row - row.maxCoeff()).exp();
      row *= 1.F / row.sum();
      p.row(s).tail(S_ - n).setZero();
    }
    multiply(false, false, S_, D_, S_, 1.F, p.data(), S_, v, D_, y, D_);
  }
  void backward(const float* q, const float* k, const float* v, const float* grad, const Matrix& p, Matrix& ds,
                float* grad_q, float* grad_k, float* grad_v) const {
    multiply(false, true, S_, S_, D_, 1.F, grad, D_, v, D_, ds.data(), S_);
    for (Index s = 0; s < S_; ++s) ds.row(s) = p.row(s) * (ds.row(s) - (p.row(s) * ds.row(s)).sum());
    multiply(true, false, S_, D_, S_, 1.F, p.data(), S_, grad, D_, grad_v, D_);
    multiply(false, false, S_, D_, S_, scale(), ds.data(), S_, k, D_, grad_q, D_);
    multiply(true, false, S_, D_, S_, scale(), ds.data(), S_, q, D_, grad_k, D_);
  }
  [[nodiscard]] float scale() const { return 1.F / std::sqrt(static_cast<float>(D_)); }

  Index heads_, S_, D_;
  bool causal_;
  std::vector<Matrix> weights_, scratch_;
};

template <class Run>
double milliseconds(const Run& run, int times) {
  return seconds([&] {
           for (int i = 0; i < times; ++i) run();
         }) /
         times * 1e3;
}

bool close(const Tensor<float, 4>& a, const Tensor<float, 4>& b) {
  float largest = 0.F;
  for (Index i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a.data()[i] - b.data()[i]));
  return largest < 1e-4F;
}

/// One line of the table, and of the file.
template <class M>
void compare(Index B, Index S, Index H, Index D, bool causal, const M& mask, int pairs, std::ostream& file) {
  Tensor<float, 4> q(B, H, S, D), k(B, H, S, D), v(B, H, S, D), grad(B, H, S, D), y(B, H, S, D);
  std::uint32_t seed = 1;
  for (auto* x : {&q, &k, &v, &grad}) fill(x->data(), x->size(), seed++);
  Tensor<float, 4> by_hand[3] = {y, y, y}, ours[3] = {y, y, y}, our_y = y;
  Tensor<float, 3> sums(B, H, S);
  ByHand hand(B, S, H, D, causal);
  const auto run_hand = [&] { hand.run(q, k, v, grad, y, by_hand[0], by_hand[1], by_hand[2]); };
  attn::AttentionOutputs<float> out;
  out.output = our_y, out.log_sum_exp = sums;
  const attn::AttentionGradientOutputs<float> gradients{ours[0], ours[1], ours[2], {}, {}};
  const auto run_ours = [&] {
    attn::scaled_dot_product_attention_into(out, q, k, v, mask);
    attn::scaled_dot_product_attention_backward_into(gradients, grad, q, k, v, our_y, sums, mask);
  };
  run_hand(), run_ours();
  const std::string name = std::string(causal ? "causal " : "full ") + std::to_string(B) + ',' + std::to_string(S) +
                           ',' + std::to_string(H) + ',' + std::to_string(D);
  if (!close(y, our_y) || !close(by_hand[0], ours[0]) || !close(by_hand[1], ours[1]) || !close(by_hand[2], ours[2])) {
    std::cout << name << ": the two disagree\n";
    rejected = true;
    return;
  }
  const int runs = std::max(1, static_cast<int>(100 / milliseconds(run_ours, 1)));
  std::vector<double> ratios, times;
  for (int pair = 0; pair < pairs; ++pair) {
    const double hand_ms = milliseconds(run_hand, runs);
    times.push_back(milliseconds(run_ours, runs));
    ratios.push_back(hand_ms / times.back());
  }
  const double megabytes = static_cast<double>(attn::Workspace::current().capacity()) / (1 << 20);
  std::cout << std::left << std::setw(24) << name << std::right << std::fixed << std::setprecision(2) << std::setw(9)
            << median(times) << " ms, by hand " << median(ratios) << " [" << *std::ranges::min_element(ratios) << ", "
            << *std::ranges::max_element(ratios) << "] times as long; memory " << megabytes << " MB, by hand "
            << hand.megabytes() << " MB" << std::endl;
  file << "{\"work\": \"" << name << "\", \"median\": " << median(ratios)
       << ", \"least\": " << *std::ranges::min_element(ratios) << ", \"largest\": " << *std::ranges::max_element(ratios)
       << "}\n";
  attn::Workspace::current().release();
}

int compare_all(int argc, char** argv) {
  PairOptions options(argc, argv);
  std::cout << "OpenBLAS " << openblas_get_config() << '\n';
  for (const auto& [B, S, H, D] :
       {std::array<Index, 4>{1, 2048, 32, 128}, {1, 1024, 12, 64}, {8, 128, 8, 32}, {1, 4096, 4, 64}}) {
    compare(B, S, H, D, false, attn::NoMask{}, options.pairs, options.json);
    compare(B, S, H, D, true, attn::Causal{}, options.pairs, options.json);
  }
  return rejected ? 1 : 0;
}

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) try {
  return attn_bench::compare_all(argc, argv);
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
