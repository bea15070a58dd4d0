#!/usr/bin/env bash
# Builds the programs of a Kubernetes cluster from their Go modules into
# .cache/bin. Says what it builds and how long each took; a stamp beside each
# makes the next call take a moment. Two calls at once wait for each other.
#
#   test/cluster/build.sh api    etcd, kube-apiserver, kubectl: enough for tests of webhooks, CRDs and guards;
#                                and Helm 4 and 3, for tests of the chart
#   test/cluster/build.sh all    also the programs of a node, and CoreDNS
#
# From an empty build cache, on two cores: api about 9 minutes, all about 15.
set -euo pipefail
what=${1:-all}
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=$root/.cache/bin
tools=$here/tools
addons=$tools/addons
mkdir -p "$bin"

exec 9>"$bin/.cluster.lock"
flock -n 9 || {
	echo "cluster  waiting for another build of these programs"
	flock 9
}

# version MODULE DIR: the module's version in DIR/go.mod.
version() { awk -v m="$1" '{ for (i = 1; i < NF; i++) if ($i == m) { print $(i + 1); exit } }' "$2/go.mod"; }
kube=$(version k8s.io/kubernetes "$tools")
minor=${kube#v1.}
minor=${minor%%.*}

# Without these a build from modules calls itself v0.0.0-master, and what
# depends on the version (emulation, defaults of feature gates) misjudges.
flags="-s -w"
for pkg in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	flags+=" -X $pkg.gitVersion=$kube -X $pkg.gitMajor=1 -X $pkg.gitMinor=$minor"
	flags+=" -X $pkg.gitTreeState=clean -X $pkg.gitCommit=modules -X $pkg.buildDate=2026-01-01T00:00:00Z"
done

# program NAME DIR PACKAGE STAMP FLAGS
program() {
	local name=$1 dir=$2 package=$3 stamp=$4 flags=$5 out=$bin/$1 start=$SECONDS
	if [ -x "$out" ] && [ "$(cat "$out.version" 2>/dev/null)" = "$stamp" ]; then
		return 0
	fi
	echo "cluster  building $name $stamp"
	# A rename at the end: a server that runs keeps its file, and a build
	# that is cut short leaves no half of one.
	(cd "$dir" && GOFLAGS=-mod=readonly GOWORK=off CGO_ENABLED=0 nice -n "${CLUSTER_NICE:-10}" \
		go build -ldflags "$flags" -o "$out.new" "$package") 9>&-
	mv "$out.new" "$out"
	echo "$stamp" >"$out.version"
	printf 'cluster  built %s in %d min %02d s\n' "$name" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
}

kubernetes() { program "$1" "$tools" "k8s.io/kubernetes/cmd/$1" "$kube" "$flags"; }

program etcd "$tools" go.etcd.io/etcd/server/v3 "$(version go.etcd.io/etcd/server/v3 "$tools")" "-s -w"
kubernetes kube-apiserver
kubernetes kubectl
helm4=$(version helm.sh/helm/v4 "$addons")
helm3=$(version helm.sh/helm/v3 "$addons")
program helm "$addons" helm.sh/helm/v4/cmd/helm "$helm4" "-s -w -X helm.sh/helm/v4/internal/version.version=$helm4"
program helm3 "$addons" helm.sh/helm/v3/cmd/helm "$helm3" "-s -w -X helm.sh/helm/v3/internal/version.version=$helm3"
case $what in
api) ;;
all)
	kubernetes kube-controller-manager
	kubernetes kube-scheduler
	kubernetes kubelet
	kubernetes kube-proxy
	program coredns "$addons" ./coredns "$(version github.com/coredns/coredns "$addons")" "-s -w"
	;;
*)
	echo "usage: test/cluster/build.sh [api|all]" >&2
	exit 2
	;;
esac
echo "cluster  $what ready in $bin ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
