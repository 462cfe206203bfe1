# shellcheck disable=SC1090,SC1091,SC2016  # files of the setup are elsewhere; '$' is meant as it is

# USR1 comes before the time limit: stop, and queue this task again. TERM comes when the job is
# cancelled: stop for good. Both reach this shell only; it asks the program to stop.
child='' signals=0 cancelled=0
stop_child() { if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null; fi; }
trap 'signals=$((signals + 1)); stop_child' USR1
trap 'signals=$((signals + 1)); cancelled=1; stop_child' TERM

cd {{folder}} || exit 2

# A launcher whose environment came along would be taken for ours.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT

{{setup}}

# Threads: what a task was given, or its share of the node.
cpus=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / {{tasks_per_node}}))}
export OMP_NUM_THREADS="$cpus" PYTHONUNBUFFERED=1

# Compiled kernels are kept on the node's own disk, where only this user can write.
on_each_node='
  for disk in "${SLURM_TMPDIR:-}" "${TMPDIR:-}" /tmp; do
    cache=$disk/savimae-$(id -u)
    if [ -d "$disk" ] && mkdir -p -m 700 "$cache" 2>/dev/null && [ -O "$cache" ]; then
      export NUMBA_CACHE_DIR="$cache"
      break
    fi
  done
  exec "$@"'
