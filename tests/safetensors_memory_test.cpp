// Headers of 100 MB, made to take as much memory as possible: reading them takes at most 100 MB more.
#include <attn/io/safetensors_header.hpp>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>

#include "file_support.hpp"
#include "safetensors_support.hpp"

namespace {

std::size_t used = 0, most = 0;
constexpr std::size_t in_front = alignof(std::max_align_t);  // bytes before each allocation, which hold its size

}  // namespace

void* operator new(std::size_t bytes) {
  auto* const memory = static_cast<std::byte*>(std::malloc(bytes + in_front));
  if (memory == nullptr) throw std::bad_alloc();
  ::new (static_cast<void*>(memory)) std::size_t(bytes);
  used += bytes;
  most = std::max(most, used);
  return memory + in_front;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  if (memory == nullptr) return;
  std::byte* const all = static_cast<std::byte*>(memory) - in_front;
  used -= *static_cast<const std::size_t*>(static_cast<const void*>(all));
  std::free(all);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }

namespace {

using attn_test::as_bytes;
using attn_test::file_of;

constexpr std::size_t header_bytes = 100'000'000;

/// Repeats what `make` says of 0, 1, 2 ... up to 100 MB, between a beginning and an end.
std::string repeated(std::string begin, const std::function<std::string(int)>& make, const std::string& end) {
  begin.reserve(header_bytes);
  for (int i = 0;; ++i) {
    const std::string part = make(i);
    if (begin.size() + part.size() + end.size() > header_bytes) break;
    begin += part;
  }
  return begin + end;
}
/// Expects that a header is read, or refused, in at most 100 MB.
void expect_little_memory(const std::string& header) {
  const std::string bytes = file_of(header);
  std::string text;
  const std::size_t at_first = most = used;
  try {
    (void)attn::detail::read_safetensors_header("file", as_bytes(bytes));
  } catch (const attn::Error& error) {
    text = error.what();
  }
  EXPECT_LE((most - at_first) / 1'000'000, 100U) << text;
  EXPECT_LT(text.size(), 1000U);
}

TEST(SafetensorsMemory, ManyTensors) {
  const std::string rest = R"(":{"dtype":"F32","shape":[0],"data_offsets":[0,0]})";
  expect_little_memory(repeated(R"({"a)" + rest, [&](int i) { return ",\"" + std::to_string(i) + rest; }, "}"));
}

TEST(SafetensorsMemory, ManyAxes) {
  std::string shape = "0";
  for (int i = 0; i < 63; ++i) shape += ",0";
  const std::string rest = R"(":{"dtype":"F32","shape":[)" + shape + R"(],"data_offsets":[0,0]})";
  expect_little_memory(repeated(R"({"a)" + rest, [&](int i) { return ",\"" + std::to_string(i) + rest; }, "}"));
}

TEST(SafetensorsMemory, MuchMetadata) {
  expect_little_memory(
      repeated(R"({"__metadata__":{"a":"")", [](int i) { return ",\"" + std::to_string(i) + "\":\"\""; }, "}}"));
}

TEST(SafetensorsMemory, LongTexts) {
  const std::string nearly(7'900'000, 'x');
  expect_little_memory(repeated(R"({"__metadata__":{"a":"")",
                                [&](int i) { return ",\"" + std::to_string(i) + nearly + "\":\"" + nearly + "\""; },
                                "}}"));
  expect_little_memory("{\"" + std::string(header_bytes - 10, 'x') + "\":1}");
  expect_little_memory("{\"" + nearly + "\n\":1}");
  expect_little_memory("{\"" + nearly + "\xFF\":1}");
}

TEST(SafetensorsMemory, LongRunsOfSpacesAndDigits) {
  for (const char c : {' ', '\n', '1', 'e'}) {
    expect_little_memory("{\"a\":" + std::string(header_bytes - 10, c) + "}");
    expect_little_memory("{" + std::string(header_bytes - 10, c) + "x}");
  }
  expect_little_memory("{}" + std::string(header_bytes - 2, ' '));
  expect_little_memory("{}" + std::string(header_bytes - 2, '\n'));
}

TEST(SafetensorsMemory, ManyEscapes) {
  expect_little_memory(repeated(
      "{\"", [](int) { return "\\u0001"; }, "\":1}"));
  expect_little_memory("{\"" + std::string(header_bytes - 10, '\\') + "\":1}");
}

TEST(SafetensorsMemory, DeepNesting) {
  expect_little_memory("{\"a\":" + std::string(header_bytes - 10, '['));
  expect_little_memory(repeated(
      "", [](int) { return "{\"a\":"; }, "1"));
}

TEST(SafetensorsMemory, AHundredThousandTensorsAreRead) {
  const std::string rest = R"(.mlp.experts.gate_up_proj":{"dtype":"F32","shape":[0,8],"data_offsets":[0,0]})";
  std::string header = R"({"model)" + rest;
  for (int i = 0; i < 100'000; ++i) header += ",\"model.layers." + std::to_string(i) + rest;
  const std::string bytes = file_of(header + "}");
  EXPECT_EQ(attn::detail::read_safetensors_header("file", as_bytes(bytes)).tensors.size(), 100'001U);
}

}  // namespace
