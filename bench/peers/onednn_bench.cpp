// attn::Linear against oneDNN's matmul with prepacked weights and bias, in one process, taking turns.
//
//   onednn_bench [--pairs N] [--json FILE]
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <dnnl.hpp>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "../support.hpp"

namespace attn_bench {
namespace {

/// oneDNN's product y [M,N] = x [M,K] wT + bias. The weight is reordered once into the layout that oneDNN asks for.
class Matmul {
 public:
  Matmul(Index M, Index N, Index K, Tensor<float, 2>& weight, Tensor<float, 1>& bias, Tensor<float, 2>& x,
         Tensor<float, 2>& y) {
    using Tag = dnnl::memory::format_tag;
    const auto tensor = [](Index rows, Index columns, Tag tag) {
      return dnnl::memory::desc({rows, columns}, dnnl::memory::data_type::f32, tag);
    };
    const dnnl::matmul::desc matmul(tensor(M, K, Tag::ab), tensor(K, N, Tag::any), tensor(1, N, Tag::ab),
                                    tensor(M, N, Tag::ab));
    const dnnl::matmul::primitive_desc chosen(matmul, engine_);
    dnnl::memory plain(tensor(K, N, Tag::ba), engine_, weight.data());
    dnnl::memory packed(chosen.weights_desc(), engine_);
    dnnl::reorder(plain, packed).execute(stream_, plain, packed);
    stream_.wait();
    matmul_ = dnnl::matmul(chosen);
    arguments_ = {{DNNL_ARG_SRC, dnnl::memory(chosen.src_desc(), engine_, x.data())},
                  {DNNL_ARG_WEIGHTS, packed},
                  {DNNL_ARG_BIAS, dnnl::memory(chosen.bias_desc(), engine_, bias.data())},
                  {DNNL_ARG_DST, dnnl::memory(chosen.dst_desc(), engine_, y.data())}};
  }
  void run() {
    matmul_.execute(stream_, arguments_);
    stream_.wait();
  }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::matmul matmul_;
  std::unordered_map<int, dnnl::memory> arguments_;
};

/// Milliseconds of one run, the mean of `times`, after one that is not counted. What the rival's threads still do once
/// its work is done, waiting for more, is over by then.
template <class Run>
double milliseconds(int times, const Run& run) {
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  run();
  return seconds([&] {
           for (int i = 0; i < times; ++i) run();
         }) *
         1e3 / times;
}

/// Times one shape and writes its entry of the JSON file.
void compare(std::ostream& json, Index M, Index N, Index K, int pairs) {
  attn::Linear<float> linear(K, N);
  Tensor<float, 2> weight = linear.weight(), x = random<2>({M, K}, 1), y(M, N), y_rival(M, N);
  Tensor<float, 1> bias = linear.bias();
  Matmul rival(M, N, K, weight, bias, x, y_rival);
  const auto run_attn = [&] { linear.forward_into(y, x); };
  const auto run_rival = [&] { rival.run(); };
  run_attn();
  run_rival();
  if (!check_linear(linear, x.data(), M, y.data())) throw std::runtime_error("attn's result is wrong");
  if (!check_linear(linear, x.data(), M, y_rival.data())) throw std::runtime_error("oneDNN's result is wrong");

  const int times = static_cast<int>(std::clamp(100.0 / milliseconds(1, run_attn), 1.0, 200.0));
  const double operations = 2.0 * static_cast<double>(M * N * K);
  std::vector<double> ours, theirs, ratios, shares;
  for (int pair = 0; pair < pairs; ++pair) {
    ours.push_back(milliseconds(times, run_attn));
    shares.push_back(operations / (ours.back() * 1e-3) / peak_burst());  // right after the work: the host is shared
    theirs.push_back(milliseconds(times, run_rival));
    ratios.push_back(theirs.back() / ours.back());
  }
  const auto [low, high] = std::minmax_element(ratios.begin(), ratios.end());
  const double rate = operations / (median(ours) * 1e-3);
  std::cout << std::fixed << std::setprecision(3) << "linear " << M << "x" << N << "x" << K << "  attn " << median(ours)
            << " ms (" << rate * 1e-9 << " GFLOP/s, " << median(shares) << " of peak)  oneDNN " << median(theirs)
            << " ms  attn is " << median(ratios) << " times as fast [" << *low << ", " << *high << "]" << std::endl;

  const auto list = [&](const char* name, const std::vector<double>& values) {
    json << ", \"" << name << "\": [";
    for (std::size_t i = 0; i < values.size(); ++i) json << (i > 0 ? ", " : "") << values[i];
    json << "]";
  };
  json << "    {\"work\": \"linear\", \"shape\": [" << M << ", " << N << ", " << K
       << "], \"rival\": \"oneDNN\", \"operations\": " << operations << ", \"pairs\": " << pairs
       << ", \"share_of_peak\": " << median(shares);
  list("attn_ms", ours);
  list("rival_ms", theirs);
  json << ", \"ratio\": " << median(ratios) << ", \"ratio_min\": " << *low << ", \"ratio_max\": " << *high << "}";
}

int run_all(int argc, char** argv) {
  PairOptions options(argc, argv);
  auto& [pairs, json] = options;
  const int threads = attn::current_executor().concurrency();
  omp_set_num_threads(threads);
  const dnnl_version_t* const version = dnnl_version();
  std::cout << "isa " << attn::isa_name(attn::active_isa()) << ", threads " << threads << ", peak "
            << std::lround(best_of(10, peak_burst) * 1e-9) << " GFLOP/s, oneDNN " << version->major << '.'
            << version->minor << '.' << version->patch << std::endl;
  json << "{\n  \"machine\": {\"isa\": \"" << attn::isa_name(attn::active_isa()) << "\", \"threads\": " << threads
       << ", \"peak_gflops\": " << best_of(10, peak_burst) * 1e-9 << "},\n  \"results\": [\n";
  compare(json, 512, 4096, 4096, pairs);
  json << ",\n";
  compare(json, 2048, 1024, 1024, pairs);
  json << ",\n";
  compare(json, 1024, 768, 768, pairs);
  json << "\n  ]\n}\n";
  return 0;
}

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) {
  try {
    return attn_bench::run_all(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
