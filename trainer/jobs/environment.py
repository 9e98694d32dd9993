"""What a child process gets of the host's environment: what training needs, and no secrets."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]

_NAMES = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "VIRTUAL_ENV", "CONDA_PREFIX",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "PYTHONHOME", "XDG_CACHE_HOME", "COMFYUI_DIR",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_CACHE", "TRANSFORMERS_OFFLINE",
    "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUBLAS_WORKSPACE_CONFIG",
    # Windows
    "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "USERNAME", "HOMEDRIVE", "HOMEPATH",
    "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "PROGRAMFILES", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE", "OS",
}  # fmt: skip
_BEGINNINGS = (
    "LC_", "CUDA_", "HIP_", "HSA_", "ROCR_", "ROCM_", "MIOPEN_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "KMP_",
    "OPENBLAS_", "GOMP_", "MALLOC_", "PYTORCH_", "TORCH_", "SPECTRAL_ADAPTERS_",
    "SPECTRAL_SD_SCRIPTS_",
)  # fmt: skip
# Also under a beginning from above nothing that sounds like this is passed on.
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE|COOKIE|AUTH", re.IGNORECASE)


def child_environment(host: Mapping[str, str], device: str) -> dict[str, str]:
    """The environment of a child that trains on `device` (cpu or cuda:N), made from the host's.

    N counts the GPUs that the host sees; the child sees that one alone.
    """
    found = {name: value for name, value in host.items() if _is_passed(name.upper())}
    found |= {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    if device.startswith("cuda:"):
        seen = [name.strip() for name in host.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        number = int(device.removeprefix("cuda:"))
        found["CUDA_VISIBLE_DEVICES"] = seen[number] if number < len(seen) else str(number)
    return found


def command(folder: Path) -> list[str]:
    """How a child is started: an argument list for this Python, no shell, nothing that a request could word."""
    return [sys.executable, str(PACK), "job-child", str(folder)]


def _is_passed(name: str) -> bool:
    return (name in _NAMES or name.startswith(_BEGINNINGS)) and not _SECRET.search(name)
