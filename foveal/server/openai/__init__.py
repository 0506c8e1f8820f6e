"""OpenAI's APIs: chat completions, completions, responses, models; and vLLM's for tokens."""
