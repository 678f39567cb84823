#pragma once
// The PyTorch cases of tests/data, for any test: what they hold and how they were made is in tests/data/README.md.
//
//     for (const attn_test::TorchCase& c : attn_test::torch_cases("module")) {
//         const auto heads = c.param<std::int64_t>("H");
//         const attn_test::TorchTensor x = c.tensor("x");             // generated here, from the case's seed
//         const attn_test::TorchTensor expected = c.tensor("output"); // PyTorch's float64 result, from the file
//         const double bar = 2 * c.torch_max_error("output");         // PyTorch's own float32 error
//     }
//
// ATTN_TEST_DATA_DIR is the folder, as a string literal. Whatever is missing or malformed is a std::runtime_error that names it.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>  // std::in_range
#include <vector>

namespace attn_test {

/// A dense row-major tensor. Generated values are exact in float32.
struct TorchTensor {
  std::vector<std::int64_t> dims;
  std::vector<double> values;
};

/// Element i of a generated stream: in [-1, 1), a multiple of 2^-23. The same function is in make_torch_cases.py.
inline double stream_value(std::uint64_t seed, std::uint64_t stream, std::uint64_t i) {
  std::uint64_t z = (((seed * 256 + stream) << 32) | i) + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<double>(z >> 40) * 0x1p-23 - 1.0;
}

namespace detail {

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error("[attn_test::torch_cases] " + what); }

inline std::vector<std::string> split(const std::string& text, std::string_view separator) {
  std::vector<std::string> parts;
  std::size_t begin = 0;
  for (std::size_t end; (end = text.find(separator, begin)) != std::string::npos; begin = end + separator.size())
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

template <typename T>
T parse(const std::string& text, const std::string& where) {
  if constexpr (std::is_same_v<T, std::string>) {
    return text;
  } else if constexpr (std::is_same_v<T, bool>) {
    if (text != "0" && text != "1") fail(where + ": expected 0 or 1, got '" + text + "'");
    return text == "1";
  } else if constexpr (std::is_arithmetic_v<T>) {
    char* end = nullptr;
    if constexpr (std::is_integral_v<T>) {
      const long long value = std::strtoll(text.c_str(), &end, 10);
      if (text.empty() || *end != '\0' || !std::in_range<T>(value))
        fail(where + ": expected an integer, got '" + text + "'");
      return static_cast<T>(value);
    } else {
      const double value = std::strtod(text.c_str(), &end);
      if (text.empty() || *end != '\0') fail(where + ": expected a number, got '" + text + "'");
      return static_cast<T>(value);
    }
  } else {  // std::vector<number>, comma separated
    T values;
    for (const std::string& part : split(text, ",")) values.push_back(parse<typename T::value_type>(part, where));
    return values;
  }
}

using Bytes = std::vector<unsigned char>;

template <typename Bits>
Bits little_endian(const unsigned char* at) {
  Bits bits = 0;
  for (std::size_t i = 0; i < sizeof(Bits); ++i) bits |= static_cast<Bits>(static_cast<Bits>(at[i]) << (8 * i));
  return bits;
}

}  // namespace detail

/// One line of the manifest.
class TorchCase {
 public:
  TorchCase(const std::string& line, std::shared_ptr<const detail::Bytes> binary) : binary_(std::move(binary)) {
    const std::vector<std::string> parts = detail::split(line, " | ");
    const std::vector<std::string> head = detail::split(parts[0], " ");
    if (head.size() < 2) detail::fail("manifest line without kind and name: '" + line + "'");
    kind_ = head[0];
    name_ = head[1];
    for (std::size_t i = 2; i < head.size(); ++i) {
      const std::size_t equals = head[i].find('=');
      if (equals == std::string::npos) detail::fail(label() + ": parameter without '=': '" + head[i] + "'");
      params_[head[i].substr(0, equals)] = head[i].substr(equals + 1);
    }
    for (std::size_t i = 1; i < parts.size(); ++i) {
      std::vector<std::string> words = detail::split(parts[i], " ");
      if (words.size() < 4) detail::fail(label() + ": malformed tensor '" + parts[i] + "'");
      tensors_[words[0]] = std::move(words);
    }
  }

  const std::string& kind() const { return kind_; }
  const std::string& name() const { return name_; }
  std::string label() const { return kind_ + "/" + name_; }

