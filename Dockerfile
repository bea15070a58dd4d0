# Images of the cluster's programs, for amd64 and arm64:
#
#   docker buildx build --target attache-sidecar --platform linux/amd64,linux/arm64 \
#     --build-arg VERSION=v0.1.0 --build-arg SOURCE_DATE_EPOCH=0 --output type=image,rewrite-timestamp=true,name=... .
#
# The same for --target attache-control. No shell, no package manager, no root.
# Without a registry `make images` packs the same programs by itself, and
# `make dockerfile` builds this file on bases of this machine (test/dockerfile).
# Pin both by digest in a release: a tag may move.
ARG GO_IMAGE=docker.io/library/golang:1.26.8-bookworm
ARG BASE_IMAGE=gcr.io/distroless/static-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
ARG TARGETARCH VERSION=dev
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
# What could differ between two builds of the same sources is left out: paths,
# the state of the checkout, the C toolchain.
ENV CGO_ENABLED=0 GOOS=linux GOFLAGS=-trimpath
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    GOARCH=${TARGETARCH} go build -buildvcs=false \
      -ldflags="-s -w -X github.com/attache-dev/attache/internal/version.version=${VERSION}" \
      -o /out/ ./cmd/attache ./cmd/attache-sidecar ./cmd/attache-control && \
    go run ./internal/release/filecap /out/attache-sidecar

# The sidecar's user is exempt from redirection: no other container may have it.
FROM ${BASE_IMAGE} AS attache-sidecar
# No --chown: changing the owner, root anyway, would drop the file capability.
COPY --from=build --chmod=0755 /out/attache-sidecar /attache-sidecar
USER 64200:64200
ENTRYPOINT ["/attache-sidecar"]

# attache searches and verifies the record store where it is, by kubectl exec.
FROM ${BASE_IMAGE} AS attache-control
COPY --from=build --chmod=0755 /out/attache /attache
COPY --from=build --chmod=0755 /out/attache-control /attache-control
USER 65532:65532
ENTRYPOINT ["/attache-control"]
