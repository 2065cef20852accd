"""Checks of the machine: disk, models, device, port."""

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import httpx

from app.config import EngineSettings, ServerSettings
from app.engine import checksums
from app.engine.quant.report import objection
from app.errors import ConfigurationError
from app.operations.findings import Finding, failed, ok, warning

GIB = 1024**3
LOW_BYTES = 2 * GIB
FULL_BYTES = GIB // 4
WEIGHTS = "*.safetensors"


def storage(directory: Path) -> Finding:
    """A file is written and deleted: nothing else proves that one can be."""
    if not directory.exists():
        return ok("storage", f"{directory} will be made")
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"precedent")
    except OSError as error:
        advice = f"Give the user {os.geteuid()} the folder: chown, chmod 700, or remount it writable."
        return failed("storage", f"{directory} cannot be written: {error.strerror}", advice)
    for path in (directory, *(p for p in (directory / "files", directory / "index") if p.exists())):
        if path.stat().st_mode & stat.S_IWOTH:
            return warning("storage", f"everybody may write to {path}", f"Run: chmod o-rwx {path}")
    return ok("storage", f"{directory} can be written")


def disk(directory: Path, low: int = LOW_BYTES, full: int = FULL_BYTES) -> Finding:
    """Bytes: below `low` is a warning, below `full` a failure."""
    place = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail, advice = f"{free / GIB:.1f} GiB free at {place}", "Free space or move storage.directory to a larger disk."
    if free < full:
        return failed("disk", detail, advice)
    return warning("disk", detail, advice) if free < low else ok("disk", detail)


def model(engine: EngineSettings) -> Finding:
    """The folder's weights against its list of checksums."""
    folder = Path(engine.model_source)
    if not folder.is_dir():
        if engine.model.startswith((".", "/")) or engine.model.count("/") != 1:
            advice = "Correct engine.model: a folder, a hub name or a name that `precedent model list` shows."
            return failed("model", f"{folder} does not exist", advice)
        advice = "Pin engine.revision and engine.checksums, so that the weights cannot change unnoticed."
        named = ok("model", f"{engine.model} comes from the hub at revision {engine.revision}")
        return named if engine.revision else warning("model", f"{engine.model} comes from the hub, unpinned", advice)
    if not any(folder.glob(WEIGHTS)):
        return failed("model", f"{folder} has no {WEIGHTS}", "Copy the whole model there.")
    sums = Path(engine.checksums) if engine.checksums else folder / "SHA256SUMS"
    if not sums.exists() and not engine.checksums:
        advice = f"Write one: cd {folder} && sha256sum *.json *.safetensors > SHA256SUMS"
        return warning("model", f"{folder} has no SHA256SUMS", advice)
    try:
        checksums.verify(folder, sums)
    except ValueError as error:
        return failed("model", str(error), "Copy the model again from where it came; do not serve this one.")
    return ok("model", f"{folder} matches {sums.name}")


def quantization(engine: EngineSettings) -> Finding:
    """What the checkpoint itself says of its quality, where it is quantized."""
    folder = Path(engine.model_source)
    try:
        found = objection(folder)
    except ValueError as error:
        return failed("quantization", str(error), "Copy the model again from where it came.")
    advice = f"Run: precedent eval quantization ORIGINAL {folder} --texts HELD_OUT, and serve it if that passes."
    return warning("quantization", found, advice) if found else ok("quantization", "nothing speaks against the model")


def adapters(engine: EngineSettings) -> Finding:
    """Each against the shapes of the model it is for, as a start would."""
    from app.engine.architecture import read_spec
    from app.engine.lora_files import AdapterFiles

    try:
        spec = read_spec(Path(engine.model_source))
        for folder in engine.adapter_folders.values():
            AdapterFiles(Path(folder), spec)
    except (OSError, ValueError) as error:
        advice = "Correct engine.adapters, or copy the adapter again; the model does not start with it."
        return failed("adapters", str(error), advice)
    return ok("adapters", f"{', '.join(engine.adapter_folders)}: of the model's shapes")


def embedding_model(name: str) -> Finding:
    """Loads it: only that proves that it can be."""
    from app.rag.index.embedding import Embedder

    try:
        loaded = Embedder(name, device="cpu")
    except ConfigurationError as error:
        return failed("embedding model", error.detail.splitlines()[0], "Correct rag.embedding_model, or install it.")
    return ok("embedding model", f"{name}, {loaded.dimension} dimensions")


def device(name: str) -> Finding:
    """The engine's: `open_device` is what would fail at start."""
    from app.engine.device import open_device

    driver = _driver()
    try:
        opened = open_device(name)
    except ValueError as error:
        found = f"the driver sees {driver}" if driver else "there is no NVIDIA driver"
        advice = 'Install driver and a torch that fits it, or set engine.device = "cpu".'
        return failed("device", f"{error}; {found}", advice)
    if opened.name == "cpu" and driver:
        return ok("device", f"cpu; {driver} is not used (engine.device = {name!r})")
    return ok("device", f"{opened.name}, {driver}" if driver else opened.name)


def _driver() -> str | None:
    """Name and driver version of the first GPU, as NVIDIA's driver says."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return asked.stdout.splitlines()[0].strip() if asked.returncode == 0 and asked.stdout else None


def port(server: ServerSettings) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((server.host, server.port))
            return ok("port", f"{server.host}:{server.port} is free")
        except OSError as error:
            taken = f"{server.host}:{server.port}: {error.strerror}"
    if serves(server):
        return ok("port", f"Precedent answers at {server.host}:{server.port}")
    return failed("port", taken, "Stop the other program, or set server.port (server.host) to what is free here.")


def serves(server: ServerSettings) -> bool:
    """Whether Precedent answers where this one would listen."""
    host = "127.0.0.1" if server.host in ("0.0.0.0", "::") else server.host
    try:
        answer = httpx.get(f"http://{host}:{server.port}/health/live", timeout=2.0)
        return answer.status_code == 200 and answer.json() == {"status": "live"}
    except (httpx.HTTPError, ValueError):
        return False
