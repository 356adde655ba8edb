"""Which of vLLM's models hand their quantization config to the embedding and the head: what natprec's table is made of.

    python scripts/vllm_architectures.py /path/to/vllm            prints the table, as natprec/engines/architectures.py
    python scripts/vllm_architectures.py /path/to/vllm --check    exit code 1 where that file says otherwise

The folder is vLLM's, of an unpacked wheel; its files are read (`ast`), never imported. A model file that makes no
`VocabParallelEmbedding` itself is asked for the models that it imports from its neighbours.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from natprec.engines.architectures import DENSE_HEADS, EMBEDDINGS

MODEL = re.compile(r"(Model|ForCausalLM)$")


def registry(models: Path) -> dict[str, str]:
    """Class of a causal language model → the file that it is in."""
    found = {}
    for node in ast.walk(ast.parse((models / "registry.py").read_text())):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if _annotated(node) else None
        if isinstance(target, ast.Name) and target.id == "_TEXT_GENERATION_MODELS" and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant):
                    found[str(key.value)] = str(ast.literal_eval(value)[0])
    return found


def _annotated(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign)


def calls(models: Path, file: str, of: str, seen: tuple[str, ...] = ()) -> list[set[str]]:
    """The keywords of each call that makes such a layer, in a file or in those that it takes its model from."""
    path = models / f"{file}.py"
    if file in seen or not path.exists():
        return []
    tree = ast.parse(path.read_text())
    own = [
        {str(keyword.arg) for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == of
    ]
    if own:
        return own
    for other in _neighbours(tree):
        if found := calls(models, other, of, (*seen, file)):
            return found
    return []


def _neighbours(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(MODEL.search(alias.name) for alias in node.names):
            module = node.module or ""
            if node.level == 1 or module.startswith("vllm.model_executor.models."):
                yield module.rpartition(".")[2]


def main() -> None:
    """Read, and print or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    models = options.vllm / "model_executor" / "models"
    embeddings, dense = {}, set()
    for name, file in sorted(registry(models).items()):
        looked_up = calls(models, file, "VocabParallelEmbedding")
        if looked_up and all({"quant_config", "prefix"} <= each for each in looked_up):
            embeddings[name] = "named"
        elif looked_up and all("quant_config" in each for each in looked_up):
            embeddings[name] = "class"
        if not all("quant_config" in each for each in calls(models, file, "ParallelLMHead")):
            dense.add(name)
    if options.check:
        sys.exit(embeddings != EMBEDDINGS or dense != DENSE_HEADS)
    for way in ("named", "class"):
        print(way, *sorted(name for name, each in embeddings.items() if each == way))
    print("dense heads", *sorted(dense))


if __name__ == "__main__":
    main()
