package test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Fifty containers that are started at once all reach each other.
func TestManyContainersAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, withoutRules()...)
	s.play(t, []scenario{{"ebpnet", manyAtOnce}})
}

func manyAtOnce(t *testing.T, s *site) {
	const many = 50
	s.createNet(t, "net")
	name := func(i int) string { return fmt.Sprintf("box%d", i) }
	began := time.Now()
	var starting []*testutil.Process
	for i := range many {
		starting = append(starting, s.docker.Begin(t, "run", "--detach", "--name", name(i), "--network", "net", testutil.Image))
	}
	for _, p := range starting {
		p.Wait(t)
	}
	t.Logf("driver %s: %d containers have started in %v", s.driver, many, time.Since(began).Round(time.Millisecond))

	var all []*testutil.DockerContainer
	listening := make(map[string]net.PacketConn)
	for i := range many {
		c := s.docker.Container(t, name(i), "net")
		all, listening[c.Name] = append(all, c), listen(t, c)
	}
	// By frames made here: 2450 neighbours are more than a kernel remembers.
	for _, from := range all {
		tap := from.NewTap(t, testutil.Device)
		for _, to := range all {
			if from != to {
				tap.Send(t, udpFrame(t, from.MAC, to.MAC, netip.AddrPortFrom(from.IP4, service), netip.AddrPortFrom(to.IP4, service), "hello"))
			}
		}
	}
	for _, c := range all {
		for heard := map[string]bool{}; len(heard) < many-1; {
			_, from, err := listening[c.Name].ReadFrom(make([]byte, 1))
			if err != nil {
				t.Fatalf("%s has heard of %d others: %v", c.Name, len(heard), err)
			}
			heard[from.String()] = true
		}
	}
}

// listen opens a UDP socket in a container, for long enough.
func listen(t *testing.T, c *testutil.DockerContainer) net.PacketConn {
	t.Helper()
	const limit = 15 * time.Second
	var socket net.PacketConn
	var err error
	c.Do(func() { socket, err = net.ListenPacket("udp4", fmt.Sprintf(":%d", service)) })
	if err == nil {
		err = socket.SetReadDeadline(time.Now().Add(limit))
	}
	if err != nil {
		t.Fatalf("in %s: %v", c.Name, err)
	}
	t.Cleanup(func() { socket.Close() })
	return socket
}
