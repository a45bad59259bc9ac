#!/bin/bash
# A shell script with many forks: subshells, pipes, command substitutions and background jobs.
# usage: forks.sh [ROUNDS]
rounds=${1:-100}
total=0
for ((i = 0; i < rounds; i++)); do
    words=$(for word in alpha beta gamma delta; do echo "$word $i"; done | sort -r | head -n 2)
    total=$((total + $(echo "$words" | wc -c)))
    (list=($(seq 1 50)); echo "${#list[@]} ${list[*]}") > /dev/null &
    if ((i % 8 == 7)); then wait; fi
done
wait
echo "$total"
