#!/bin/sh
# usage: mixed_flags.sh <folder for objects> <compiler and flags> -- two units of one program, compiled with unlike -m flags.
# Where these change the alignment of Eigen's tensors, and so their allocator, the program must not link, and the linker
# must say why; where they do not, it links and runs. Exit 77: not x86-64.
set -eu
here=$(dirname "$0")
work=$1
shift
[ "$(uname -m)" = x86_64 ] || { echo "not x86-64: skipped"; exit 77; }
mkdir -p "$work"
cd "$work"
unit() { # object, source, flags ...
  to=$1 from=$2
  shift 2
  "$compiler" "$@" -c "$here/$from" -o "$to"
}
compiler=$1
shift
can_avx2() { grep -qw avx2 /proc/cpuinfo 2>/dev/null && grep -qw fma /proc/cpuinfo; }

unit main.o main.cpp "$@" -O2

must_not_link() { # what, objects ...
  what=$1
  shift
  if "$compiler" "$@" -pthread -o mixed 2>link.txt; then
    echo "linked together: $what"
    exit 1
  fi
  grep -q 'eigen_[a-z]*_*align_bytes_16' link.txt || { echo "the linker does not say why, $what:"; cat link.txt; exit 1; }
}

# 1. SSE 4.2: the alignment is the same.
unit layer_sse42.o layer.cpp "$@" -O2 -msse4.2
"$compiler" main.o layer_sse42.o -pthread -o same_sse42
if grep -qw sse4_2 /proc/cpuinfo; then ./same_sse42; fi

# 2. AVX in both, FMA in one.
unit main_avx2.o main.cpp "$@" -O2 -mavx2
unit layer_avx2.o layer.cpp "$@" -O2 -mavx2 -mfma
"$compiler" main_avx2.o layer_avx2.o -pthread -o same_avx2
if can_avx2; then ./same_avx2; fi

# 3. AVX in one: Eigen aligns to 32 bytes there and to 16 in the other.
must_not_link "AVX and none" main.o layer_avx2.o

# 4. The same with EIGEN_MAX_ALIGN_BYTES=16: it bounds tensors of fixed size, the heap is aligned to 32 bytes all the same.
unit main_16.o main.cpp "$@" -O2 -DEIGEN_MAX_ALIGN_BYTES=16
unit layer_avx2_16.o layer.cpp "$@" -O2 -mavx2 -mfma -DEIGEN_MAX_ALIGN_BYTES=16
must_not_link "AVX and none, EIGEN_MAX_ALIGN_BYTES=16" main_16.o layer_avx2_16.o
echo "a mix of alignments is refused, others link and run"
