"""What one trial's process uses: its own memory, on the host and on its GPU, not the node's."""

import os
from contextlib import suppress
from pathlib import Path


class Usage:
    """Asked after each epoch, in the trial's process.

    On a GPU through NVML, the driver's own account; where that does not list this process (in a container it sees
    other numbers than the process does), or is not there, what torch has reserved.
    """

    def __init__(self, on_gpu: bool):
        self._on_gpu, self._handle = on_gpu, None
        if on_gpu:
            import pynvml
            import torch

            self._nvml = pynvml
            # By UUID, because CUDA_VISIBLE_DEVICES renumbers the GPUs for this process and not for NVML.
            uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
            with suppress(pynvml.NVMLError):  # a container without the library, a share of a GPU (MIG)
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def now(self) -> dict[str, float]:
        """host_memory_bytes; on a GPU also gpu_memory_bytes, the most since the last call where NVML does not list
        this process, and, where NVML has it, gpu_utilization_percent, the GPU's, whoever shares it."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        used = {"host_memory_bytes": float(pages * os.sysconf("SC_PAGE_SIZE"))}
        if self._on_gpu:
            used["gpu_memory_bytes"] = float(self._gpu_memory())
        if self._handle is not None:
            with suppress(self._nvml.NVMLError):  # of MIG
                used["gpu_utilization_percent"] = float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        return used

    def _gpu_memory(self) -> int:
        if self._handle is not None:
            with suppress(self._nvml.NVMLError):
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle):
                    if process.pid == os.getpid() and process.usedGpuMemory:
                        return process.usedGpuMemory
        import torch

        most = torch.cuda.max_memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        return most
