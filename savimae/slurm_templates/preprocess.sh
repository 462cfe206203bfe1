#!/bin/bash
{{directives}}

# Written by `savimae slurm`. Task I of the array makes part I of the arrays; started again, it makes
# what is missing. Exit codes: 0 all arrays of this part are there, 1 some videos failed (they are
# named below and in failures-I-of-{{shards}}.jsonl), 2 options that do not fit, 85 cancelled.

{{prologue}}
command=(
{{command}}
  --shard "$SLURM_ARRAY_TASK_ID/{{shards}}"
)
run() { exec bash -c "$on_each_node" savimae "${command[@]}"; }

{{run}}
