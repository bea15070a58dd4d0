import asyncio
import sys

import aiohttp


async def main(url):
    async with aiohttp.ClientSession(trust_env=True) as session:
        async with session.get(url) as res:
            print(res.status, dict(res.headers))
            print(await res.text())
            if res.status >= 400:
                sys.exit(1)
        async with session.get(url.replace("/echo", "/sse")) as res:
            async for line in res.content:
                print(line.decode().rstrip())


asyncio.run(main(sys.argv[1]))
