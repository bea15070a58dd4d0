#!/usr/bin/env bash
# Builds the Dockerfile for real, by buildah as root, without a registry: its two
# bases are made of this machine's Go and CA certificates. For each platform it
# builds twice from the first step, expects the same digest, the same program
# as `make images` packs, the user and the file capability, and starts it (arm64
# by qemu). Ends in "N passed, N failed". VERSION and PLATFORMS may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${VERSION:-test}
platforms=${PLATFORMS:-amd64 arm64}
if [ "$(id -u)" -ne 0 ]; then
	echo "SKIPPED, THE DOCKERFILE IS NOT BUILT: not root"
	exit 0
fi
test/deps.sh dockerfile
work=$(mktemp -d "${TMPDIR:-/var/tmp}/attache-dockerfile-XXXXXX")
mkdir "$work/out"
export TMPDIR=$work STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
b() { buildah --root "$work/root" --runroot "$work/run" "$@"; }
cleanup() {
	b rm --all >/dev/null 2>&1 || true
	rm -rf "$work"
}
trap cleanup EXIT
native=$(go env GOHOSTARCH)
passed=0 failed=0
check() { # check WHAT COMMAND...
	local what=$1
	shift
	if "$@"; then
		passed=$((passed + 1))
		echo "ok    $what"
	else
		failed=$((failed + 1))
		echo "FAIL  $what"
	fi
}

# A builder: Go and a shell. Modules and compiled packages are this machine's,
# by which alone it may differ from golang:*-bookworm.
c=$(b from scratch)
b copy -q "$c" "$(go env GOROOT)" /usr/local/go >/dev/null
b copy -q "$c" "$(command -v busybox)" /bin/busybox >/dev/null
b copy -q "$c" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >/dev/null
b run "$c" /bin/busybox sh -c '/bin/busybox mkdir -p /tmp /root /go && /bin/busybox ln -s busybox /bin/sh'
b config --env PATH=/usr/local/go/bin:/bin --env GOPATH=/go --env GOTOOLCHAIN=local --env GOCACHE=/gocache \
	--env "GOPROXY=file:///gomod,$(go env GOPROXY)" "$c"
b commit -q "$c" localhost/builder >/dev/null
b rm "$c" >/dev/null
# Of the last stage: certificates only. It names no platform but this machine's,
# for buildah 1.28 looks for all bases by the platform of the first.
c=$(b from scratch)
b copy -q "$c" /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt >/dev/null
b commit -q --timestamp 0 "$c" localhost/base >/dev/null
b rm "$c" >/dev/null

build() { # build TARGET ARCH NUMBER
	b build --no-cache --quiet --layers=false --timestamp 0 --target "$1" --platform "linux/$2" \
		--volume "$(go env GOMODCACHE)/cache/download:/gomod:ro" --volume "$(go env GOCACHE):/gocache" \
		--build-arg "BUILDPLATFORM=linux/$native" --build-arg GO_IMAGE=localhost/builder --build-arg BASE_IMAGE=localhost/base --build-arg "VERSION=$version" \
		--tag "localhost/$1:$2-$3" . >/dev/null
	b push -q "localhost/$1:$2-$3" "oci:$work/out/$1-$2-$3" >/dev/null
}
manifest() { sed -E 's/.*"digest":"sha256:([0-9a-f]+)".*/\1/' "$1/index.json"; }
blob() { cat "$1/blobs/sha256/$2"; }
member() { # member DIR NAME: the file NAME of the last layer
	blob "$1" "$(blob "$1" "$(manifest "$1")" | grep -oE '"digest":"sha256:[0-9a-f]+"' | tail -1 | grep -oE '[0-9a-f]{64}')" | zcat -f | tar --extract --to-stdout --file - "$2"
}
holds() { # holds DIR NAME: the file NAME of whichever layer has it
	local l
	for l in $(blob "$1" "$(manifest "$1")" | grep -oE '"digest":"sha256:[0-9a-f]+"' | tail -n +2 | grep -oE '[0-9a-f]{64}'); do
		blob "$1" "$l" | zcat -f | tar --extract --to-stdout --file - "$2" 2>/dev/null && return
	done
}
capability() { # of NAME in the last layer, as its header has it
	blob "$1" "$(blob "$1" "$(manifest "$1")" | grep -oE '"digest":"sha256:[0-9a-f]+"' | tail -1 | grep -oE '[0-9a-f]{64}')" | zcat -f | grep -c -a 'SCHILY.xattr.security.capability=' || true
}
config() { # config DIR FIELD: of the image's configuration
	blob "$1" "$(blob "$1" "$(manifest "$1")" | grep -oE '"digest":"sha256:[0-9a-f]+"' | head -1 | grep -oE '[0-9a-f]{64}')" | grep -oE "\"$2\":\"[0-9a-z:]+\"" | head -1 | cut -d'"' -f4
}

for arch in $platforms; do
	for target in attache-sidecar attache-control; do
		started=$SECONDS
		build "$target" "$arch" 1
		build "$target" "$arch" 2
		one=$work/out/$target-$arch-1
		check "$target for $arch: twice built in $((SECONDS - started)) s, sha256:$(manifest "$one")" test "$(manifest "$one")" = "$(manifest "$work/out/$target-$arch-2")"
		member "$one" "$target" >"$work/$target-$arch"
		chmod 755 "$work/$target-$arch"
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false \
			-ldflags="-s -w -X github.com/attache-dev/attache/internal/version.version=$version" -o "$work/ours" "./cmd/$target"
		check "$target for $arch: the program is that of make images" cmp "$work/$target-$arch" "$work/ours"
		if [ "$target" = attache-control ]; then
			CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false \
				-ldflags="-s -w -X github.com/attache-dev/attache/internal/version.version=$version" -o "$work/ours" ./cmd/attache
			holds "$one" attache >"$work/attache-$arch"
			check "$target for $arch: holds attache, as make images does" cmp "$work/attache-$arch" "$work/ours"
		fi
		want=65532:65532 caps=0
		[ "$target" = attache-sidecar ] && want=64200:64200 caps=1
		check "$target for $arch: user $want" test "$(config "$one" User) $(config "$one" architecture)" = "$want $arch"
		check "$target for $arch: $caps file capabilities" test "$(capability "$one")" = "$caps"
		run=()
		[ "$arch" = "$native" ] || run=("qemu-${arch/arm64/aarch64}-static")
		check "$target for $arch: starts${run[*]:+ by ${run[*]}}" grep -q "$version" <<<"$("${run[@]}" "$work/$target-$arch" version 2>&1)"
	done
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
