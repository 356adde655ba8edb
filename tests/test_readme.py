"""The README does what it says: its commands run, its tree is the tree, its links lead somewhere."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import natprec
from natprec.cli import app
from tests.conftest import made_up_text
from tests.run_command import natprec as command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
HUB_ID = "HuggingFaceTB/SmolLM2-135M"
FEW = {"quantize": "--tokens 512 --eval-tokens 512", "measure": "--tokens 512", "apply": "--tokens 512",
       "inspect": "--tokens 512",
       "verify": "--eval-tokens 512", "compare": "--tokens 512 --eval-tokens 512"}  # fmt: skip


def blocks_to_test() -> list[list[str]]:
    return [block.split("\n") for block in re.findall(r"<!-- test -->\n```bash\n(.*?)\n```", README, re.DOTALL)]


def tree() -> list[Path]:
    """The paths in the README's tree, from its indentation."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert block is not None
    folders: list[str] = []
    paths = []
    for line in block[1].split("\n"):
        depth = (len(line) - len(line.lstrip())) // 2
        name, *description = line.split(maxsplit=1)
        assert description or name in ("natprec/", "__init__.py"), f"{name}: say in one line what it is"
        folders[depth:] = [name]
        paths.append(Path(*folders))
    return paths


def test_every_path_of_the_tree_exists() -> None:
    assert [str(path) for path in tree() if not (ROOT / path).exists()] == []


def test_every_module_is_in_the_tree() -> None:
    modules = {path.relative_to(ROOT) for path in (ROOT / "natprec").rglob("*.py")}
    assert modules - set(tree()) == set()


def test_the_commands_run(tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one folder, on a tiny model with few tokens."""
    monkeypatch.chdir(tmp_path)
    Path("calib.txt").write_text(text_file.read_text())
    Path("test.txt").write_text(made_up_text(30_000, seed=7))
    ran = set()
    for line in itertools.chain(*blocks_to_test()):
        assert HUB_ID in line or "--model" not in line, "this test replaces that model only"
        program, *arguments = shlex.split(line.replace(HUB_ID, str(tiny_folder)))
        if program == "pip":
            assert arguments == ["install", "natprec"]
            continue
        assert program == "natprec"
        result = command(*arguments, *shlex.split(FEW.get(arguments[0], "")))
        assert result.code == 0, (line, result.err)
        ran.add(arguments[0])
    assert ran == {registered.callback.__name__ for registered in app.registered_commands if registered.callback}


@pytest.mark.parametrize("target", re.findall(r"^    make (\w+)", README, re.MULTILINE))
def test_the_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_python_example_is_the_packages_own() -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    own = {" ".join(line.split()) for line in (natprec.__doc__ or "").split("\n")}
    for line in filter(None, block[1].split("\n")):
        assert " ".join(line.split()) in own, "tests/test_api.py runs it from there"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (file.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_documents_exist(page: str) -> None:
    """Of natprec's commands and of the scripts; those of other programs are few, and listed here."""
    others = {"--no-deps", "--extra-index-url"}
    others |= {"--multi_gpu", "--num_processes", "--nproc-per-node", "--nnodes", "--node-rank", "--master-addr",
               "--master-port", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task",
               "--requeue"}  # fmt: skip
    known = {"--help"}
    for registered in app.registered_commands:
        assert registered.callback is not None
        known |= set(re.findall(r"--[\w-]+", command(registered.callback.__name__, "--help").out))
    for script in (ROOT / "scripts").glob("*.py"):
        known |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', script.read_text(encoding="utf-8")))
    given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", (ROOT / page).read_text(encoding="utf-8")))
    assert given - known - others == set()
