"""Does llama.cpp compute from a GGUF file what transformers computes from the same file?

Loads the file in both, compares the token ids of a text, then the distribution of the next token after several
prefixes of it: KL(transformers || llama.cpp), the largest difference of a log-probability among the 50 likeliest
tokens, and whether both rank the same token first. llama.cpp rounds the inputs of each matrix product to 8 bits, so the
two agree to about 1e-3 nats, not to the last bit.

    pip install --no-deps xllamacpp
    python scripts/llama_cpp_check.py quantized --text test.txt
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.models.loading import load_model

LIKELIEST = 50


class LlamaCpp:
    """A GGUF file in llama.cpp, as the xllamacpp package carries it."""

    def __init__(self, file: Path, context: int = 512) -> None:
        import xllamacpp

        options = xllamacpp.CommonParams()
        options.model.path = str(file)
        options.n_ctx, options.n_parallel, options.warmup = context, 1, False
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = torch.get_num_threads()
        self.server = xllamacpp.Server(options)

    def token_ids(self, text: str) -> list[int]:
        """As llama.cpp splits the text, with what the file says to put before it."""
        body = json.dumps({"content": text, "add_special": True}).encode()
        request = urllib.request.Request(self.server.listening_address + "/tokenize", body)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return list(json.load(reply)["tokens"])

    def log_probabilities(self, ids: list[int], vocabulary: int) -> Tensor:
        """(vocabulary,) of the token after `ids`, before any sampling.

        An end of text would be answered without probabilities, so that the last token is sampled again.
        """
        sampled = {"temperature": 0, "logit_bias": [[ids[-1], 1e4]]}
        reply: dict[str, Any] = self.server.handle_completions(
            {"prompt": ids, "n_predict": 1, "n_probs": vocabulary, "cache_prompt": False, **sampled}
        )
        result = torch.full((vocabulary,), -torch.inf)
        for entry in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            result[entry["id"]] = entry["logprob"]
        return result


def compare(file: Path, text: str, prefixes: int = 8, length: int = 128) -> dict[str, Any]:
    """Figures of one GGUF file, on prefixes of equal steps up to `length` tokens of a text."""
    loaded = load_model(str(file))
    own = loaded.tokenizer(text).input_ids
    engine = LlamaCpp(file, context=length + 8)
    theirs = engine.token_ids(text)
    ids = theirs[:length]
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        expected = loaded.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    divergences, largest, agreed = [], 0.0, 0
    stops = range(length // prefixes, length + 1, length // prefixes)
    for stop in stops:
        reference = expected[stop - 1]
        found = engine.log_probabilities(ids[:stop], vocabulary).double()
        divergences.append(float((reference.exp() * (reference - found)).nansum()))
        likely = reference.topk(min(LIKELIEST, vocabulary)).indices
        largest = max(largest, float((reference[likely] - found[likely]).abs().max()))
        agreed += int(reference.argmax() == found.argmax())
    return {
        "file": str(file),
        "same_tokens": own == theirs,
        "tokens": len(theirs),
        "prefixes": len(stops),
        "kl_mean": sum(divergences) / len(divergences),
        "kl_max": max(divergences),
        "log_probability_difference_max": largest,
        "same_top_token": agreed / len(stops),
    }


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="written by natprec quantize --engine llama.cpp, or a .gguf file")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--prefixes", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    file = options.folder if options.folder.is_file() else options.folder / "model.gguf"
    text = options.text.read_text(encoding="utf-8")[: 8 * options.length].strip()
    print(json.dumps(compare(file, text, options.prefixes, options.length), indent=2))


if __name__ == "__main__":
    main()
