package testutil

import (
	"net"
	"net/netip"
	"testing"
)

// Device is the name that ebpnet gives a container's interface.
const Device = "eth0"

// Endpoint is what `ebpnet -o json endpoint ls` says of one.
type Endpoint struct {
	Name      string       `json:"name"`
	Network   string       `json:"network"`
	MAC       string       `json:"mac"`
	Addresses []netip.Addr `json:"addresses"`
	Tunnel    string       `json:"tunnel"`
}

// Container is a network namespace that is an endpoint on a host. The name of
// the endpoint is Endpoint, that of the namespace is Name.
type Container struct {
	*Netns
	Host     *Host
	Endpoint string
	MAC      net.HardwareAddr
	IP4, IP6 netip.Addr // zero if its network lacks the family
}

// NewContainer makes a namespace and adds it to the network as the endpoint
// called name.
func (h *Host) NewContainer(t testing.TB, name, network string, args ...string) *Container {
	t.Helper()
	c := &Container{Netns: NewNetns(t, name), Host: h, Endpoint: name}
	add := []string{"endpoint", "add", name, "--network", network, "--netns", c.Name}
	h.Ebpnet(t, append(add, args...)...)
	c.readAddresses(t)
	return c
}

// Again adds the container to another network too, by the interface, as the
// endpoint called name.
func (c *Container) Again(t testing.TB, name, network, ifname string, args ...string) *Container {
	t.Helper()
	again := &Container{Netns: c.Netns, Host: c.Host, Endpoint: name}
	add := []string{"endpoint", "add", name, "--network", network, "--netns", c.Name, "--ifname", ifname}
	c.Host.Ebpnet(t, append(add, args...)...)
	again.readAddresses(t)
	return again
}

func (c *Container) readAddresses(t testing.TB) {
	t.Helper()
	var e Endpoint
	c.Host.EbpnetJSON(t, &e, "endpoint", "inspect", c.Endpoint)
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		t.Fatalf("endpoint %s: %v", c.Endpoint, err)
	}
	c.MAC = mac
	for _, a := range e.Addresses {
		if a.Is4() {
			c.IP4 = a
		} else {
			c.IP6 = a
		}
	}
}

// Addresses gives the container's addresses, IPv4 first.
func (c *Container) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, a := range []netip.Addr{c.IP4, c.IP6} {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}
