#!/bin/sh
# Adds up what was appended to a log since the last run; for cron, under `ckptmesh exec`:
#
#     ckptmesh exec --pipeline nightly --timeout 2h --wait 10m -- demo/nightly.sh orders.log totals
#
# The checkpoint is how many bytes of the log are done. For each run that found something new there
# is a file in the folder: per first word of a line, how many lines. What makes the sum exact:
#
# 1. A result has the name of the place where it began, and comes to be by one rename. A run that was
#    killed before its commit is done again from the same place, and replaces what it had left.
# 2. The place moves only when this script ends with 0, and only if nobody else has moved it.
# 3. A line that is only half written yet is left to the next run.
set -eu
log=$1 folder=$2
begin=${CKPTMESH_CHECKPOINT:-0}

mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tail -c "+$((begin + 1))" "$log" > "$scratch/new"
head -n "$(wc -l < "$scratch/new")" "$scratch/new" > "$scratch/lines"
bytes=$(wc -c < "$scratch/lines")
if [ "$bytes" -eq 0 ]; then
    echo "nothing new after byte $begin"
    exit 0 # no next checkpoint: the success is recorded, the place kept
fi

result=$folder/$(printf 'from-%015d' "$begin")
awk '{ count[$1]++ } END { for (word in count) print word, count[word] }' "$scratch/lines" |
    sort > "$result.part"
mv "$result.part" "$result"

echo "$((begin + bytes))" > "$CKPTMESH_NEXT_FILE"
echo "$((bytes)) bytes from $begin on"
