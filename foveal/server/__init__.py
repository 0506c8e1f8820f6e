"""The server: the APIs of OpenAI and Anthropic, memories and MCP, over one engine for each model (docs/serving.md)."""
