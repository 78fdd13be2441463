"""Slurm on the two hosts: a controller on the first, both are nodes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts import Host, skip_without

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
# A job that queues again waits until its old credentials are over, which is two minutes by default.
_CONFIG = """\
ClusterName=test
SlurmctldHost=hosta
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=hosta NodeAddr=10.77.0.1 CPUs=2
NodeName=hostb NodeAddr=10.77.0.2 CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """Its commands, as typed on the first host."""

    host: Host
    config: Path

    def __call__(self, *command: str, **environment: str) -> str:
        done = subprocess.run(
            self.host.inside(*command),
            env={**os.environ, **environment, "SLURM_CONF": str(self.config)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def end_of(self, job: str, within: float) -> str:
        """What Slurm says of a job that has come to its end."""
        until = time.monotonic() + within
        while time.monotonic() < until:
            said = self("scontrol", "--oneliner", "show", "job", job)
            if any(f"JobState={state}" in said for state in ("COMPLETED", "FAILED", "CANCELLED")):
                return said
            time.sleep(0.5)
        raise AssertionError(f"the job does not end: {said}")


@contextmanager
def slurm(hosts: Sequence[Host], folder: Path) -> Iterator[Slurm]:
    """Run its daemons as long as the context lasts."""
    skip_without(*PROGRAMS)
    config = folder / "slurm.conf"
    config.write_text(_CONFIG.format(folder=folder))
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("log", "pid", "seed")]
    with ExitStack() as stack:
        stack.enter_context(_running([*munge, f"--socket={folder}/munge.socket"]))
        daemons = [hosts[0].inside("slurmctld", "-D", "-f", str(config))]
        daemons += [host.inside("slurmd", "-D", "-f", str(config)) for host in hosts]
        for daemon in daemons:
            stack.enter_context(_running(daemon))
        ready = Slurm(hosts[0], config)
        until = time.monotonic() + 60
        while ready("sinfo", "--noheader", "--states=idle", "--format=%D") != "2":
            assert time.monotonic() < until, ready("sinfo", "--long", "--Node")
            time.sleep(0.5)
        yield ready


@contextmanager
def _running(command: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
