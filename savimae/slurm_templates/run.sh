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
