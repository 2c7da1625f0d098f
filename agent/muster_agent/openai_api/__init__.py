"""The agents as OpenAI models: chat completions, responses and conversations."""
