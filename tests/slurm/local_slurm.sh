#!/usr/bin/env bash
# A throw-away Slurm cluster on this machine: no systemd, munge, root, DNS or changes below /etc.
# Needs slurmctld, slurmd and Slurm's commands (Debian and Ubuntu: slurmctld slurmd slurm-client).
#
#   local_slurm.sh start DIR [NODES]   starts afresh; prints the SLURM_CONF that the commands need
#   local_slurm.sh stop DIR            ends all jobs and daemons
#
# Nodes have two CPUs and two GPUs that are not there. They are called 127.0.0.1, 127.0.0.2, …, so
# that their names resolve. Keep DIR short: slurmd opens Unix sockets in it.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"
CPUS=2 GPUS=2

is_alive() { # PID NAME: that daemon runs under this number, and is no zombie
  local state
  state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 1
  [[ $state != [ZX] ]] && tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -q "^[^ ]*$2 "
}

stop() {
  [[ -f $SLURM_CONF ]] || return 0
  local file name pid daemons=()
  timeout 10 scancel --user="$(id -un)" >/dev/null 2>&1 || true # jobs would outlive the daemons
  for ((i = 0; i < 80; i++)); do
    [[ -n $(timeout 5 squeue -h -t R,CG 2>/dev/null) ]] || break
    sleep 0.1
  done
  for file in "$DIR"/slurmctld.pid "$DIR"/slurmd.*.pid; do
    [[ -s $file ]] || continue
    pid=$(<"$file")
    name=$(basename "$file")
    name=${name%%.*}
    is_alive "$pid" "$name" || continue
    daemons+=("$pid")
    kill "$pid" 2>/dev/null || true
  done
  for pid in "${daemons[@]}"; do
    for ((i = 0; i < 100; i++)); do
      is_alive "$pid" "slurm[a-z]*" || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
  for file in /proc/[0-9]*/environ; do # step managers and job processes that are left
    pid=${file//[^0-9]/}
    if [[ $pid != "$$" && $pid != "$PPID" ]] &&
      tr '\0' '\n' <"$file" 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF" &&
      { tr '\0' '\n' <"$file" | grep -q '^SLURM_JOB_ID=' || is_alive "$pid" slurmstepd:; }; then
      kill -9 "$pid" 2>/dev/null || true
    fi
  done 2>/dev/null
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

find_ports() { # N: the first of N + 1 free ports in a row, below those that systems give away
  local base i
  for ((base = 21000 + $$ % 50 * 100; base < 32000; base += 100)); do
    for ((i = 0; i <= $1; i++)); do is_free $((base + i)) || continue 2; done
    echo "$base"
    return
  done
  return 1
}

start() {
  local n=$1 port i node
  ((${#DIR} <= 60)) || { echo "local_slurm: too long for Unix sockets: $DIR" >&2; exit 2; }
  stop
  rm -rf "$DIR"
  mkdir -p "$DIR"/{state,log,dev}
  port=$(find_ports "$n")
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$port
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool.%n
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=120
KillWait=20
OverTimeLimit=0
JobRequeue=0
MinJobAge=3600
GresTypes=gpu
CONF
  for ((i = 0; i < GPUS; i++)); do ln -s /dev/null "$DIR/dev/nvidia$i"; done
  for ((i = 1; i <= n; i++)); do
    node=127.0.0.$i
    mkdir -p "$DIR/spool.$node"
    echo "NodeName=$node NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$CPUS" \
      "RealMemory=256000 Gres=gpu:$GPUS State=UNKNOWN" >>"$SLURM_CONF"
    echo "NodeName=$node Name=gpu File=$DIR/dev/nvidia[0-$((GPUS - 1))]" >>"$DIR/gres.conf"
  done
  echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60" >>"$SLURM_CONF"
  slurmctld -i
  for ((i = 1; i <= n; i++)); do slurmd -N "127.0.0.$i"; done
  for ((i = 0; i < 200; i++)); do
    if [[ $(timeout 5 sinfo -h -N -o '%T' 2>/dev/null | grep -cx idle) == "$n" ]]; then
      echo "$SLURM_CONF"
      return
    fi
    sleep 0.05
  done
  echo "local_slurm: not all of $n nodes are ready after ten seconds" >&2
  tail -n 20 "$DIR"/log/*.log >&2
  stop
  exit 1
}

DIR=${2:?"usage: $0 start DIR [NODES] | stop DIR"}
export SLURM_CONF=$DIR/slurm.conf
case $1 in
  start) start "${3:-2}" ;;
  stop) stop ;;
  *)
    echo "usage: $0 start DIR [NODES] | stop DIR" >&2
    exit 2
    ;;
esac