  bool has_param(const std::string& name) const { return params_.count(name) != 0; }

  /// T: std::string, bool, an integer, a floating-point type, or a std::vector of numbers (written as a,b,c).
  template <typename T = std::string>
  T param(const std::string& name) const {
    const auto found = params_.find(name);
    if (found == params_.end()) detail::fail(label() + " has no parameter '" + name + "'");
    return detail::parse<T>(found->second, label() + " parameter '" + name + "'");
  }

  bool has_tensor(const std::string& name) const { return tensors_.count(name) != 0; }

  /// A stored result or a generated input; which of the two makes no difference to the caller.
  TorchTensor tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) detail::fail(label() + " has no tensor '" + name + "'");
    const std::vector<std::string>& words = found->second;
    const std::string where = label() + " tensor '" + name + "'";
    const std::string& source = words[1];

    TorchTensor result;
    std::uint64_t count = 1;
    for (const std::string& dim : detail::split(words[2], "x")) {
      result.dims.push_back(detail::parse<std::int64_t>(dim, where));
      count *= static_cast<std::uint64_t>(result.dims.back());
    }
    const auto word = [&](std::size_t i) -> const std::string& {
      if (i >= words.size()) detail::fail(where + ": the manifest line is too short");
      return words[i];
    };
    if (source == "f64" || source == "f32") {
      result.values = stored(source == "f64" ? 8 : 4, detail::parse<std::uint64_t>(word(3), where), count, where);
    } else if (source == "stream") {
      const auto seed = param<std::uint64_t>("seed");
      const auto stream = detail::parse<std::uint64_t>(word(3), where);
      const auto scale = detail::parse<double>(word(4), where);
      result.values.reserve(count);
      for (std::uint64_t i = 0; i < count; ++i) result.values.push_back(stream_value(seed, stream, i) * scale);
    } else if (source == "rule") {
      const auto fill = detail::parse<double>(word(4), where);
      const auto scale = detail::parse<double>(word(5), where);
      result.values = by_rule(word(3), result.dims, count, fill, scale, where);
    } else if (source == "flags") {  // 1 where the rule drops: true = do not attend, as PyTorch reads a boolean mask
      result.values = by_rule(word(3), result.dims, count, 1.0, 0.0, where);
    } else {
      detail::fail(where + ": unknown source '" + source + "'");
    }
    return result;
  }

  /// PyTorch's float32 result against its float64 result, for one of the stored tensors: largest absolute, and root-mean-square.
  double torch_max_error(const std::string& tensor_name = "output") const {
    return param<double>("torch_max_error" + suffix(tensor_name));
  }
  double torch_rms_error(const std::string& tensor_name = "output") const {
    return param<double>("torch_rms_error" + suffix(tensor_name));
  }

  std::vector<std::string> tensor_names() const {
    std::vector<std::string> names;
    for (const auto& entry : tensors_) names.push_back(entry.first);
    return names;
  }

  friend std::ostream& operator<<(std::ostream& out, const TorchCase& c) { return out << c.label(); }

 private:
  static std::string suffix(const std::string& tensor_name) { return tensor_name == "output" ? "" : "_" + tensor_name; }

  std::vector<double> stored(std::uint64_t size, std::uint64_t offset, std::uint64_t count,
                             const std::string& where) const {
    if (offset > binary_->size() || count > (binary_->size() - offset) / size)
      detail::fail(where + " lies outside the binary file");
    std::vector<double> values;
    values.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) {
      const unsigned char* at = binary_->data() + offset + i * size;
      values.push_back(size == 8 ? std::bit_cast<double>(detail::little_endian<std::uint64_t>(at))
                                 : static_cast<double>(std::bit_cast<float>(detail::little_endian<std::uint32_t>(at))));
    }
    return values;
  }

  // The rules are those of rule_values in make_torch_cases.py: `fill` where dropped; elsewhere 0, or a random value.
  std::vector<double> by_rule(const std::string& rule, const std::vector<std::int64_t>& dims, std::uint64_t count,
                              double fill, double scale, const std::string& where) const {
    constexpr std::uint64_t mask_stream = 10, drop_stream = 11;
    const auto seed = param<std::uint64_t>("seed");
    const std::vector<std::int64_t> lengths =
        has_param("lengths") ? param<std::vector<std::int64_t>>("lengths") : std::vector<std::int64_t>{};
    const auto length = [&](std::int64_t batch) {
      if (static_cast<std::size_t>(batch) >= lengths.size())
        detail::fail(where + ": parameter 'lengths' is missing or too short");
      return lengths[static_cast<std::size_t>(batch)];
    };
    const bool random = rule == "random" || rule == "causal_random" || rule == "random_drop";
    if (dims.size() > 4) detail::fail(where + ": a rule has at most 4 dimensions");

    std::vector<double> values;
    values.reserve(count);
    std::array<std::int64_t, 4> at{};  // index in [b, h, s, t]; dims are aligned to the right
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::int64_t b = at[0], s = at[2], t = at[3];
      bool dropped = false;
      if (rule == "causal" || rule == "causal_random")
        dropped = t > s;
      else if (rule == "padding")
        dropped = t >= length(b);
      else if (rule == "key_padding")
        dropped = t >= length(s);  // dims [B, T]: the batch is the axis before the last
      else if (rule == "rows")
        dropped = s % 3 == 0;
      else if (rule == "all")
        dropped = true;
      else if (rule == "drop" || rule == "random_drop")
        dropped = stream_value(seed, drop_stream, i) < -0.5 && t != s;
      else if (rule != "random")
        detail::fail(where + ": unknown rule '" + rule + "'");
      values.push_back(dropped ? fill : random ? stream_value(seed, mask_stream, i) * scale : 0.0);

      for (std::size_t axis = dims.size(); axis-- > 0;) {
        std::int64_t& index = at[axis + 4 - dims.size()];
        if (++index < dims[axis]) break;
        index = 0;
      }
    }
    return values;
  }

  std::string kind_, name_;
  std::map<std::string, std::string> params_;
  std::map<std::string, std::vector<std::string>> tensors_;
  std::shared_ptr<const detail::Bytes> binary_;
};

