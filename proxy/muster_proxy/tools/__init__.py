"""Tool calling for models that cannot: tools go into the prompt, the answer is constrained, and read back."""
