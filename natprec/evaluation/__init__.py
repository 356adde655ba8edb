"""How far the quantized model is from the original, on text that played no part in measuring."""
