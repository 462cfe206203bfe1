"""The house: which package may import which, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import savimae

HOME = Path(__file__).parents[1] / "savimae"
# From the bottom to the top: a package imports from those before it only. `kernels` and `system`
# know nothing of each other.
ROOMS = (
    "kernels", "system", "data", "saliency", "model", "samples", "training", "judging", "study",
    "slurm", "demo", "commands", "cli",
)  # fmt: skip
FILES = sorted(
    path.relative_to(HOME)
    for path in HOME.rglob("*.py")
    if path.parent != HOME or path.stem == "cli"
)


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(("savimae", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse((HOME / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= (names & MODULES) or {node.module}
    return {name for name in found if name.startswith("savimae.")}


def test_every_package_is_a_known_room():
    folders = {path.name for path in HOME.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS) - {"cli"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_arrows_point_down(path):
    room = ROOMS.index(path.parts[0].removesuffix(".py"))
    for module in imports_of(path):
        other = ROOMS.index(module.split(".")[1])
        assert other <= room, f"{path} imports {module}"
        assert {ROOMS[room], ROOMS[other]} != {"kernels", "system"}, f"{path} imports {module}"


def test_no_file_imports_itself_by_way_of_others():
    graph = {module_of(path): imports_of(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import savimae", ("numpy", "torch", "numba", "av", "click")),
        ("import savimae.cli", ("numpy", "torch", "numba", "av", "PIL", "skimage", "matplotlib")),
        ("import savimae.saliency.preprocess", ("torch", "matplotlib")),
        ("import savimae.model.videomae", ("numba", "av", "click")),
    ],
)
def test_imports_are_light(statement, heavy):
    code = f"{statement}; import sys; print(sorted(set(sys.modules) & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_library_offers_what_it_says():
    assert sorted(savimae.__all__) == sorted(savimae._HOMES)
    for name in savimae.__all__:
        assert getattr(savimae, name).__module__ == f"savimae.{savimae._HOMES[name]}"
    with pytest.raises(AttributeError, match="no attribute 'masks'"):
        _ = savimae.masks
