#!/bin/bash
#SBATCH --job-name=rlhf-ppo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --output=%x-%j.log
# Submit from the activated environment: sbatch THIS_FILE. The job ends as the command ends; submitted again, it resumes.
set -euo pipefail

# Only this job's processes know the token, so that nobody else on the network can use its Ray.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
# Else Ray's workers yield to every other process, which slows a run many times beside one.
export RAY_worker_niceness=0

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# The address from which this node reaches the others, and they it: its name may stand for a loopback address.
route='import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.connect((sys.argv[1], 9)); print(s.getsockname()[0])'
address=$(python3 -c "$route" "${nodes[-1]}")
# Another job on this node has another port.
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$address:$port"

steps=()
trap 'kill "${steps[@]}" 2>/dev/null || true' EXIT

start_ray() { # node, arguments of ray start
  local node=$1
  shift
  # A step has one CPU a task unless it is told: Slurm no longer takes that from the job.
  srun --nodes=1 --ntasks=1 --cpus-per-task=32 --nodelist="$node" \
    ray start "$@" --num-cpus=32 --num-gpus=8 --disable-usage-stats --block &
  steps+=($!)
}

# The batch script runs on the first node, which is the head.
start_ray "${nodes[0]}" --head --node-ip-address="$address" --port="$port" --include-dashboard=false
for attempt in {1..60}; do
  if ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; then break; fi
  if [[ $attempt == 60 ]]; then
    echo "Ray did not start on ${nodes[0]} within two minutes" >&2
    exit 1
  fi
  sleep 2
done
for node in "${nodes[@]:1}"; do
  start_ray "$node" --address="$RAY_ADDRESS"
done

# Waits itself until all nodes are there, for cluster.deadlines.start_seconds.
rlhf ppo launch/ppo.yaml
