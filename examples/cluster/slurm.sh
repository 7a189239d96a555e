#!/bin/bash
# One run on four hosts with eight GPUs each. `sbatch slurm.sh` begins it, or goes on with it.
#SBATCH --job-name=factory
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1        # a launcher for each host; 8 would be a task for each GPU, which works too
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue                  # begin again after a host was lost or the job was preempted
#SBATCH --signal=B:USR1@180        # three minutes before the time is over, tell this script
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

run=factory
# Only this script, on the first host, decides whether the run is there; runs/ and the data lie on a disk of all hosts.
if ls "runs/$run"/checkpoints/*/state.json >/dev/null 2>&1; then
    arguments=(--resume "runs/$run")
else
    arguments=(--name "$run" --exist-ok --data factory.yaml --model yolo11m --batch 512 --epochs 100)
fi

srun --kill-on-bad-exit=1 yoloyard train "${arguments[@]}" &
training=$!

stop_and_queue_again() {
    kill -TERM "$training"         # srun passes it on; the run saves and ends
    wait "$training"
    scontrol requeue "$SLURM_JOB_ID"
}
trap stop_and_queue_again USR1
wait "$training"
