package testutil

import (
	"net/netip"
	"testing"
)

// Two Open vSwitches understand each other: what a test of ebpnet against one
// of them finds is not the fault of how it was set up here.
func TestOVSPeers(t *testing.T) {
	t.Parallel()
	hosts := []*Host{NewHost(t, "a"), NewHost(t, "b")}
	u := NewUnderlay(t, hosts...)
	ovs := []*OVS{NewOVS(t, hosts[0], u), NewOVS(t, hosts[1], u)}
	addresses := []string{"172.30.0.10/24", "172.30.0.20/24"}
	var containers []*Container
	for i, o := range ovs {
		b := o.NewBridge(t, "br-int")
		b.AddGRE(t, "gre", ovs[1-i].IP4, "key=42")
		containers = append(containers, b.NewContainer(t, "c", 1458, netip.MustParsePrefix(addresses[i])))
	}
	for i, c := range containers {
		c.Run(t, "ping", "-n", "-c", "1", "-W", "2", containers[1-i].IP4.String())
	}
	ovs[1].Vsctl(t, "set", "interface", "gre", "options:key=43")
	ovs[1].Settle(t)
	if out, err := containers[0].Try("ping", "-n", "-c", "1", "-W", "0.4", containers[1].IP4.String()); err == nil {
		t.Errorf("a wrong key gets through:\n%s", out)
	}
}
