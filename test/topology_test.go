package test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestTopology goes through all that two hosts do for their containers, from
// load to unload: the shortest test that meets every program.
func TestTopology(t *testing.T) {
	const redisPort = 6379
	p := newPair(t, greKey, greKey)
	redis(t, p.redis1.Netns, redisPort)
	serve(t, p.web.Netns, service)
	serve(t, p.underlay.Outside, service)

	// On one host, and through GRE.
	pingAll(t, p.web, p.other)
	pingAll(t, p.web, p.redis1)
	pingAll(t, p.redis1, p.other)

	p.on(t, "network", "set", "net", "--icc=false")
	noPing(t, p.a, "policy", p.web.Netns, p.other.IP4)
	noPing(t, p.a, "policy", p.web.Netns, p.redis1.IP6)
	connectsNot(t, p.a, "policy", p.web.Netns, "tcp", at(p.redis1.IP4, redisPort))
	p.on(t, "link", "add", "web", "redis1", "--port", strconv.Itoa(redisPort)+"/tcp")
	for _, address := range p.redis1.Addresses() {
		redisPing(t, p.web.Netns, address, redisPort)
	}
	connectsNot(t, p.a, "policy", p.other.Netns, "tcp", at(p.redis1.IP6, redisPort))

	p.a.Ebpnet(t, "port", "add", "web", strconv.Itoa(published)+":"+strconv.Itoa(service))
	p.a.Ebpnet(t, "port", "add", "web", strconv.Itoa(published)+":"+strconv.Itoa(service)+"/udp")
	var established []*testutil.Conn
	for _, path := range paths(p.a, p.underlay) {
		ping(t, p.web.Netns, path.outside)
		for _, network := range protocols {
			sees(t, p.underlay.Outside, network, at(path.host, published), path.outside)
			sees(t, p.web.Netns, network, at(path.outside, service), path.host)
			sees(t, p.a.Netns, network, at(path.host, published), path.host)
			established = append(established,
				connects(t, p.underlay.Outside, network, at(path.host, published)),
				connects(t, p.web.Netns, network, at(path.outside, service)))
		}
		refusesConnections(t, p.underlay.Outside, "tcp", at(path.host, service))
	}

	p.a.Ebpnet(t, "load") // an upgrade
	takeTurns(t, established...)
	redisPing(t, p.web.Netns, p.redis1.IP4, redisPort)
	connectsNot(t, p.a, "policy", p.other.Netns, "tcp", at(p.redis1.IP4, redisPort))

	p.on(t, "unload")
	for _, h := range []*testutil.Host{p.a, p.b} {
		if devices := h.Run(t, "ip", "-o", "link"); strings.Contains(devices, "ebp") {
			t.Errorf("unload leaves devices:\n%s", devices)
		}
		if _, err := os.Stat(h.Pin); !os.IsNotExist(err) {
			t.Errorf("unload leaves %s: %v", h.Pin, err)
		}
		ping(t, h.Netns, p.underlay.IP4)
	}
	refusesConnections(t, p.underlay.Outside, "tcp", at(p.a.IP4, published))
}
