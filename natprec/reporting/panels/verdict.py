"""What was promised and what was measured."""

from __future__ import annotations

import math
from typing import Any

from natprec.reporting.elements import Content, Markup, element, joined, missing, table
from natprec.utils.human import human_bytes

WORDS = {"pass": "PASS", "pass-within-noise": "PASS WITHIN NOISE", "fail": "FAIL"}


def verdict_panel(data: dict[str, Any]) -> Markup:
    """The verdict in words, and the figures of original and checkpoint side by side."""
    plan, found, words = data["plan"], data["verification"], data["distortion"]
    if found is None:
        return missing("Verification", "natprec verify DIR --model MODEL")
    return joined(
        [
            element("p", *_sentence(plan, found, words), kind=f"verdict {found['verdict'] or 'none'}"),
            table(
                "Original and checkpoint on held-out text",
                ("figure", "original", "this checkpoint", "difference"),
                list(_rows(data, plan, found, words)),
                (1, 2, 3),
            ),
        ]
    )


def _sentence(plan: dict[str, Any], found: dict[str, Any], words: dict[str, str]) -> list[Content]:
    low, high = found["kl_ci95"]
    measured = f"{words['label']} {found['kl_mean']:.4g} {words['unit']}, interval {low:.4g} to {high:.4g}"
    where = f" on {found['data']} ({found['tokens']} tokens)"
    if found["eps"] is None:
        return [element("strong", "No tolerance was promised. "), measured + where + "."]
    verdict = WORDS.get(found["verdict"] or "", "NOT JUDGED")
    return [element("strong", verdict), f" {measured}; promised at most {plan['eps']:.4g}{where}."]


def _rows(
    data: dict[str, Any], plan: dict[str, Any], found: dict[str, Any], words: dict[str, str]
) -> list[tuple[Content, ...]]:
    rows: list[tuple[Content, ...]] = [
        (f"{words['label']}, mean", "0", f"{found['kl_mean']:.4g}", ""),
        (f"{words['label']}, 99th percentile", "0", f"{found['kl_p99']:.4g}", ""),
    ]
    if found["kl_predicted"] is not None:
        ratio = found["kl_mean"] / found["kl_predicted"] if found["kl_predicted"] > 0 else math.nan
        rows.append((f"{words['label']}, predicted", "", f"{found['kl_predicted']:.4g}", f"measured is {ratio:.2f} ×"))
    before, after = found["perplexity_reference"], found["perplexity_quantized"]
    if before is not None and after is not None:
        rows.append(("perplexity", f"{before:.3f}", f"{after:.3f}", f"{after / before - 1:+.2%}"))
    if found["top1_agreement"] is not None:
        rows.append(("same most likely token", "100%", f"{found['top1_agreement']:.2%}", ""))
    size, whole = found["stored_bytes"], found["stored_bytes_reference"]
    rows.append(("stored", human_bytes(whole), human_bytes(size), f"{size / whole - 1:+.1%}"))
    rows.append(("bits per quantized weight", "16", f"{found['bits_per_weight']:.3f}", "scales included"))
    rows.append(("bits per weight, all weights", "16", f"{found['bits_per_weight_total']:.3f}", ""))
    if plan["uniform"] is not None:
        rows.append(
            (f"{words['label']} predicted of {plan['uniform']} throughout", "", f"{plan['kl_uniform']:.4g}", "")
        )
    return rows
