// Edge. A file in memory, read as it is needed.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "../error.hpp"

#if defined(__unix__) || defined(__APPLE__)
#define ATTN_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#define ATTN_HAS_MMAP 0
#endif

namespace attn {

/// The bytes of a file, mapped where the system can (POSIX), else read. Moves, and does not copy.
///
/// Conventions: the file must not become shorter while it is mapped: the system ends a program that reads past the end.
/// `check_unchanged` finds one that has become so.
/// Errors: a file that does not exist, is not a regular file, or cannot be read.
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code error;
    const std::string name = path_.string();
    detail::require(std::filesystem::is_regular_file(path_, error), "MappedFile",
                    "file, expected one that exists, got ", std::string_view(name));
    open(name);
  }
  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})), copy_(std::move(other.copy_)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_), std::swap(bytes_, other.bytes_), std::swap(copy_, other.copy_);
    return *this;
  }
  ~MappedFile() {
#if ATTN_HAS_MMAP
    if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
#endif
  }

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Throws if the file has become shorter than it was when it was mapped.
  void check_unchanged([[maybe_unused]] std::string_view function) const {
#if ATTN_HAS_MMAP
    std::error_code error;
    const auto size = std::filesystem::file_size(path_, error);
    const std::string name = path_.string();
    detail::require(!error && size >= bytes_.size(), function, "file, expected one as long as when it was opened, ",
                    static_cast<Index>(bytes_.size()), " bytes, got ", error ? Index{0} : static_cast<Index>(size),
                    " in ", std::string_view(name));
#endif
  }

 private:
#if ATTN_HAS_MMAP
  void open(const std::string& name) {
    const int file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    detail::require(file >= 0, "MappedFile", "file, expected one that can be read, got ", std::string_view(name));
    struct stat status {};
    void* data = nullptr;
    const bool known = ::fstat(file, &status) == 0;
    const auto size = static_cast<std::size_t>(known ? status.st_size : 0);
    if (size > 0) data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
    ::close(file);
    detail::require(known && data != MAP_FAILED, "MappedFile", "file, expected one that can be mapped, got ",
                    std::string_view(name));
    bytes_ = {static_cast<const std::byte*>(data), size};
  }
#else
  void open(const std::string& name) {
    std::ifstream file(path_, std::ios::binary | std::ios::ate);
    copy_.resize(file ? static_cast<std::size_t>(file.tellg()) : 0);
    file.seekg(0);
    file.read(reinterpret_cast<char*>(copy_.data()), static_cast<std::streamsize>(copy_.size()));
    detail::require(static_cast<bool>(file), "MappedFile", "file, expected one that can be read, got ",
                    std::string_view(name));
    bytes_ = copy_;
  }
#endif

  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
  std::vector<std::byte> copy_;  // where files cannot be mapped
};

}  // namespace attn

#undef ATTN_HAS_MMAP
