// Edge, outside the umbrella. The safetensors files of a Hugging Face folder as one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json_object.hpp"
#include "safetensors.hpp"

namespace attn::detail {
inline namespace ATTN_EIGEN_ABI {

/// model.safetensors, or else the files that model.safetensors.index.json names.
///
/// Errors: neither of them; an index that names a file outside the folder, a tensor that its file lacks, or that does not
/// name one that it has.
class HuggingFaceFiles {
 public:
  explicit HuggingFaceFiles(const std::filesystem::path& folder) {
    const std::filesystem::path single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
    if (std::filesystem::exists(single)) {
      open(single);
      for (std::string& name : files_.front().names()) place_.emplace(std::move(name), 0);
      return;
    }
    const std::string where = folder.string();
    require(std::filesystem::exists(index), fn, std::string_view(where),
            ", expected model.safetensors or model.safetensors.index.json, got neither");
    open_all(folder, index);
  }

  [[nodiscard]] std::vector<std::string> names() const { return names_from({}); }
  /// All names that begin with a prefix, sorted.
  [[nodiscard]] std::vector<std::string> names_from(std::string_view prefix) const {
    std::vector<std::string> all;
    for (auto at = place_.lower_bound(prefix); at != place_.end() && at->first.starts_with(prefix); ++at)
      all.push_back(at->first);
    return all;
  }
  [[nodiscard]] bool contains(std::string_view name) const { return place_.find(name) != place_.end(); }
  /// The file that holds a tensor. Errors: a name that is not there.
  [[nodiscard]] const SafetensorsFile& at(std::string_view name) const {
    const auto found = place_.find(name);
    require(found != place_.end(), fn, "tensor ", name, ", expected in the folder, got none of this name");
    return files_[found->second];
  }

 private:
  static constexpr std::string_view fn = "HuggingFaceFolder";
  static constexpr std::uintmax_t most_index_bytes = std::uintmax_t{1} << 27;  // 30 times the largest we know

  void open(const std::filesystem::path& path) { files_.emplace_back(path); }

  void open_all(const std::filesystem::path& folder, const std::filesystem::path& index) {
    const std::string where = index.string() + ": ";
    const nlohmann::json json = parse_object(fn, index.string(), read_text(fn, index, most_index_bytes));
    JsonObject top(fn, where, json);
    const auto* const map = top.take("weight_map");
    if (map == nullptr || !map->is_object()) top.refuse("weight_map", "an object");
    std::map<std::string, std::size_t> opened;
    for (const auto& [name, value] : map->items()) {
      const std::string file = value.is_string() ? value.get<std::string>() : std::string();
      const bool plain = file.find_first_of("/\\:") == std::string::npos && file.ends_with(".safetensors");
      require(plain, fn, std::string_view(where), std::string_view(name),
              ", expected the name of a .safetensors file in the folder, got ", std::string_view(file));
      const auto [at, is_new] = opened.emplace(file, files_.size());
      if (is_new) open(folder / file);
      require(files_[at->second].contains(name), fn, std::string_view(where), std::string_view(name), ", expected in ",
              std::string_view(file), ", got none of this name there");
      place_.emplace(name, at->second);
    }
    for (const auto& [file, place] : opened)
      for (const std::string& name : files_[place].names()) {
        const auto found = place_.find(name);
        require(found != place_.end() && found->second == place, fn, std::string_view(where), "weight_map, expected ",
                std::string_view(name), " in ", std::string_view(file), ", got no such entry");
      }
  }

  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t, std::less<>> place_;  // of each tensor in files_
};

}  // namespace ATTN_EIGEN_ABI
}  // namespace attn::detail
