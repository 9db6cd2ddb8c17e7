//go:build tools

package conformance

import _ "github.com/onsi/ginkgo/v2/ginkgo" // It runs the specs side by side.
