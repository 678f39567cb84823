// Edge, outside the umbrella. A file mapped into memory, read-only. No Eigen.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "../error.hpp"

#if __has_include(<sys/mman.h>) && __has_include(<sys/stat.h>)
#include <sys/mman.h>
#include <sys/stat.h>
#define ATTN_CAN_MAP_FILES 1
#else
#include <vector>
#define ATTN_CAN_MAP_FILES 0
#endif

namespace attn {

/// A file's bytes, read-only: mapped, so that only what is touched is read from disk; where the system has no mmap, read
/// as a whole. Can be moved, and spans of its bytes stay valid; cannot be copied.
/// A mapped file must not be truncated while it is used: the system then ends the program where the missing part is read.
/// `check_unchanged` finds a file that has become shorter before.
/// Errors: a file that is missing, not a regular one, empty, or not readable.
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path) : path_(std::move(path)) {
    constexpr std::string_view function = "MappedFile";
    std::error_code error;
    const std::filesystem::file_status status = std::filesystem::status(path_, error);
    require(std::filesystem::exists(status), function, "a file that exists", error.message());
    require(!std::filesystem::is_directory(status), function, "a file", "a directory");
    require(std::filesystem::is_regular_file(status), function, "a regular file", "a device, a pipe or the like");
    errno = 0;
    file_.reset(std::fopen(path_.string().c_str(), open_mode));
    require(file_ != nullptr, function, "a file that can be opened", std::generic_category().message(errno));
    const std::uintmax_t size = std::filesystem::file_size(path_, error);
    require(!error, function, "a file with a size", error.message());
    require(size > 0, function, "a file with bytes in it", "an empty file");
    require(size <= static_cast<std::uintmax_t>(std::numeric_limits<Index>::max()), function,
            "a file that fits into the address space", std::to_string(size) + " bytes");
    map(static_cast<std::size_t>(size));
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  /// Throws where the file has become shorter than it was when it was mapped, and does nothing else. `function` stands in
  /// the message. Call it before bytes are read or handed out.
  void check_unchanged(std::string_view function) const;

  /// The whole file. Valid as long as this object, or one that it was moved to, lives.
  [[nodiscard]] std::span<const std::byte> bytes() const;

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void require(bool ok, std::string_view function, std::string_view expected, std::string_view got) const {
    if (!ok) detail::fail(function, "file ", std::string_view(path_.string()), ", expected ", expected, ", got ", got);
  }
  void map(std::size_t size);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;  // kept open, since another file may take the path
#if ATTN_CAN_MAP_FILES
  struct Unmap {
    std::size_t size;
    void operator()(std::byte* memory) const { ::munmap(memory, size); }
  };
  static constexpr const char* open_mode = "rbe";  // e: programs that this one starts do not inherit it
  std::unique_ptr<std::byte, Unmap> memory_{nullptr, Unmap{0}};
#else
  static constexpr const char* open_mode = "rb";
  std::vector<std::byte> memory_;
#endif
};

#if ATTN_CAN_MAP_FILES

inline void MappedFile::map(std::size_t size) {
  struct stat now = {};
  const bool whole = ::fstat(::fileno(file_.get()), &now) == 0 && static_cast<std::uintmax_t>(now.st_size) >= size;
  require(whole, "MappedFile", "a file that nobody changes", "one that became shorter while it was opened");
  void* const memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, ::fileno(file_.get()), 0);
  require(memory != MAP_FAILED, "MappedFile", "a file that can be mapped", std::generic_category().message(errno));
  memory_ = {static_cast<std::byte*>(memory), Unmap{size}};
}

inline std::span<const std::byte> MappedFile::bytes() const {
  return {memory_.get(), memory_ == nullptr ? 0 : memory_.get_deleter().size};
}

inline void MappedFile::check_unchanged(std::string_view function) const {
  if (memory_ == nullptr) return;
  struct stat now = {};
  require(::fstat(::fileno(file_.get()), &now) == 0, function, "a file whose size can be asked for",
          std::generic_category().message(errno));
  require(static_cast<std::uintmax_t>(now.st_size) >= bytes().size(), function,
          std::to_string(bytes().size()) + " bytes, as when it was opened", std::to_string(now.st_size));
}

#else

inline void MappedFile::map(std::size_t size) {
  memory_.resize(size);
  require(std::fread(memory_.data(), 1, size, file_.get()) == size, "MappedFile",
          std::to_string(size) + " bytes that can be read", "fewer");
  file_.reset();
}

inline std::span<const std::byte> MappedFile::bytes() const { return memory_; }

inline void MappedFile::check_unchanged(std::string_view) const {}  // what was read cannot shrink

#endif

}  // namespace attn
#undef ATTN_CAN_MAP_FILES
