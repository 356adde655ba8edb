"""A checkpoint behind an HTTP endpoint that OpenAI's clients understand."""
