package test

import "testing"

// TestUnfinishedEndpointIsMendedLater: an interface that cannot be made again is
// tried by every command, until it can.
func TestUnfinishedEndpointIsMendedLater(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	pending := func(want int) {
		t.Helper()
		var status struct{ Pending int }
		if h.EbpnetJSON(t, &status, "status"); status.Pending != want {
			t.Errorf("%d changes are pending, want %d", status.Pending, want)
		}
	}
	a.Run(t, "ip", "link", "del", "eth0")
	a.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other") // its name is taken
	for _, network := range []string{"one", "two"} {
		h.Ebpnet(t, "network", "create", network, "--subnet", map[string]string{"one": "10.7.1.0/24", "two": "10.7.2.0/24"}[network])
		pending(1)
	}
	ping(t, h.Netns, b.IP4)
	a.Run(t, "ip", "link", "del", "eth0")
	h.Ebpnet(t, "network", "rm", "one")
	pending(0)
	pingAll(t, a, b)
}
