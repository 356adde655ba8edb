"""Distortions of the text that speech models write: KL of the next token, given the recording and the text before it.

The mean is over the tokens of a recording's text, and then over recordings.
"""

from __future__ import annotations

from natprec.distortions.counted import WhereCounted
from natprec.distortions.next_token import KL
from natprec.tasks import SPEECH

SPEECH_KL = WhereCounted(KL, SPEECH, "speech-kl")
"""KL(original || quantized) at each token of a recording's text."""
