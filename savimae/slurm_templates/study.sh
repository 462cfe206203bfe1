#!/bin/bash
{{directives}}

# Written by `savimae slurm`. Task I of the array does cell I of the study; started again, it goes on
# from what there is. Exit codes: 0 the cell is done, 1 something to mend (named below), 2 options
# that do not fit, 85 cancelled after saving.

{{prologue}}
command=(
{{command}}
  --shard "$SLURM_ARRAY_TASK_ID/{{shards}}"
{{passed_on}}
)
run() { exec bash -c "$on_each_node" savimae "${command[@]}"; }

{{run}}
