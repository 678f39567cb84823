// attn::Softmax over scores [B,H,S,S]. It reads and writes each number once; the largest ones come from memory.
#include "support.hpp"

namespace attn_bench {
namespace {

bool check_softmax(const Tensor<float, 4>& x, const Tensor<float, 4>& y) {
  const Index columns = x.dimension(3), rows = x.size() / columns;
  for (Index i = 0; i < 50; ++i) {
    const Index first = (i < 2 ? i * (rows - 1) : i * 7919 % rows) * columns;
    double sum = 0.0;
    for (Index j = 0; j < columns; ++j) sum += std::exp(double{x.data()[first + j]});
    for (Index j = 0; j < columns; ++j) {
      const double expected = std::exp(double{x.data()[first + j]}) / sum;
      if (!(std::abs(expected - double{y.data()[first + j]}) <= 1e-6 * expected)) return false;
    }
  }
  return true;
}

void softmax(benchmark::State& state) {
  const Index B = state.range(0), S = state.range(1), H = state.range(3);
  const attn::Softmax<float> softmax;
  const auto x = random<4>({B, H, S, S}, 1);
  auto y = softmax.forward(x);
  if (!check_softmax(x, y)) return reject(state);
  time_runs(state, {.bytes = 8.0 * static_cast<double>(x.size())}, [&] { softmax.forward_into(y, x); });
}
BENCHMARK(softmax)->Apply(module_shapes);

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) { return attn_bench::run(argc, argv); }
