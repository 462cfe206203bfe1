#!/bin/bash
{{directives}}

# Written by `savimae slurm`. Looks whether every array is there, and lists the videos that have
# theirs for the training that waits for this job. Exit codes: 0 yes, 1 some are missing (they are
# named below), 2 options that do not fit, 85 cancelled.

{{prologue}}
command=(
{{command}}
)
run() { exec bash -c "$on_each_node" savimae "${command[@]}"; }

{{run}}
