"""natprec beside other people's quantizers: same model, text, judge and stored bytes."""
