#!/bin/bash
{{directives}}

# Written by `savimae slurm`. One process a task; they meet at the first node, on a port that follows
# from the job's number. Started again, it goes on from the last checkpoint. Exit codes: 0 all steps
# are done, 1 something to mend (named below), 2 options that do not fit, 85 cancelled after saving.

{{prologue}}
command=(
{{command}}
)

# One process for each node, socket or NUMA node; the last two are bound to their cores, so that
# their weights lie in the memory beside them, and use one thread of each core.
per={{processes_per}} tasks={{tasks_per_node}} bind=()
count() { lscpu --parse="$1" | grep -v '^#' | sort -u | wc -l; }
case $per in
  socket) tasks=$(count SOCKET) bind=(--threads-per-core=1 --cpu-bind=sockets) ;;
  numa) tasks=$(count NODE) bind=(--threads-per-core=1 --cpu-bind=ldoms) ;;
esac
if [ "$per" != node ]; then
  cpus=$(($(count CORE) / tasks))
  export OMP_NUM_THREADS="$cpus"
fi
run() {
  exec srun --ntasks="$((tasks * SLURM_JOB_NUM_NODES))" --ntasks-per-node="$tasks" \
    --cpus-per-task="$cpus" "${bind[@]}" \
    bash -c "$on_each_node" savimae "${command[@]}"
}

{{run}}
