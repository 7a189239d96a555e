#!/bin/bash
# One run on four hosts with eight GPUs each. `sbatch slurm.sh` begins it, or goes on with it.
#SBATCH --job-name=factory
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1        # it starts the processes of its host; 8, a task for each GPU, works too
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue                  # begin again after a host was lost or the job was preempted
#SBATCH --signal=TERM@180          # three minutes before the time is over the run saves and ends
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

run=factory
# Only this script, on the first host, decides whether the run is there; runs/ and the data lie on a disk of all hosts.
if ls "runs/$run"/checkpoints/*/state.json >/dev/null 2>&1; then
    arguments=(--resume "runs/$run")
else
    arguments=(--name "$run" --exist-ok --data factory.yaml --model yolo11m --batch 512 --epochs 100)
fi

srun yoloyard train "${arguments[@]}"
status=$?
if [ $status = 143 ]; then         # it was asked to end by SIGTERM, and has saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
