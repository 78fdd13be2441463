"""System metrics: the first rank of each node samples its node into the run's folder.

Rank 0 alone exports `FOLDER/nodes/NODE.jsonl` with the run's records. Names and units are those of
MLflow's own monitor, which would send from every node and end with the first call that fails.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from avvp_dist.errors import StorageError, first_line
from avvp_dist.tracking.records import NodeRecord, RecordWriter, finite

NODES = "nodes"
"""Name of the folder of samples in a run's folder."""

_SECONDS_TO_CLOSE = 5.0


def node_name() -> str:
    """Name of this node in metrics: MLFLOW_SYSTEM_METRICS_NODE_ID, or the host name."""
    name = os.environ.get("MLFLOW_SYSTEM_METRICS_NODE_ID") or platform.node()
    return re.sub(r"[^\w.-]", "-", name)


class NodeMonitor:
    """Samples this node in a thread, and once more at the end. Nothing here raises.

    The interval is MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL seconds, by default 10.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._stop = folder, threading.Event()
        self._thread = threading.Thread(target=self._work, name="node", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the last sample; waits a few seconds for it at most."""
        self._stop.set()
        self._thread.join(_SECONDS_TO_CLOSE)

    def _work(self) -> None:
        try:
            seconds = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 10)
            writer = RecordWriter(self._folder / NODES, f"{node_name()}.jsonl")
            gpus, before = _gpus(), _traffic()
            psutil.cpu_percent()  # the next call measures the use since this one
            last = False
            while not last:
                last = self._stop.wait(max(seconds, 0.1))
                values = {**_host_metrics(self._folder, before), **_gpu_metrics(gpus)}
                writer.write(NodeRecord(values=finite(values)))
            with suppress(StorageError):  # samples that a full disk loses harm no run
                writer.close()
        except Exception as error:  # a system may refuse any of it, and the run goes on
            print(f"no system metrics of {node_name()}: {first_line(error)}", file=sys.stderr)


def _traffic() -> tuple[int, int] | None:
    """Bytes received and sent since boot; None if there is no network interface."""
    counters = psutil.net_io_counters()
    return (counters.bytes_recv, counters.bytes_sent) if counters else None


def _host_metrics(folder: Path, before: tuple[int, int] | None) -> dict[str, float]:
    """Use of CPU, memory and the disk of `folder` in percent and MB, and MB received and sent since
    `before`."""
    memory, disk, now = psutil.virtual_memory(), psutil.disk_usage(str(folder)), _traffic()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
    }
    if now and before:
        values["network_receive_megabytes"] = (now[0] - before[0]) / 1e6
        values["network_transmit_megabytes"] = (now[1] - before[1]) / 1e6
    return values


def _gpus() -> list[object]:
    """NVML handles of the node's NVIDIA GPUs."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver
        return []


def _gpu_metrics(gpus: list[object]) -> dict[str, float]:
    """Use of each GPU in percent, MB and watts; a slice of a GPU reports only some of them."""
    values: dict[str, float] = {}
    for number, gpu in enumerate(gpus):
        import pynvml

        with suppress(pynvml.NVMLError):
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
            values[f"gpu_{number}_memory_usage_megabytes"] = memory.used / 1e6
            values[f"gpu_{number}_memory_usage_percentage"] = 100 * memory.used / memory.total
        with suppress(pynvml.NVMLError):
            busy = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            values[f"gpu_{number}_utilization_percentage"] = busy
        with suppress(pynvml.NVMLError):
            values[f"gpu_{number}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    return values
