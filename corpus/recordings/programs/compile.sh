#!/bin/sh
# A compilation: makes a hundred small C files and a Makefile in a new folder, and builds them with make.
# usage: compile.sh [FILES]
set -e
files=${1:-100}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
i=0
while [ "$i" -lt "$files" ]; do
    printf '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint work%d(int n)\n{\n\tchar *text = malloc(n + 1);\n\tmemset(text, 65 + n %% 26, n);\n\ttext[n] = 0;\n\tint length = printf("%%s\\n", text);\n\tfree(text);\n\treturn length + %d;\n}\n' "$i" "$i" > "part$i.c"
    i=$((i + 1))
done
printf 'PARTS := $(patsubst %%.c,%%.o,$(wildcard part*.c))\nlibparts.a: $(PARTS)\n\tar rcs $@ $^\n%%.o: %%.c\n\tcc -O1 -c -o $@ $<\n' > Makefile
make -s libparts.a
