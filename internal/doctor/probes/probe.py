"""Fetch sys.argv[2] with the library sys.argv[1]; any HTTP answer is success."""
import importlib.util
import sys

lib, url = sys.argv[1], sys.argv[2]
module = {"grpcio": "grpc", "urllib": "urllib.request"}.get(lib, lib)
if importlib.util.find_spec(module) is None:
    print("attache-doctor: not installed")
    sys.exit(3)

if lib == "urllib":
    import urllib.error
    import urllib.request
    try:
        urllib.request.urlopen(url, timeout=20).read()
    except urllib.error.HTTPError:
        pass
elif lib == "requests":
    import requests
    requests.get(url, timeout=20)
elif lib == "httpx":
    import httpx
    httpx.get(url, timeout=20)
elif lib == "aiohttp":
    import asyncio
    import aiohttp

    async def main():
        async with aiohttp.ClientSession(trust_env=True) as session:
            async with session.get(url) as answer:
                await answer.read()

    asyncio.run(main())
elif lib == "boto3":
    import boto3
    import botocore.config
    import botocore.exceptions
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1",
        config=botocore.config.Config(retries={"max_attempts": 0}, connect_timeout=10, read_timeout=10),
    )
    try:
        client.list_buckets()
    except (botocore.exceptions.ClientError, botocore.parsers.ResponseParserError):
        pass
elif lib == "grpcio":
    import os
    from urllib.parse import urlsplit
    import grpc
    parts = urlsplit(url)
    target = "%s:%d" % (parts.hostname, parts.port or 443)
    with open(os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"], "rb"):
        pass  # a roots file that cannot be read is ignored without a word
    channel = grpc.secure_channel(target, grpc.ssl_channel_credentials())
    call = channel.unary_unary("/attache.Doctor/Probe")
    try:
        call(b"", timeout=15)
    except grpc.RpcError as error:
        # An answer that is not gRPC is an answer: the transport works.
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            print(error.details())
            sys.exit(1)
