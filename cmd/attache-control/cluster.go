package main

import (
	"fmt"
	"strconv"
	"strings"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// oldest is the first minor version of Kubernetes 1 whose native sidecars are
// not behind a feature gate.
const oldest = 33

// supported refuses clusters without native sidecars: a pod there would start
// its agent beside no sidecar, or end with it running.
func supported(config *rest.Config) error {
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	v, err := d.ServerVersion()
	if err != nil {
		return fmt.Errorf("ask the cluster's version: %w", err)
	}
	return checkVersion(v.Major, v.Minor, v.GitVersion)
}

func checkVersion(major, minor, full string) error {
	// Vendors write the minor version as "33+".
	m, err := strconv.Atoi(strings.TrimRight(minor, "+"))
	if err != nil || major != "1" || m < oldest {
		return fmt.Errorf("the cluster is Kubernetes %s; Attaché needs 1.%d or newer, for native sidecars", full, oldest)
	}
	return nil
}
