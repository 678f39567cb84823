// Floor 0. The version's one home: CMake, the package files and the tests read it here.
#pragma once

#define ATTN_VERSION_MAJOR 0
#define ATTN_VERSION_MINOR 1
#define ATTN_VERSION_PATCH 0

#define ATTN_DETAIL_TEXT_OF(major, minor, patch) #major "." #minor "." #patch
#define ATTN_DETAIL_TEXT(...) ATTN_DETAIL_TEXT_OF(__VA_ARGS__)

namespace attn {

/// "major.minor.patch". Before 1.0 a new minor version may break callers; a new patch never does.
inline constexpr const char* version = ATTN_DETAIL_TEXT(ATTN_VERSION_MAJOR, ATTN_VERSION_MINOR, ATTN_VERSION_PATCH);

}  // namespace attn

#undef ATTN_DETAIL_TEXT
#undef ATTN_DETAIL_TEXT_OF
