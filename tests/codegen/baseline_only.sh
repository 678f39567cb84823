#!/bin/sh
# usage: baseline_only.sh <compiler and flags> -- compiles unit.cpp without any -m flag and proves that no AVX instruction
# stands outside of the namespaces of the instruction sets, so that a CPU without AVX never meets one.
# Exit 77: cannot be asked here (no objdump, not x86-64).
set -eu
here=$(dirname "$0")
object=${ATTN_CODEGEN_OBJECT:-codegen_unit.o}
command -v objdump >/dev/null || { echo "no objdump: skipped"; exit 77; }
"$@" -O2 -c "$here/unit.cpp" -o "$object"
objdump -f "$object" | grep -q x86-64 || { echo "not x86-64: skipped"; exit 77; }

# VEX and EVEX: mnemonics that begin with v, registers ymm, zmm and 16 to 31, mask registers k0 to k7.
objdump -d -C -w --no-show-raw-insn "$object" | awk '
  /^[0-9a-f]+ <.*>:$/ {
    name = $0
    sub(/^[0-9a-f]+ </, "", name)
    sub(/>:$/, "", name)
    own = name ~ /attn::kernel::avx(2|512)[^0-9a-z_]/
    ++functions
    next
  }
  {
    if (split($0, part, "\t") < 2) next
    code = part[2]
    if (code ~ /^v[a-z]/ || code ~ /%[yz]mm/ || code ~ /%xmm(1[6-9]|2[0-9]|3[01])/ || code ~ /%k[0-7]/) {
      if (own) {
        ++inside
        if (code ~ /%ymm/) ++ymm
        if (code ~ /%zmm/) ++zmm
      } else {
        if (++outside <= 20) print "outside: " name ":" code
      }
    }
  }
  END {
    printf "%d functions, %d AVX instructions inside the kernels (%d lines with ymm, %d with zmm), %d outside\n", functions, inside, ymm, zmm, outside
    if (ymm < 100 || zmm < 100) print "expected kernels of both instruction sets in this object"
    exit outside > 0 || ymm < 100 || zmm < 100
  }'
