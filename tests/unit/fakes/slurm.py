"""What srun does, on one machine: `python slurm.py TASKS COMMAND...`. Input and output are the tasks' too."""

import os
import subprocess
import sys
import time

tasks, command = int(sys.argv[1]), sys.argv[2:]
shared = {"SLURM_JOB_ID": "712", "SLURM_STEP_ID": "3", "SLURM_NTASKS": str(tasks), "SLURM_STEP_NODELIST": "gpu[07-08]"}
print("srun: a line of its own", flush=True)  # noqa: T201
children = []
for rank in range(tasks):
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
    children.append(subprocess.Popen(command, env={**os.environ, **shared, **place}))
while any(child.poll() is None for child in children):
    if any(child.poll() for child in children) and os.environ.get("SLURM_KILL_BAD_EXIT") == "1":
        for child in children:
            child.kill()
    time.sleep(0.02)
sys.exit(max(abs(child.returncode) for child in children))
