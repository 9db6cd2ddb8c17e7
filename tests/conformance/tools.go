//go:build tools

package conformance

import _ "github.com/onsi/ginkgo/v2/ginkgo" // ./run builds it.
