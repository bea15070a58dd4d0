#!/usr/bin/env bash
# Installs what the suites need and this machine lacks: Debian packages by apt,
# npm trees below .cache/npm. Safe to run twice; the second run takes a moment.
#
#   test/deps.sh demo    the demo's servers and its agent program
#   test/deps.sh test    every client of the compatibility matrix
#   test/deps.sh aws     the clients of the AWS suite
#   test/deps.sh ui      a browser, and what drives it
#   test/deps.sh clickhouse ClickHouse as a library, for make audit
#   test/deps.sh bench   the peers of the benchmark
#   test/deps.sh dockerfile a builder of images, and qemu
#   test/deps.sh cluster what a Kubernetes node needs beside Kubernetes' own programs
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-test}
cache=$PWD/.cache
mkdir -p "$cache/npm" "$cache/stamps"

say() { printf 'deps  %s\n' "$*"; }

# apt_need COMMAND_OR_FILE PACKAGE...: installs the packages unless it exists.
missing=()
apt_need() {
	local probe=$1
	shift
	case $probe in
	/*) [ -e "$probe" ] && return 0 ;;
	py:*) /usr/bin/python3 -c "import ${probe#py:}" >/dev/null 2>&1 && return 0 ;;
	*) command -v "$probe" >/dev/null 2>&1 && return 0 ;;
	esac
	missing+=("$@")
}

apt_install() {
	[ ${#missing[@]} -gt 0 ] || return 0
	local sudo=
	if [ "$(id -u)" -ne 0 ]; then
		command -v sudo >/dev/null || {
			echo "deps: install these Debian packages as root, then run again: ${missing[*]}" >&2
			exit 1
		}
		sudo=sudo
	fi
	say "apt-get install ${missing[*]}"
	# Servers must not start by themselves (invoke-rc.d honours policy-rc.d).
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		printf '#!/bin/sh\nexit 101\n' | $sudo tee /usr/sbin/policy-rc.d >/dev/null
		$sudo chmod +x /usr/sbin/policy-rc.d
		trap "$sudo rm -f /usr/sbin/policy-rc.d" EXIT
	fi
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get update -qq
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$cache/apt.log" 2>&1 || {
		tail -n 30 "$cache/apt.log" >&2
		exit 1
	}
	missing=()
}

# npm_tree NAME: `npm ci` of test/npm/NAME into .cache/npm/NAME, once for each
# state of its lock file.
npm_tree() {
	local name=$1 from=test/npm/$1 to=$cache/npm/$1 sum
	sum=$(cat "$from/package.json" "$from/package-lock.json" | sha256sum | cut -c1-16)
	[ "$(cat "$cache/stamps/npm-$name" 2>/dev/null)" = "$sum" ] && return 0
	say "npm ci $name"
	rm -rf "$to"
	mkdir -p "$to"
	cp "$from/package.json" "$from/package-lock.json" "$to/"
	(cd "$to" && npm ci --no-audit --no-fund --loglevel=error >/dev/null)
	echo "$sum" >"$cache/stamps/npm-$name"
}

apt_need curl curl
apt_need /etc/ssl/certs/ca-certificates.crt ca-certificates
apt_need node nodejs
apt_need npm npm
apt_need /usr/bin/python3 python3
apt_need py:requests python3-requests
aws_clients() {
	apt_need py:boto3 python3-boto3
	apt_need /usr/lib/python3/dist-packages/botocore python3-botocore
	apt_need /usr/bin/aws awscli
	apt_need /usr/bin/s3cmd s3cmd
	apt_need /usr/bin/rclone rclone
}

case $what in
test)
	aws_clients
	apt_need wget wget
	apt_need git git
	apt_need ssh-agent openssh-client
	apt_need py:httpx python3-httpx
	apt_need py:aiohttp python3-aiohttp
	apt_need ruby ruby
	apt_need py:grpc python3-grpcio
	apt_need py:google.protobuf python3-protobuf
	apt_need py:pip python3-pip
	apt_need java default-jdk-headless
	apt_need keytool default-jdk-headless
	# Sparse registries need cargo 1.68; Debian 12 has one under another name.
	if [ "$(cargo --version 2>/dev/null | cut -d. -f2 | grep -x '[0-9]*' || echo 0)" -lt 68 ]; then
		if grep -q 'VERSION_ID="12"' /etc/os-release; then missing+=(cargo-web); else missing+=(cargo); fi
	fi
	apt_need gcc gcc
	[ -n "$(ls /usr/lib/postgresql/*/bin/postgres 2>/dev/null)" ] || missing+=(postgresql)
	apt_need ip iproute2 # test/sidecar makes network namespaces
	apt_need nft nftables
	# Clients that are shown why they are refused.
	apt_need psql postgresql-client
	apt_need mariadb mariadb-client
	apt_need redis-cli redis-tools
	apt_need rsyslogd rsyslog rsyslog-gnutls # the syslog sink ships to it
	apt_need nsenter util-linux
	;;
aws) aws_clients ;;
ui) apt_need /usr/bin/chromium chromium fonts-dejavu-core ;;
cluster)
	aws_clients
	apt_need git git
	apt_need containerd containerd
	apt_need runc runc
	apt_need /usr/lib/cni/bridge containernetworking-plugins
	apt_need nft nftables # kube-proxy and the checks of redirection call it
	apt_need ip iproute2
	apt_need unshare util-linux
	apt_need openssl openssl
	apt_need jlink default-jdk-headless
	;;
dockerfile)
	apt_need buildah buildah
	apt_need busybox busybox-static
	apt_need qemu-aarch64-static qemu-user-static
	;;
bench)
	apt_need nginx nginx-light
	apt_need haproxy haproxy
	apt_need squid squid-openssl
	apt_need mitmdump mitmproxy
	;;
esac
apt_install
# test/servers installs the packages of the token server by itself.
case $what in
ui) npm_tree ui ;;
clickhouse) npm_tree clickhouse ;;
test | aws | cluster)
	npm_tree clients # has the newer node that the SDK wants
	[ "$what" = cluster ] || npm_tree aws
	;;
esac
