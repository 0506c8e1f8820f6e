"""MCP: memories as tools, over HTTP at /mcp and over standard input and output (`foveal mcp`)."""
