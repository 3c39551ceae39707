package docker

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// shop makes a network of a user of the command line's.
func (f *fakeAgent) shop(t *testing.T) {
	t.Helper()
	n, err := spec.NewNetwork("shop", []string{"10.88.0.0/16", "fd00:88::/64"}, "10.88.0.9", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.CreateNetwork(n); err != nil {
		t.Fatal(err)
	}
}

// state gives what the store has.
func (f *fakeAgent) state(t *testing.T) (networks []spec.Network, endpoints []spec.Endpoint, ports []spec.Port) {
	t.Helper()
	err := f.View(func(tx *store.Tx) (err error) {
		var failed [2]error
		networks, failed[0] = tx.Networks()
		endpoints, failed[1] = tx.Endpoints()
		ports, err = tx.Ports()
		return errors.Join(err, failed[0], failed[1])
	})
	if err != nil {
		t.Fatal(err)
	}
	return networks, endpoints, ports
}

func createNetwork(options string) string { return strings.Replace(withOptions, "OPTIONS", options, 1) }

// about is a call about an endpoint, or about its network.
func about(endpoint string) string {
	return fmt.Sprintf(`{"NetworkID":"%s","EndpointID":"%s"}`, netID, endpoint)
}

// createEndpoint and publish are as Docker Engine 20.10 calls.
func createEndpoint(id, address, mac string) string {
	return fmt.Sprintf(`{"NetworkID":"%s","EndpointID":"%s","Interface":{"Address":"%s","AddressIPv6":"","MacAddress":"%s"},`+
		`"Options":{"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80},{"Proto":6,"Port":443}],"com.docker.network.portmap":[]}}`,
		netID, id, address, mac)
}

func publish(id, bindings string) string {
	return fmt.Sprintf(`{"NetworkID":"%s","EndpointID":"%s","Options":{"com.docker.network.endpoint.exposedports":[],"com.docker.network.portmap":%s}}`,
		netID, id, bindings)
}

func TestNetworkOfItsOwn(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	s := serve(t, p)
	s.call(t, "NetworkDriver.CreateNetwork", createNetwork(`{}`))
	s.call(t, "NetworkDriver.CreateNetwork", createNetwork(`{}`)) // again
	networks, _, _ := f.state(t)
	if len(networks) != 1 || networks[0].Name != "1343e69104d5" || !networks[0].Transient {
		t.Errorf("%+v", networks)
	}
	other := strings.ReplaceAll(createNetwork(`{}`), netID, "0"+netID[1:])
	s.refused(t, "NetworkDriver.CreateNetwork", other, "does not fit")

	s.call(t, "NetworkDriver.CreateEndpoint", createEndpoint(firstID, "172.18.0.2/16", ""))
	s.call(t, "NetworkDriver.DeleteNetwork", about("")) // with what a killed engine has left
	s.call(t, "NetworkDriver.DeleteNetwork", about("")) // again
	if networks, endpoints, _ := f.state(t); len(networks)+len(endpoints) != 0 {
		t.Errorf("after it was deleted: %+v %+v", networks, endpoints)
	}
}

// An endpoint that a user of the command line made keeps the network.
func TestStrangerOnNetwork(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	s := serve(t, p)
	s.call(t, "NetworkDriver.CreateNetwork", createNetwork(`{}`))
	if _, _, err := f.AddEndpoint(spec.Endpoint{Name: "stranger", Network: "1343e69104d5"}, nil); err != nil {
		t.Fatal(err)
	}
	s.refused(t, "NetworkDriver.DeleteNetwork", about(""), "in use")
	if _, endpoints, _ := f.state(t); len(endpoints) != 1 {
		t.Errorf("%+v", endpoints)
	}
}

func TestJoinedNetwork(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	s := serve(t, p)
	create := func(pool4, gateway4, pool6, gateway6 string, internal bool) string {
		text := `{"NetworkID":"` + netID + `","Options":{"com.docker.network.generic":{"ebpnet.network":"shop"},` +
			fmt.Sprintf(`"com.docker.network.internal":%v},"IPv4Data":[{"Pool":"%s","Gateway":"%s"}],"IPv6Data":[`, internal, pool4, gateway4)
		if pool6 != "" {
			text += fmt.Sprintf(`{"Pool":"%s","Gateway":"%s"}`, pool6, gateway6)
		}
		return text + "]}"
	}
	right := create("10.88.0.0/16", "10.88.0.9/16", "fd00:88::/64", "fd00:88::1/64", false)
	s.refused(t, "NetworkDriver.CreateNetwork", right, `"shop"`)
	f.shop(t)
	const flags = "--ipam-driver ebpnet --ipam-opt ebpnet.network=shop --subnet 10.88.0.0/16 --gateway 10.88.0.9 --ipv6 --subnet fd00:88::/64 --gateway fd00:88::1"
	for _, wrong := range []string{
		create("10.88.0.0/16", "10.88.0.9/16", "", "", false),
		create("10.88.0.0/16", "10.88.0.1/16", "fd00:88::/64", "fd00:88::1/64", false),
		create("10.89.0.0/16", "10.89.0.1/16", "fd00:88::/64", "fd00:88::1/64", false),
	} {
		s.refused(t, "NetworkDriver.CreateNetwork", wrong, flags)
	}
	s.refused(t, "NetworkDriver.CreateNetwork", create("10.88.0.0/16", "10.88.0.9/16", "fd00:88::/64", "fd00:88::1/64", true), "is not internal")

	s.call(t, "NetworkDriver.CreateNetwork", right)
	s.call(t, "NetworkDriver.CreateNetwork", right) // again
	networks, _, _ := f.state(t)
	if len(networks) != 1 || !slices.Equal(networks[0].Users, []spec.Identity{{Engine: "docker", ID: netID}}) {
		t.Errorf("%+v", networks)
	}
	s.call(t, "NetworkDriver.CreateEndpoint", createEndpoint(firstID, "10.88.0.2/16", ""))
	s.call(t, "NetworkDriver.DeleteEndpoint", about(firstID))
	s.call(t, "NetworkDriver.DeleteNetwork", about(""))
	if networks, _, _ = f.state(t); len(networks) != 1 || len(networks[0].Users) != 0 {
		t.Errorf("after it was deleted: %+v", networks)
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	s := serve(t, p)
	first := createEndpoint(firstID, "172.18.0.2/16", "")
	s.refused(t, "NetworkDriver.CreateEndpoint", first, "not found")
	s.call(t, "NetworkDriver.CreateNetwork", createNetwork(`{}`))

	for range 2 { // the second time as it got no answer
		if got, want := s.call(t, "NetworkDriver.CreateEndpoint", first), `{"Interface":{"Address":"","AddressIPv6":"","MacAddress":"02:eb:ac:12:00:02"}}`; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	_, endpoints, _ := f.state(t)
	if e := endpoints[0]; len(endpoints) != 1 || e.Name != "ce596cbb6dd5" || e.Network != "1343e69104d5" || !e.Handed() ||
		e.Container != (spec.Identity{Engine: "docker"}) || len(e.Expose) != 2 || e.Expose[0].First != 80 {
		t.Errorf("%+v", endpoints)
	}
	// Nothing that was asked for is in an answer, and all else is.
	all := createEndpoint(secondID, "172.18.0.3/16", "02:00:00:00:00:03")
	if got := s.call(t, "NetworkDriver.CreateEndpoint", all); got != `{"Interface":{"Address":"","AddressIPv6":"","MacAddress":""}}` {
		t.Error(got)
	}
	s.call(t, "NetworkDriver.DeleteEndpoint", about(secondID))
	least := fmt.Sprintf(`{"NetworkID":"%s","EndpointID":"%s"}`, netID, secondID)
	if got := s.call(t, "NetworkDriver.CreateEndpoint", least); !strings.Contains(got, `"Address":"172.18.255.254/16"`) || !strings.Contains(got, `"MacAddress":"02:`) {
		t.Error(got)
	}
	third := createEndpoint("3"+firstID[1:], "172.18.0.2/16", "")
	for change, words := range map[[2]string]string{
		{`"172.18.0.2/16"`, `"172.18.0.2"`}:                       "ADDRESS/BITS",
		{`"MacAddress":""`, `"MacAddress":"x"`}:                   `MAC "x"`,
		{`"Options":{`, `"Options":{"ebpnet.icc":"true",`}:        `"ebpnet.icc"`,
		{`[{"Proto":6,"Port":80},{"Proto":6,"Port":443}]`, `"x"`}: "exposedports",
	} {
		s.refused(t, "NetworkDriver.CreateEndpoint", strings.Replace(third, change[0], change[1], 1), words)
	}

	// What the engine gives out again, it has forgotten that it had given, unless
	// a container has it; what another has is another's.
	f.busy = []string{shortID(firstID)}
	s.refused(t, "NetworkDriver.CreateEndpoint", third, "in use")
	f.busy = nil
	s.call(t, "NetworkDriver.CreateEndpoint", third)
	if _, endpoints, _ = f.state(t); len(endpoints) != 2 || endpoints[0].Name != "3e596cbb6dd5" {
		t.Errorf("after an address was given out again: %+v", endpoints)
	}
	s.call(t, "NetworkDriver.DeleteEndpoint", about("3"+firstID[1:]))
	mine := spec.Endpoint{Name: "mine", Network: "1343e69104d5", Addresses: []netip.Addr{netip.MustParseAddr("172.18.0.2")}}
	if _, _, err := f.AddEndpoint(mine, nil); err != nil {
		t.Fatal(err)
	}
	s.refused(t, "NetworkDriver.CreateEndpoint", first, "in use")
	if err := f.RemoveEndpoint("mine"); err != nil {
		t.Fatal(err)
	}

	for range 2 {
		s.call(t, "NetworkDriver.DeleteEndpoint", about(firstID))
		s.call(t, "NetworkDriver.DeleteEndpoint", about(secondID))
	}
	if _, endpoints, _ = f.state(t); len(endpoints) != 0 {
		t.Errorf("after they were deleted: %+v", endpoints)
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ network, want string }{
		"IPv4": {
			createNetwork(`{"ebpnet.routes":"10.99.0.0/16"}`),
			`{"InterfaceName":{"SrcName":"ebc-1","DstPrefix":"eth"},"Gateway":"172.18.0.1",` +
				`"StaticRoutes":[{"Destination":"10.99.0.0/16","RouteType":0,"NextHop":"172.18.0.1"}],"DisableGatewayService":true}`,
		},
		"both families": {
			strings.Replace(bothFamilies, `internal":true`, `internal":false`, 1),
			`{"InterfaceName":{"SrcName":"ebc-1","DstPrefix":"eth"},"Gateway":"10.50.0.254","GatewayIPv6":"fd00:50::1",` +
				`"StaticRoutes":null,"DisableGatewayService":true}`,
		},
		"internal": {
			bothFamilies,
			`{"InterfaceName":{"SrcName":"ebc-1","DstPrefix":"eth"},"StaticRoutes":null,"DisableGatewayService":true}`,
		},
	} {
		p, _ := loaded(t)
		s := serve(t, p)
		s.call(t, "NetworkDriver.CreateNetwork", c.network)
		s.refused(t, "NetworkDriver.Join", about(firstID), `"ce596cbb6dd5"`)
		s.call(t, "NetworkDriver.CreateEndpoint", about(firstID))
		if got := s.call(t, "NetworkDriver.Join", about(firstID)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// Docker 20.10 tells what is exposed on an internal network only here.
func TestExposedWhenJoined(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	s := serve(t, p)
	s.call(t, "NetworkDriver.CreateNetwork", bothFamilies)
	s.call(t, "NetworkDriver.CreateEndpoint", about(firstID))
	s.call(t, "NetworkDriver.Join", publish(firstID, `[]`))
	told := strings.Replace(publish(firstID, `[]`), `exposedports":[]`, `exposedports":[{"Proto":6,"Port":80},{"Proto":6,"Port":81}]`, 1)
	s.call(t, "NetworkDriver.Join", told)
	s.call(t, "NetworkDriver.Join", about(firstID)) // which does not tell
	if _, endpoints, _ := f.state(t); len(endpoints) != 1 || !slices.Equal(endpoints[0].Expose, []spec.Ports{{Protocol: spec.TCP, First: 80, Last: 81}}) {
		t.Errorf("%+v", endpoints)
	}
	s.call(t, "NetworkDriver.Join", publish(firstID, `[]`))
	if _, endpoints, _ := f.state(t); len(endpoints[0].Expose) != 0 {
		t.Errorf("after it exposes nothing: %+v", endpoints)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	f.used = []uint16{7000, 7001, 9001}
	s := serve(t, p)
	s.call(t, "NetworkDriver.CreateNetwork", createNetwork(`{"com.docker.network.bridge.host_binding_ipv4":"127.0.0.1"}`))
	s.refused(t, "NetworkDriver.ProgramExternalConnectivity", publish(firstID, `[]`), `"ce596cbb6dd5"`)
	s.call(t, "NetworkDriver.CreateEndpoint", createEndpoint(firstID, "172.18.0.2/16", "02:00:00:00:00:02"))
	published := func(want ...string) {
		t.Helper()
		_, _, ports := f.state(t)
		if got := texts(ports); !slices.Equal(got, want) {
			t.Errorf("published is %v, want %v", got, want)
		}
	}
	s.call(t, "NetworkDriver.ProgramExternalConnectivity", publish(firstID, `[{"Proto":6,"Port":80,"HostPort":80,"HostPortEnd":80},`+
		`{"Proto":6,"Port":81},{"Proto":6,"Port":7,"HostIP":"0.0.0.0","HostPort":7000,"HostPortEnd":7005}]`))
	published("127.0.0.1:80:80/tcp", "0.0.0.0:7002:7/tcp", "127.0.0.1:61000:81/tcp")

	// All or nothing.
	s.refused(t, "NetworkDriver.ProgramExternalConnectivity", publish(firstID, `[{"Proto":6,"Port":82,"HostPort":82},`+
		`{"Proto":6,"Port":7,"HostPort":7000,"HostPortEnd":7001}]`), "port 7001 in use")
	published()
	s.refused(t, "NetworkDriver.ProgramExternalConnectivity", publish(firstID, `[{"Proto":6,"Port":82,"HostPort":9001}]`), "port 9001 in use")
	s.refused(t, "NetworkDriver.ProgramExternalConnectivity", publish(firstID, `7`), "com.docker.network.portmap")

	s.call(t, "NetworkDriver.ProgramExternalConnectivity", publish(firstID, `[{"Proto":6,"Port":82,"HostPort":82}]`))
	published("127.0.0.1:82:82/tcp")
	if _, err := f.SetPorts(shortID(firstID), "", []spec.Port{{Protocol: spec.TCP, First: 83, Last: 83, TargetFirst: 83, TargetLast: 83}}); err != nil {
		t.Fatal(err)
	}
	s.call(t, "NetworkDriver.RevokeExternalConnectivity", about(firstID))
	published("83:83/tcp") // which is the user's
	s.call(t, "NetworkDriver.DeleteEndpoint", about(firstID))
	s.call(t, "NetworkDriver.RevokeExternalConnectivity", about(firstID))
}

func TestPublishRouted(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	s := serve(t, p)
	s.call(t, "NetworkDriver.CreateNetwork", createNetwork(`{"com.docker.network.bridge.gateway_mode_ipv4":"routed"}`))
	s.call(t, "NetworkDriver.CreateEndpoint", createEndpoint(firstID, "172.18.0.2/16", ""))
	s.call(t, "NetworkDriver.ProgramExternalConnectivity", publish(firstID, `[{"Proto":6,"Port":80,"HostPort":8080},{"Proto":6,"Port":81}]`))
	if _, _, ports := f.state(t); len(ports) != 1 || ports[0].String() != "172.18.0.2:80-81:80-81/tcp" {
		t.Errorf("%v", ports)
	}
}
