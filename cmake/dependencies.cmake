# What attn stands on. Each is looked for on this machine and fetched, at a pinned tag, only where it is missing;
# -DCMAKE_DISABLE_FIND_PACKAGE_<name>=ON fetches it regardless. GLOBAL, because a parent project that links attn::attn
# must see these targets too.
include(FetchContent)
set(ATTN_EIGEN_MINIMUM 3.4)

if(NOT TARGET Threads::Threads)
  find_package(Threads REQUIRED GLOBAL)
endif()

# A parent project may have brought an Eigen of its own; that one is used as it is.
if(NOT TARGET Eigen3::Eigen)
  # Found without a version: Eigen's version file accepts the same major number only, and attn takes 3.4 and 5.x alike.
  FetchContent_Declare(Eigen3
    GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git
    GIT_TAG 3.4.0
    GIT_SHALLOW ON
    SOURCE_SUBDIR none # no such folder: Eigen's own build brings tests and install rules, and we need its headers only
    FIND_PACKAGE_ARGS CONFIG GLOBAL)
  FetchContent_MakeAvailable(Eigen3)
  if(DEFINED Eigen3_VERSION AND Eigen3_VERSION VERSION_LESS ATTN_EIGEN_MINIMUM)
    message(FATAL_ERROR "attn needs Eigen ${ATTN_EIGEN_MINIMUM} or newer, found ${Eigen3_VERSION} in ${Eigen3_DIR}. "
      "Set Eigen3_DIR to another one, or CMAKE_DISABLE_FIND_PACKAGE_Eigen3=ON to fetch one.")
  endif()
  if(NOT TARGET Eigen3::Eigen)
    add_library(Eigen3::Eigen INTERFACE IMPORTED GLOBAL)
    target_include_directories(Eigen3::Eigen INTERFACE ${eigen3_SOURCE_DIR})
  endif()
endif()

if(ATTN_BUILD_TESTS AND NOT TARGET GTest::gtest_main)
  set(INSTALL_GTEST OFF)
  FetchContent_Declare(GTest
    GIT_REPOSITORY https://github.com/google/googletest.git
    GIT_TAG v1.14.0
    GIT_SHALLOW ON
    SYSTEM
    FIND_PACKAGE_ARGS CONFIG)
  FetchContent_MakeAvailable(GTest)
endif()

if(ATTN_BUILD_BENCH AND NOT TARGET benchmark::benchmark_main)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  FetchContent_Declare(benchmark
    GIT_REPOSITORY https://github.com/google/benchmark.git
    GIT_TAG v1.8.3
    GIT_SHALLOW ON
    SYSTEM
    FIND_PACKAGE_ARGS CONFIG)
  FetchContent_MakeAvailable(benchmark)
endif()
