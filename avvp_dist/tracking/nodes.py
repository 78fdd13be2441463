"""System metrics: each node's first rank samples its node into the run's folder.

`FOLDER/nodes/NODE.jsonl` is sent with the run's records, by rank 0 alone. Names and units are those
of MLflow's own monitor, which sends from where it samples and ends with the first call that fails.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from avvp_dist.errors import StorageError, first_line
from avvp_dist.tracking.records import Records, finite

NODES = "nodes"
"""Folder of the nodes' samples in a run's folder."""

_SECONDS_TO_CLOSE = 5.0


def node_name() -> str:
    """MLFLOW_SYSTEM_METRICS_NODE_ID, or this host."""
    name = os.environ.get("MLFLOW_SYSTEM_METRICS_NODE_ID") or platform.node()
    return re.sub(r"[^\w.-]", "-", name)


class NodeMonitor:
    """Samples this node in a thread every MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL seconds, 10 if
    that is not set, and once more at the end. Nothing here raises."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stop = folder, threading.Event()
        self._thread = threading.Thread(target=self._work, name="node", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(_SECONDS_TO_CLOSE)

    def _work(self) -> None:
        try:
            seconds = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 10)
            records = Records(self._folder / NODES, f"{node_name()}.jsonl")
            gpus, network = _gpus(), psutil.net_io_counters()
            psutil.cpu_percent()  # the next call says how busy the CPU was since this one
            last = False
            while not last:
                last = self._stop.wait(max(seconds, 0.1))
                values = {**_host(self._folder, network), **_cards(gpus)}
                records.write("node", values=finite(values))
            with suppress(StorageError):  # a run is not the worse for it
                records.close()
        except Exception as error:  # whatever a system refuses to tell, the run goes on
            print(f"no system metrics of {node_name()}: {first_line(error)}", file=sys.stderr)


def _host(folder: Path, network: Any) -> dict[str, float]:
    """Of the node: percent, MB in use, and MB sent and received since `network`."""
    memory, disk, now = psutil.virtual_memory(), psutil.disk_usage(folder), psutil.net_io_counters()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": memory.percent,
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / 1e6,
    }
    if now and network:  # None where there is no interface
        values["network_receive_megabytes"] = (now.bytes_recv - network.bytes_recv) / 1e6
        values["network_transmit_megabytes"] = (now.bytes_sent - network.bytes_sent) / 1e6
    return values


def _gpus() -> list[Any]:
    """NVML's handles of the node's NVIDIA GPUs."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver
        return []


def _cards(gpus: list[Any]) -> dict[str, float]:
    """Of each GPU, in percent, MB and watts, what it tells: a slice of one tells only some."""
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
