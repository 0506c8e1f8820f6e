"""The mcp SDK over streamable HTTP: tools, a memory that is made and asked, and bad arguments."""

import asyncio

import httpx
from common import KEY, URL, V1, did
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

NAME = "mcp-client"
HEADERS = {"authorization": f"Bearer {KEY}"}


async def main() -> None:
    httpx.delete(f"{V1}/memories/{NAME}", headers=HEADERS)
    body = {"name": NAME, "files": [{"path": "a.py", "text": "def answer():\n    return 42\n" * 20}]}
    assert httpx.post(f"{V1}/memories", json=body, headers=HEADERS, timeout=60).status_code == 201
    async with (
        create_mcp_http_client(headers=HEADERS) as http,
        Client(streamable_http_client(f"{URL}/mcp", http_client=http)) as client,
    ):
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert tools, "no tools"
        did(f"{len(tools)} tools")
        listed = await client.call_tool("memories", {})
        assert not listed.is_error and NAME in str(listed.structured_content), listed
        found = await client.call_tool("search", {"memory": NAME, "text": "answer"})
        assert found.structured_content["matches"][0]["path"] == "a.py", found
        recalled = await client.call_tool("recall", {"memory": NAME, "cue": "def answer():\n", "max_tokens": 8})
        assert not recalled.is_error, recalled
        did("memories, search, recall")
        for wrong in ({}, {"memory": "there is none", "text": "x"}, {"memory": NAME, "text": 3}):
            assert (await client.call_tool("search", wrong)).is_error, wrong
        did("bad arguments are told")
    httpx.delete(f"{V1}/memories/{NAME}", headers=HEADERS)


asyncio.run(main())
