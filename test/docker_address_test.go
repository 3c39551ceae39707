package test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func askedAddresses(t *testing.T, s *site) {
	const mac, mtu, header = "02:42:ac:1e:00:63", 1400, 20 + 8 // IP and ICMP echo
	s.createNet(t, "net", bothFamilies("--gateway", "172.30.0.9",
		"--opt", "com.docker.network.driver.mtu="+strconv.Itoa(mtu))...)
	one := s.run(t, "one", "net", "--ip", "172.30.0.99", "--ip6", "fd00:30::99", "--mac-address", mac)
	two := s.run(t, "two", "net")
	for _, address := range []string{"172.30.0.99", "fd00:30::99"} {
		ping(t, two.Netns, netip.MustParseAddr(address))
		if out := one.Run(t, "ip", "-o", "addr", "show", "dev", testutil.Device); !strings.Contains(out, " "+address+"/") {
			t.Errorf("want %s:\n%s", address, out)
		}
	}
	device := one.Run(t, "ip", "link", "show", testutil.Device)
	for _, want := range []string{"link/ether " + mac, fmt.Sprintf("mtu %d ", mtu)} {
		if !strings.Contains(device, want) {
			t.Errorf("want %s: %s", want, device)
		}
	}
	expectRoutes(t, one, netip.MustParseAddr("172.30.0.9"), gateway6)
	ping(t, one.Netns, netip.MustParseAddr("172.30.0.9"))

	ping(t, one.Netns, two.IP4, "-M", "do", "-s", strconv.Itoa(mtu-header))
	if out, err := one.Try("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", strconv.Itoa(mtu-header+1), two.IP4.String()); err == nil {
		t.Errorf("a packet larger than the MTU gets through:\n%s", out)
	}
	for _, address := range []string{two.IP4.String(), "172.30.0.9"} {
		out, err := s.docker.Try("run", "--detach", "--network", "net", "--ip", address, testutil.Image)
		if err == nil || !strings.Contains(out, "Address already in use") {
			t.Errorf("%s: %v, %s; want it to be in use", address, err, out)
		}
	}
}

func severalNetworks(t *testing.T, s *site) {
	s.createNet(t, "front")
	s.createNet(t, "back", "--internal")
	web, db := s.run(t, "web", "front", "--publish", "8080:7000"), s.run(t, "db", "back")
	s.docker.Run(t, "network", "connect", "back", "web")
	inside := web.On(t, "back")
	sees(t, inside.Netns, "tcp", at(db.IP4, service), inside.IP4)
	connects(t, db.Netns, "tcp", at(inside.IP4, service))
	connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))
	serve(t, s.underlay.Outside, service)
	sees(t, web.Netns, "tcp", at(s.underlay.IP4, service), s.IP4)
	noneIsAnswered(t,
		attempt{db.Netns, "tcp", "", at(web.IP4, service)},
		attempt{db.Netns, "tcp", "", at(s.underlay.IP4, service)})
}

func connectedWhileRunning(t *testing.T, s *site) {
	s.createNet(t, "front")
	s.createNet(t, "back", "--subnet", other4)
	web, sibling, db := s.run(t, "web", "front", "--publish", "8080:7000"), s.run(t, "sibling", "front"), s.run(t, "db", "back")
	serve(t, s.underlay.Outside, service)
	running := connects(t, web.Netns, "tcp", at(sibling.IP4, service))
	connects(t, web.Netns, "tcp", at(s.underlay.IP4, service))

	// The engine moves the default route to back, which comes before front by
	// its name. What runs to the outside from front's address may end by that.
	s.docker.Run(t, "network", "connect", "back", "web")
	inside := web.On(t, "back")
	connects(t, db.Netns, "tcp", at(inside.IP4, service))
	connects(t, web.Netns, "tcp", at(s.underlay.IP4, service))
	running.MustAsk(t)
	// Nobody is answered by another network than the port's.
	for _, from := range []*testutil.Netns{s.underlay.Outside, s.Netns, sibling.Netns, db.Netns, web.Netns} {
		testutil.Eventually(t, "the published port answers "+from.Name, func() bool {
			c, err := from.Dial(t, "tcp", at(s.IP4, published))
			if err != nil {
				return false
			}
			defer c.Close()
			_, err = c.Ask(aMoment)
			return err == nil
		})
	}

	s.docker.Run(t, "network", "disconnect", "back", "web")
	if out := web.Run(t, "ip", "-o", "-4", "addr", "show"); strings.Contains(out, inside.IP4.String()+"/") {
		t.Errorf("the address on the network that it left is still there:\n%s", out)
	}
	noneIsAnswered(t, attempt{db.Netns, "tcp", "", at(inside.IP4, service)})
	connects(t, web.Netns, "tcp", at(s.underlay.IP4, service))
	running.MustAsk(t)

	// And back again, as at first.
	s.docker.Run(t, "network", "connect", "--ip", inside.IP4.String(), "back", "web")
	connects(t, db.Netns, "tcp", at(inside.IP4, service))
}
