#!/bin/bash
{{directives}}

# Written by `savimae slurm`. Writes the report of a study from the cells that are done. Exit codes:
# 0 all of them, 1 some are missing (they are named below), 2 options that do not fit, 85 cancelled.

{{prologue}}
command=(
{{command}}
{{passed_on}}
)
run() { exec bash -c "$on_each_node" savimae "${command[@]}"; }

{{run}}
