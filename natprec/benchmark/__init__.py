"""`natprec eval`: what quantization does to answers, with lm-eval's tasks and documents, original beside checkpoint."""
