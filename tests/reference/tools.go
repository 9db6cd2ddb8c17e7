//go:build tools

// Package reference names Kubernetes' own programs: an API server to compare with (`cargo run --package coracle-tests --bin compare` builds and runs
// it), controllers and a scheduler to work at ours (`--bin planes`).
package reference

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
)
