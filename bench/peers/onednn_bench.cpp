// attn::Linear against oneDNN's matmul with prepacked weights, in one process, taking turns: in float, in bfloat16, and in int8,
// where oneDNN has one scale for all, and none of the work of rounding inputs. On CPUs with AMX its int8 uses that, unless
// DNNL_MAX_CPU_ISA=AVX512_CORE_VNNI.
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

/// An operand of oneDNN's: numbers and their type.
struct Operand {
  void* data;
  dnnl::memory::data_type type = dnnl::memory::data_type::f32;
};

/// oneDNN's product y [M,N] = x [M,K] wT + bias. The weight is reordered once into the layout that oneDNN asks for.
class Matmul {
 public:
  Matmul(Index M, Index N, Index K, const Operand& weight, Tensor<float, 1>& bias, const Operand& x, const Operand& y) {
    using Tag = dnnl::memory::format_tag;
    const auto tensor = [](Index rows, Index columns, Tag tag, dnnl::memory::data_type type = Operand{}.type) {
      return dnnl::memory::desc({rows, columns}, type, tag);
    };
    const dnnl::matmul::desc matmul(tensor(M, K, Tag::ab, x.type), tensor(K, N, Tag::any, weight.type),
                                    tensor(1, N, Tag::ab), tensor(M, N, Tag::ab, y.type));
    const dnnl::matmul::primitive_desc chosen(matmul, engine_);
    dnnl::memory plain(tensor(K, N, Tag::ba, weight.type), engine_, weight.data);
    dnnl::memory packed(chosen.weights_desc(), engine_);
    dnnl::reorder(plain, packed).execute(stream_, plain, packed);
    stream_.wait();
    matmul_ = dnnl::matmul(chosen);
    arguments_ = {{DNNL_ARG_SRC, dnnl::memory(chosen.src_desc(), engine_, x.data)},
                  {DNNL_ARG_WEIGHTS, packed},
                  {DNNL_ARG_BIAS, dnnl::memory(chosen.bias_desc(), engine_, bias.data())},
                  {DNNL_ARG_DST, dnnl::memory(chosen.dst_desc(), engine_, y.data)}};
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
template <class RunAttn, class RunRival>
void time_pairs(std::ostream& json, const std::string& work, Index M, Index N, Index K, int pairs,
                const RunAttn& run_attn, const RunRival& run_rival) {
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
  std::cout << std::fixed << std::setprecision(3) << work << ' ' << M << "x" << N << "x" << K << "  attn "
            << median(ours) << " ms (" << rate * 1e-9 << " GFLOP/s, " << median(shares) << " of peak)  oneDNN "
            << median(theirs) << " ms  attn is " << median(ratios) << " times as fast [" << *low << ", " << *high << "]"
            << std::endl;

  const auto list = [&](const char* name, const std::vector<double>& values) {
    json << ", \"" << name << "\": [";
    for (std::size_t i = 0; i < values.size(); ++i) json << (i > 0 ? ", " : "") << values[i];
    json << "]";
  };
  json << "    {\"work\": \"" << work << "\", \"shape\": [" << M << ", " << N << ", " << K
       << "], \"rival\": \"oneDNN\", \"operations\": " << operations << ", \"pairs\": " << pairs
       << ", \"share_of_peak\": " << median(shares);
  list("attn_ms", ours);
  list("rival_ms", theirs);
  json << ", \"ratio\": " << median(ratios) << ", \"ratio_min\": " << *low << ", \"ratio_max\": " << *high << "}";
}

void compare_in_float(std::ostream& json, Index M, Index N, Index K, int pairs) {
  attn::Linear<float> linear(K, N);
  Tensor<float, 2> weight = linear.weight(), x = random<2>({M, K}, 1), y(M, N), y_rival(M, N);
  Tensor<float, 1> bias = linear.bias();
  Matmul rival(M, N, K, {weight.data()}, bias, {x.data()}, {y_rival.data()});
  linear.forward_into(y, x);
  rival.run();
  if (!check_linear(linear, x.data(), M, y.data())) throw std::runtime_error("attn's result is wrong");
  if (!check_linear(linear, x.data(), M, y_rival.data())) throw std::runtime_error("oneDNN's result is wrong");
  time_pairs(
      json, "linear", M, N, K, pairs, [&] { linear.forward_into(y, x); }, [&] { rival.run(); });
}

void compare_in_bfloat16(std::ostream& json, Index M, Index N, Index K, int pairs) {
  using T = Eigen::bfloat16;
  const attn::Linear<float> in_float(K, N);
  Tensor<T, 2> weight = in_float.weight().cast<T>(), x = random<2>({M, K}, 1).cast<T>(), y(M, N), y_rival(M, N);
  const Tensor<T, 1> low_bias = in_float.bias().cast<T>();
  Tensor<float, 1> bias = low_bias.cast<float>();
  const attn::Linear<T> linear(weight, low_bias);
  const auto type = dnnl::memory::data_type::bf16;
  Matmul rival(M, N, K, {weight.data(), type}, bias, {x.data(), type}, {y_rival.data(), type});
  linear.forward_into(y, x);
  rival.run();
  for (Index i = 0; i < M * N; ++i) {
    const auto ours = static_cast<float>(y.data()[i]), theirs = static_cast<float>(y_rival.data()[i]);
    if (!(std::abs(ours - theirs) <= 0.02F * (1 + std::abs(ours))))
      throw std::runtime_error("attn's and oneDNN's results differ in bfloat16");
  }
  time_pairs(
      json, "linear bfloat16", M, N, K, pairs, [&] { linear.forward_into(y, x); }, [&] { rival.run(); });
}

/// Weights are whole numbers, which both hold exactly, and inputs from 0 to 127 / 64, which both round alike: each group of 32
/// has a 127.
void compare_in_int8(std::ostream& json, Index M, Index N, Index K, int pairs) {
  Tensor<float, 2> weight = random<2>({N, K}, 1), x = random<2>({M, K}, 2), y(M, N), y_rival(M, N);
  std::vector<std::int8_t> weight_numbers(static_cast<std::size_t>(N * K));
  std::vector<std::uint8_t> x_numbers(static_cast<std::size_t>(M * K));
  for (Index i = 0; i < N * K; ++i) {
    const float number = i % 32 == 0 ? 127.F : std::round(127.F * weight.data()[i]);
    weight_numbers[static_cast<std::size_t>(i)] = static_cast<std::int8_t>(number);
    weight.data()[i] = number / 128;
  }
  for (Index i = 0; i < M * K; ++i) {
    const float number = i % 32 == 0 ? 127.F : std::round(std::abs(127.F * x.data()[i]));
    x_numbers[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(number);
    x.data()[i] = number / 128;
  }
  Tensor<float, 1> bias(N);
  bias.setZero();
  attn::Linear<float> linear(weight, bias);
  linear.store_weights(attn::WeightFormat::int8);
  using Type = dnnl::memory::data_type;
  Matmul rival(M, N, K, {weight_numbers.data(), Type::s8}, bias, {x_numbers.data(), Type::u8}, {y_rival.data()});
  linear.forward_into(y, x);
  rival.run();
  for (Index i = 0; i < M * N; ++i)
    if (!(std::abs(y.data()[i] - y_rival.data()[i] * 0x1p-14F) <= 1e-3F * (1 + std::abs(y.data()[i]))))
      throw std::runtime_error("attn's and oneDNN's results differ in int8");
  time_pairs(
      json, "linear int8", M, N, K, pairs, [&] { linear.forward_into(y, x); }, [&] { rival.run(); });
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
  compare_in_float(json, 512, 4096, 4096, pairs);
  json << ",\n";
  compare_in_float(json, 2048, 1024, 1024, pairs);
  json << ",\n";
  compare_in_float(json, 1024, 768, 768, pairs);
  json << ",\n";
  compare_in_bfloat16(json, 512, 4096, 4096, pairs);
  json << ",\n";
  compare_in_int8(json, 512, 4096, 4096, pairs);
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
