"""fastmcp's client over streamable HTTP."""

import asyncio

from common import KEY, URL, did
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport


async def main() -> None:
    transport = StreamableHttpTransport(f"{URL}/mcp", headers={"authorization": f"Bearer {KEY}"})
    async with Client(transport) as client:
        tools = await client.list_tools()
        assert tools
        did(f"{len(tools)} tools")
        listed = await client.call_tool("memories", {})
        assert not listed.is_error
        did("a call")


asyncio.run(main())
