#!/bin/sh
# usage: message.sh <sentence> <compiler and flags> -- the program does not compile, and the one error is that sentence.
set -eu
sentence=$1
shift
if output=$("$@" 2>&1); then
  echo "compiled"
  exit 1
fi
errors=$(echo "$output" | grep 'error:')
echo "$errors"
echo "$errors" | grep -qF "$sentence" || { echo "expected: $sentence"; exit 1; }
[ "$(echo "$errors" | wc -l)" = 1 ] || { echo "expected no other error"; exit 1; }
