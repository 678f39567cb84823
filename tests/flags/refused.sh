#!/bin/sh
# usage: refused.sh <sentence> <compiler and flags> -- flags that attn cannot be compiled with: the first error is that
# sentence, and the only other one is the compiler's, that it stops there. So for every header that can come first.
set -eu
here=$(dirname "$0")
sentence=$1
shift
for header in attn.hpp error.hpp mask.hpp linear.hpp; do
  if output=$(echo "#include <attn/$header>" | "$@" -fsyntax-only -x c++ - 2>&1); then
    echo "compiled: $header"
    exit 1
  fi
  errors=$(echo "$output" | grep 'error:')
  echo "$errors"
  echo "$errors" | sed -n 1p | grep -qF "$sentence" || { echo "expected first: $sentence"; exit 1; }
  [ "$(echo "$errors" | wc -l)" = 2 ] || { echo "expected nothing after it, $header"; exit 1; }
done
