#!/bin/sh
# usage: march.sh <folder for objects> <level> <compiler and flags> -- main.cpp, compiled with -march=<level>, computes the
# same with every instruction set: an older one's kernels stand in a unit that is compiled for more.
# Exit 77: this CPU does not run what the level allows.
set -eu
here=$(dirname "$0")
work=$1 level=$2
shift 2
case $level in
  x86-64) needs=lm ;;
  x86-64-v2) needs="sse4_2 popcnt" ;;
  x86-64-v3) needs="avx2 bmi2 fma f16c movbe" ;;
  x86-64-v4) needs="avx2 bmi2 fma f16c movbe avx512f avx512bw avx512cd avx512dq avx512vl" ;;
esac
for feature in $needs; do
  grep -qw "$feature" /proc/cpuinfo 2>/dev/null || { echo "this CPU lacks $feature: skipped"; exit 77; }
done
mkdir -p "$work"
"$@" -O2 -march="$level" -c "$here/main.cpp" -o "$work/$level.o"
"$@" -O2 -march="$level" "$work/$level.o" -pthread -o "$work/$level"
"$work/$level"
