#!/bin/bash
{{directives}}

# Written by `savimae slurm`. One process a task; they meet at the first node, on a port that follows
# from the job's number. Started again, it goes on from the last checkpoint. Exit codes: 0 all steps
# are done, 1 something to mend (named below), 2 options that do not fit, 85 cancelled after saving.

{{prologue}}
command=(
{{command}}
)
run() {
  exec srun --ntasks-per-node={{tasks_per_node}} --cpus-per-task="$cpus" \
    bash -c "$on_each_node" savimae "${command[@]}"
}

{{run}}
