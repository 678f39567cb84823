// Weights from files: blocks of Q8_0 and Q4_0, and numbers of 16 bits, into a linear layer, against copying as many bytes.
#include <cstring>
#include <span>

#include "support.hpp"

namespace attn_bench {
namespace {

using attn::WeightFormat;

/// Rows of a file: numbers that any format takes.
attn::AlignedVector<std::byte> rows_of(WeightFormat format, Index out, Index in) {
  attn::AlignedVector<std::byte> rows(static_cast<std::size_t>(out * attn::StoredWeight::row_bytes(format, in)));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::byte>(i * 37 % 101 % 60);
  return rows;
}

/// Whether a layer holds what a row loaded alone does, in its first, middle and last outputs.
bool check_rows(const attn::Linear<float>& linear, WeightFormat format, const attn::AlignedVector<std::byte>& rows) {
  if (format != WeightFormat::int8 && format != WeightFormat::int4) return true;
  const Index in = linear.in_features(), row = attn::StoredWeight::row_bytes(format, in);
  Tensor<float, 1> got(in), expected(in);
  for (const Index o : {Index{0}, linear.out_features() / 2, linear.out_features() - 1}) {
    const auto one = attn::StoredWeight::of_rows(format, 1, in, rows.data() + o * row);
    one.get_row(0, expected.data());
    linear.weight_row(o, got);
    for (Index i = 0; i < in; ++i)
      if (!(got(i) == expected(i))) return false;
  }
  return true;
}

/// The counter says how much longer than loading it takes to copy the bytes into memory that is as new, on one thread.
void loading(benchmark::State& state) {
  const auto format = static_cast<WeightFormat>(state.range(0));
  const Index out = state.range(1), in = state.range(2);
  state.SetLabel(std::string(weight_format_name(format)));
  attn::Linear<float> linear(in, out, false, 1);
  const auto rows = rows_of(format, out, in);
  const auto load = [&] { linear.set_stored_weight(format, rows); };
  load();
  if (!check_rows(linear, format, rows)) return reject(state);
  const auto copy = [&] {
    attn::AlignedVector<std::byte> to;
    to.resize(rows.size());
    std::memcpy(to.data(), rows.data(), rows.size());
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
  };
  for (auto _ : state) load();
  state.SetBytesProcessed(state.iterations() * std::ssize(rows));
  const auto time_of = [](const auto& run) {
    constexpr int runs = 5;
    return seconds([&] {
             for (int i = 0; i < runs; ++i) run();
           }) /
           runs;
  };
  compare_in_pairs(
      state, "copy/load", [&] { return time_of(copy); }, [&] { return time_of(load); });
}
BENCHMARK(loading)
    ->ArgNames({"format", "out", "in"})
    ->ArgsProduct({{3, 4, 2, 1}, {4096}, {4096, 11008}})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace attn_bench

int main(int argc, char** argv) { return attn_bench::run(argc, argv); }
