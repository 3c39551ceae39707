//go:build kernels

package test

import (
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// A VLAN's device on top of an uplink is an uplink, too. The kernel tier runs
// this test: its kernels have VLANs.
func TestVLANOfAnUplink(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	vlan := []string{"up", "type", "vlan", "id", "100"}
	h.Run(t, "ip", append([]string{"link", "add", upper, "link", testutil.Uplink}, vlan...)...)
	u.Outside.Run(t, "ip", append([]string{"link", "add", upper, "link", "bridge"}, vlan...)...)
	for _, path := range paths(h, u) {
		move(t, u.Outside, path.outside, "bridge", upper)
	}
	worksByBoth(t, h, u)
}