/// Reads every case of a manifest, torch_cases or torch_gradients, in its order.
inline std::vector<TorchCase> load_torch_cases(const std::string& folder, const std::string& name = "torch_cases") {
  const std::string manifest_path = folder + "/" + name + ".txt";
  std::ifstream manifest(manifest_path);
  if (!manifest) detail::fail("cannot open " + manifest_path);

  std::shared_ptr<const detail::Bytes> binary;
  std::vector<TorchCase> cases;
  for (std::string line; std::getline(manifest, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    if (binary) {
      cases.emplace_back(line, binary);
      continue;
    }
    // First line: binary <file> bytes=<count> fnv1a64=<16 hexadecimal digits>; a manifest beside another binary is refused here.
    const std::vector<std::string> words = detail::split(line, " ");
    if (words.size() != 4 || words[0] != "binary")
      detail::fail(manifest_path + ": expected the line 'binary <file> bytes=.. fnv1a64=..', got '" + line + "'");
    const std::string binary_path = folder + "/" + words[1];
    std::ifstream file(binary_path, std::ios::binary);
    if (!file) detail::fail("cannot open " + binary_path);
    const detail::Bytes bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    std::uint64_t hash = 0xCBF29CE484222325u;
    for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001B3u;
    std::ostringstream found;
    found << "bytes=" << bytes.size() << " fnv1a64=" << std::hex;
    found.width(16);
    found.fill('0');
    found << hash;
    if (found.str() != words[2] + " " + words[3])
      detail::fail(binary_path + ": expected " + words[2] + " " + words[3] + ", got " + found.str());
    binary = std::make_shared<const detail::Bytes>(bytes);
  }
  if (cases.empty()) detail::fail(manifest_path + " holds no case");
  return cases;
}

#ifdef ATTN_TEST_DATA_DIR
/// The cases of one kind: module, core, mha, linear, softmax, rotary; attention_gradient, module_gradient.
inline std::vector<TorchCase> torch_cases(std::string_view kind) {
  const bool of_gradients = kind.ends_with("_gradient");
  const std::vector<TorchCase> all =
      load_torch_cases(ATTN_TEST_DATA_DIR, of_gradients ? "torch_gradients" : "torch_cases");
  std::vector<TorchCase> chosen;
  std::copy_if(all.begin(), all.end(), std::back_inserter(chosen),
               [&](const TorchCase& c) { return c.kind() == kind; });
  if (chosen.empty()) detail::fail("there is no case of kind '" + std::string(kind) + "'");
  return chosen;
}
#endif

}  // namespace attn_test
