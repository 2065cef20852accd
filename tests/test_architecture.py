"""The floors of the house: who may import whom. See docs/structure.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parent.parent / "app"

# From the ground up. A module imports only from its own room and from lower floors.
FLOORS = [
    {"app.errors"},
    {"app.config", "app.kernels"},
    {"app.engine"},
    {"app.telemetry", "app.metrics", "app.db"},
    {"app.tenants", "app.jobs"},
    {"app.gateway"},
    {"app.rag"},
    {"app.console"},
    {
        "app.migrate",
        "app.services",
        "app.asgi",
        "app.client",
        "app.demo",
        "app.cases",
        "app.evaluation",
        "app.worker",
        "app.cli",
        "app.load",
        "app.operations",
        "app.quantization",
        "app.quantization_answers",
    },
]
ENGINE_ROOMS = ("app.engine", "app.kernels")
LIBRARIES = {"numpy", "torch", "triton", "transformers", "tokenizers", "safetensors", "llguidance"}
ENGINE_MAY_IMPORT = LIBRARIES | {"app"} | set(sys.stdlib_module_names)
TORCH_FREE = [
    f"app.engine.{name}"
    for name in (
        "scheduler",
        "waiting",
        "schedule",
        "blocks",
        "prefix",
        "cost",
        "facts",
        "inside",
        "quote_lock",
        "arbiter",
        "pins",
    )
]
ONLY_DOOR_TO_ENGINE = tuple(
    f"app.gateway.providers.{name}"
    for name in ("local", "local_config", "local_request", "local_answer", "local_advert")
)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(APP.rglob("*.py")):
        parts = path.relative_to(APP.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def floor(module: str) -> int | None:
    return next((n for n, rooms in enumerate(FLOORS) if any(_inside(module, room) for room in rooms)), None)


def room(module: str) -> str:
    return next(r for rooms in FLOORS for r in rooms if _inside(module, r))


def _inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


MODULES = modules()


def test_every_module_has_a_floor() -> None:
    assert [m for m in MODULES if m != "app" and floor(m) is None] == []


@pytest.mark.parametrize("module", [m for m in MODULES if m != "app"])
def test_imports_go_down_only(module: str) -> None:
    mine = floor(module)
    for imported in imports(MODULES[module]):
        theirs = floor(imported)
        if theirs is None:
            continue
        if room(imported) == room(module) or mine == len(FLOORS) - 1:
            continue
        assert theirs < mine, f"{module} imports {imported}, which is not below it"
        if _inside(imported, "app.engine"):
            assert module in ONLY_DOOR_TO_ENGINE or _inside(module, "app.engine"), f"{module} reaches into the engine"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(ENGINE_ROOMS)])
def test_engine_imports_only_what_a_bare_gpu_machine_has(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(MODULES[module]) if name}
    assert roots <= ENGINE_MAY_IMPORT
    ours = {name for name in imports(MODULES[module]) if name.startswith("app.")}
    assert all(name.startswith((*ENGINE_ROOMS, "app.errors")) for name in ours), ours


@pytest.mark.parametrize("module", TORCH_FREE)
def test_scheduling_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_application_module_loads_no_torch() -> None:
    code = "import sys, app.asgi; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_circles_between_modules() -> None:
    graph = {m: {i for i in imports(p, top_level_only=True) if i in MODULES} - {m} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join((*path, module))}"
        if module not in done:
            for imported in graph[module]:
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("app.db", "app")])
def test_the_tenant_filter_is_written_in_one_place(module: str) -> None:
    """Tenant rows are read through app.db alone: a comparison with tenant_id anywhere else is a leak in waiting."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "tenant_id":
            assert isinstance(node.left.value, ast.Name), ast.dump(node)
            assert not node.left.value.id[0].isupper(), f"{module}:{node.lineno} filters by tenant inline"
