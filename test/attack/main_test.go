// Package attack attacks the datapath as root in a container. It sends crafted
// frames from a container that may speak to nobody, from one that may speak to
// one port, and from one that may speak to its network. Sniffers stand in every
// other container, at both hosts' stacks and on the underlay. The package also
// floods the host (attack-floods of the Makefile).
package attack

import (
	"os"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }
