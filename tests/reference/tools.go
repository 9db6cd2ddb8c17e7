//go:build tools

// Package reference names what makes a real API server to compare with: `cargo run --package coracle-tests --bin compare` builds and runs them.
package reference

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
)
