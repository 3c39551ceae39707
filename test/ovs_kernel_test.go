//go:build kernels

package test

import (
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Open vSwitch's datapath in the kernel is at the other end of the tunnel.
func TestOVSKernelDatapath(t *testing.T) {
	t.Parallel()
	p := joinOVS(t, keyed, func(t testing.TB, h *testutil.Host, _ *testutil.Underlay) *testutil.OVS {
		return testutil.NewKernelOVS(t, h)
	})
	p.resolve(t)
	p.broadcast(t)
	p.fit(t, underlayMTU-keyed.headers)
	for _, ends := range [][2]*testutil.Container{{p.web, p.far}, {p.far, p.web}} {
		serve(t, ends[1].Netns, service)
		for _, address := range ends[1].Addresses() {
			for _, network := range protocols {
				connects(t, ends[0].Netns, network, at(address, service))
			}
		}
	}
	p.host.Ebpnet(t, "tunnel", "rm", "ovs")
	p.host.Ebpnet(t, "tunnel", "add", "elsewhere", "--remote", p.underlay.IP4.String())
	noPing(t, p.host, "unknown_tunnel", p.far.Netns, p.web.IP4)
}
