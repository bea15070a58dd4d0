# python3 use_grpcio.py tls|plain HOST:PORT
#
# Calls without generated code: grpc.testing.Empty is no bytes at all, and a
# StreamingOutputCallRequest that asks for two answers is built by hand.
import os
import sys

import grpc

roots = None  # GRPC_DEFAULT_SSL_ROOTS_FILE_PATH is read by the library
if sys.argv[1] == "tls":
    channel = grpc.secure_channel(sys.argv[2], grpc.ssl_channel_credentials(roots))
else:
    channel = grpc.insecure_channel(sys.argv[2])
raw = {"request_serializer": bytes, "response_deserializer": bytes}
try:
    answer, call = channel.unary_unary("/grpc.testing.TestService/EmptyCall", **raw).with_call(b"", timeout=20)
    print("unary", call.code(), len(answer), call.initial_metadata(), call.trailing_metadata())
    ask = b"\x12\x02\x08\x05\x12\x02\x08\x07"  # response_parameters {size: 5} {size: 7}
    for part in channel.unary_stream("/grpc.testing.TestService/StreamingOutputCall", **raw)(ask, timeout=20):
        print("part", len(part))
    parts = channel.stream_stream("/grpc.testing.TestService/FullDuplexCall", **raw)(iter([ask, ask]), timeout=20)
    print("duplex", sum(1 for _ in parts))
except grpc.RpcError as e:
    print(e.code(), e.details())
    sys.exit(1)
