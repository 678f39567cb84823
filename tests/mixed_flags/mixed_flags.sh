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

# 1. AVX: Eigen aligns to 32 bytes in one unit and to 16 in the other.
unit layer_avx2.o layer.cpp "$@" -O2 -mavx2 -mfma
if "$compiler" main.o layer_avx2.o -pthread -o mixed 2>link.txt; then
  echo "tensors of unlike alignment were linked together"
  exit 1
fi
grep -q 'eigen_max_align_bytes_16' link.txt || { echo "the linker does not say why:"; cat link.txt; exit 1; }

# 2. SSE 4.2: the alignment is the same.
unit layer_sse42.o layer.cpp "$@" -O2 -msse4.2
"$compiler" main.o layer_sse42.o -pthread -o same_sse42
if grep -qw sse4_2 /proc/cpuinfo; then ./same_sse42; fi

# 3. AVX with the alignment set by hand, the same in both.
unit main_16.o main.cpp "$@" -O2 -DEIGEN_MAX_ALIGN_BYTES=16
unit layer_avx2_16.o layer.cpp "$@" -O2 -mavx2 -mfma -DEIGEN_MAX_ALIGN_BYTES=16
"$compiler" main_16.o layer_avx2_16.o -pthread -o same_avx2
if can_avx2; then ./same_avx2; fi
"$compiler" layer_avx2_16.o main_16.o -pthread -o same_avx2_other_order
if can_avx2; then ./same_avx2_other_order; fi
echo "a mix of alignments is refused, others link and run"
