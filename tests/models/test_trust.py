"""No call of transformers leaves open whether a checkpoint's code may run; the code is copied with it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import natprec
from natprec.models.trust import code_files
from natprec.tasks import CAUSAL, Task
from natprec.tasks.images import IMAGE_CLASSIFIER
from tests.conftest import tiny_model

ROOT = Path(natprec.__file__).parents[1]
ALONE = "comparison/peers/worker.py"
"""Runs where natprec is not installed; what it loads it asks for itself."""
WITHOUT_CODE = {
    "GenerationConfig",
    "PreTrainedTokenizerFast",
    "BaseInputSchema",
    "BaseWeightSchema",
    "CompressedTensorsConfig",
}
"""Classes of transformers, and of Humming's descriptions of layers, whose loading looks up no other class."""


def open_questions(source: str) -> list[int]:
    """Lines of calls that load by a name that a checkpoint gives, and do not say whether its code may run."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        loads = node.func.attr in ("from_pretrained", "from_config")
        plain = isinstance(node.func.value, ast.Name) and node.func.value.id in WITHOUT_CODE
        told = any(keyword.arg == "trust_remote_code" for keyword in node.keywords)
        if loads and not plain and not told:
            found.append(node.lineno)
    return found


def auto_classes(source: str) -> set[str]:
    """The Auto classes that a module names."""
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    return {name for name in names if name.startswith("Auto") and name[4:5].isupper()} - {"AutoRound", "AutoScheme"}


def test_every_call_says_whether_code_may_run() -> None:
    files = [*(ROOT / "natprec").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert not [f"{file}:{line}" for file in files for line in open_questions(file.read_text())]


def test_one_module_asks_transformers() -> None:
    sources = {str(file.relative_to(ROOT / "natprec")): file.read_text() for file in (ROOT / "natprec").rglob("*.py")}
    assert {name for name, source in sources.items() if auto_classes(source)} == {"models/trust.py", ALONE}


def test_the_reader_of_calls() -> None:
    assert open_questions("AutoConfig.from_pretrained(folder)\nauto(kind).from_config(config, dtype=f)") == [1, 2]
    assert open_questions("AutoConfig.from_pretrained(folder, trust_remote_code=False)") == []
    assert open_questions("GenerationConfig.from_pretrained(folder)") == []
    assert auto_classes("transformers.AutoModel.x(AutoTokenizer)") == {"AutoModel", "AutoTokenizer"}


def test_the_code_of_a_folder(tmp_path: Path) -> None:
    """What `auto_map` names, of the tokenizer too, and what that imports; nothing outside of the folder."""
    (tmp_path / "config.json").write_text(
        '{"auto_map": {"AutoConfig": "one.Config", "AutoModel": "../out.Model", "AutoModelForCausalLM": "a/b--two.M"}}'
    )
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["slow_tok.Tok", null]}}')
    (tmp_path / "preprocessor_config.json").write_text('{"auto_map": [17, "missing.Class"]}')
    (tmp_path / "one.py").write_text("from .helper import x\nfrom ..above import y\nimport os\n")
    (tmp_path / "helper.py").write_text("from .one import z\n")
    for name in ("slow_tok.py", "train.py", "two.py"):
        (tmp_path / name).write_text("")
    assert code_files(tmp_path).keys() == {"one.py", "helper.py", "slow_tok.py"}


def test_a_model_in_memory_has_its_code_too(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from natprec.measurement.subject import Subject

    model = tiny_model()
    model.config.auto_map = {"AutoModelForCausalLM": "own.Model"}
    model.save_pretrained(tmp_path)
    (tmp_path / "own.py").write_text("code = True")
    model.name_or_path = model.config.name_or_path = str(tmp_path)
    assert Subject.in_memory(model, tiny_tokenizer).companions == {"own.py": b"code = True"}


@pytest.mark.parametrize(
    ("task", "file", "content"),
    [
        (CAUSAL, "tokenizer_config.json",
         {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}),
        (IMAGE_CLASSIFIER, "preprocessor_config.json",
         {"image_processor_type": "Own", "auto_map": {"AutoImageProcessor": "own.Own"}}),
    ],
    ids=["text", "images"],
)  # fmt: skip
def test_a_checkpoint_with_code_is_refused_in_memory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task, file: str, content: dict[str, Any]
) -> None:
    from natprec.pipeline.api import _own_tokenizer

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked interactively"))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / file).write_text(json.dumps(content))
    (tmp_path / "own.py").write_text("raise AssertionError('it was run')")
    with pytest.raises(natprec.errors.ModelError, match="trust_remote_code=True"):
        _own_tokenizer(tmp_path, task, trust=False)
