#!/bin/bash
#SBATCH --job-name=savimae-collect-study-17077f93
#SBATCH --output=/scratch/study/slurm/logs/collect-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

# Written by `savimae slurm`. Writes the report of a study from the cells that are done. Exit codes:
# 0 all of them, 1 some are missing (they are named below), 2 options that do not fit, 85 cancelled.

# shellcheck disable=SC1090,SC1091,SC2016  # files of the setup are elsewhere; '$' is meant as it is

# USR1 comes before the time limit: stop, and queue this task again. TERM comes when the job is
# cancelled: stop for good. Both reach this shell only; it asks the program to stop.
child='' signals=0 cancelled=0
stop_child() { if [ -n "$child" ]; then kill -USR1 "$child" 2>/dev/null; fi; }
trap 'signals=$((signals + 1)); stop_child' USR1
trap 'signals=$((signals + 1)); cancelled=1; stop_child' TERM

cd /home/me || exit 2

# A launcher whose environment came along would be taken for ours.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT

# No environment was asked to be set up.

# Threads: what a task was given, or its share of the node.
cpus=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / 1))}
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
command=(
  savimae study
  --data /data/UCF-101
  --out /scratch/study
  --collect

)
run() { exec bash -c "$on_each_node" savimae "${command[@]}"; }

id=$SLURM_JOB_ID
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi
say() { echo "$(date '+%F %T') job $id $1"; }
say "starts for the $((${SLURM_RESTART_COUNT:-0} + 1)). time on $SLURM_JOB_NODELIST, $cpus CPUs a task"

code=85
if [ "$signals" = 0 ]; then
  run &
  child=$!
  if [ "$signals" != 0 ]; then stop_child; fi
  while :; do
    before=$signals
    wait "$child"
    code=$?
    if [ "$signals" = "$before" ]; then break; fi # else a signal ended the wait, not the program
  done
fi

# 85: stopped, and saved what there was. 138, 143: ended by a signal before there was anything.
case $code in
  85 | 138 | 143)
    if [ "$cancelled" = 0 ] && scontrol requeue "$id"; then
      say "goes on when Slurm starts it again"
      exit 0
    fi
    ;;
esac
say "ended with exit code $code"
exit "$code"
