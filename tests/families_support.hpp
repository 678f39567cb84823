#pragma once
// What the tests of model families share: tests/data/families, which make_model_families.py wrote.

#include "module_support.hpp"

#include <array>
#include <attn/io/hugging_face.hpp>
#include <filesystem>
#include <string>

namespace attn_test {

inline constexpr std::array<const char*, 11> families{"llama", "mistral", "qwen2",   "qwen3",   "gemma2", "gemma3",
                                                      "phi3",  "gpt_oss", "smollm3", "granite", "olmo2"};

[[nodiscard]] inline std::filesystem::path family_folder(const std::string& family) {
  return std::filesystem::path(ATTN_TEST_DATA_DIR) / "families" / family;
}

/// What PyTorch computes with a layer.
struct FamilyLayer {
  std::string name;        ///< of the family, and the layer's number
  Index layer;             ///< in its folder
  Tensor<float, 3> x;      ///< [1,S,E]
  Tensor<double, 3> y;     ///< [1,S,E], in float64
  double float32_error;    ///< the largest of PyTorch's float32 result
  double reordered_error;  ///< the worst of nine orders of the same sums
  double reordered_rms;    ///< the largest of their root mean squares
};

/// Results of a layer. part: "layers" of all tokens, "prefix" of the first ones alone.
[[nodiscard]] inline FamilyLayer family_layer(const std::string& family, Index layer,
                                              const std::string& part = "layers") {
  const attn::SafetensorsFile file(family_folder(family) / "case.safetensors");
  const std::string at = part + "." + std::to_string(layer) + ".";
  const auto number = [&](const char* name) {
    double x = 0.0;
    std::memcpy(&x, file.tensor(at + name).bytes.data(), sizeof x);
    return x;
  };
  FamilyLayer result{family + " " + at + "y",
                     layer,
                     file.read<float, 3>("x"),
                     file.read<double, 3>(at + "y"),
                     number("float32_error"),
                     number("reordered_float32_error"),
                     number("reordered_float32_rms_error")};
  result.x = rows_of(result.x, 0, result.y.dimension(1));
  return result;
}

/// Calls f(folder, what PyTorch computes) for all layers of all families.
template <class F>
void for_each_family_layer(const F& f) {
  for (const char* family : families) {
    const attn::HuggingFaceFolder folder(family_folder(family));
    for (Index layer = 0; layer < folder.layers(); ++layer) {
      const FamilyLayer expected = family_layer(family, layer);
      SCOPED_TRACE(expected.name);
      f(folder, expected);
    }
  }
}

}  // namespace attn_test
