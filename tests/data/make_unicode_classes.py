#!/usr/bin/env python3
"""Writes the table in include/attn/io/unicode_classes.hpp from Python's own Unicode data.

    python3 tests/data/make_unicode_classes.py > table.inc

One number for each run of code points of the same class: the first code point, times 8, plus the class. Upper and lower
case alternate in long runs, which count as one, of the class `alternating`, if they begin with upper case.
"""
import sys
import unicodedata

OTHER, SPACE, NUMBER, MARK, UPPER, LOWER, LETTER, ALTERNATING = range(8)
# The property White_Space, which is not a general category.
SPACES = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def class_of(point):
    category = unicodedata.category(chr(point))
    if point in SPACES:
        return SPACE
    if category[0] == "N":
        return NUMBER
    if category[0] == "M":
        return MARK
    return {"Lu": UPPER, "Lt": UPPER, "Ll": LOWER, "Lm": LETTER, "Lo": LETTER}.get(category, OTHER)


def runs(classes):
    point = 0
    while point < len(classes):
        first = point
        while point < len(classes) and classes[point] == (UPPER, LOWER)[(point - first) % 2]:
            point += 1
        if point - first >= 4:
            yield first, ALTERNATING
            continue
        point = first
        while point < len(classes) and classes[point] == classes[first]:
            point += 1
            if classes[point - 1:point + 3] == [UPPER, LOWER, UPPER, LOWER] and point - 1 > first:
                point -= 1
                break
        yield first, classes[first]


all_classes = [class_of(point) for point in range(sys.maxunicode + 1)]
table = list(runs(all_classes))
for i, (first, kind) in enumerate(table):  # what the header does with it
    end = table[i + 1][0] if i + 1 < len(table) else len(all_classes)
    for p in range(first, end):
        assert all_classes[p] == ((UPPER, LOWER)[(p - first) % 2] if kind == ALTERNATING else kind), hex(p)
print(f"// Unicode {unicodedata.unidata_version}, {len(table)} runs.")
print(",".join(str(first * 8 + kind) for first, kind in table))
