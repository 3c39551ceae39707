package main

import (
	"fmt"
	"strings"
)

// dockerRules is what Docker Engine 20.10 installs for its default bridge,
// nothing published.
const dockerRules = `*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 192.0.2.0/24 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
`

// publication is one published port.
type publication struct {
	proto           string
	host, container int // ports
}

// The measured port is the last one published, for UDP and for TCP; those
// before it are numbered from fillerPort up. All are below the kernel's
// ephemeral ports, which begin at 32768.
const (
	publishedPort = 30000
	fillerPort    = 10001
	measuredPorts = 2
)

// publications are n published ports, in their order.
func publications(n int) []publication {
	if n < measuredPorts {
		return nil
	}
	var all []publication
	for i := range n - measuredPorts {
		all = append(all, publication{"tcp", fillerPort + i, fillerPort + i})
	}
	return append(all, publication{"udp", publishedPort, serverPort}, publication{"tcp", publishedPort, serverPort})
}

// portRules is what Docker Engine adds to dockerRules for published ports of a
// container: two rules a port. The third of older engines, for a container
// that calls itself, is left out: since 28 it is there only without docker-proxy.
func portRules(published []publication) string {
	var filter, nat strings.Builder
	for _, p := range published {
		fmt.Fprintf(&filter, "-A DOCKER -d %s/32 ! -i docker0 -o docker0 -p %s -m %[2]s --dport %d -j ACCEPT\n",
			containerAddr, p.proto, p.container)
		fmt.Fprintf(&nat, "-A DOCKER ! -i docker0 -p %s -m %[1]s --dport %d -j DNAT --to-destination %s:%d\n",
			p.proto, p.host, containerAddr, p.container)
	}
	return "*filter\n" + filter.String() + "COMMIT\n*nat\n" + nat.String() + "COMMIT\n"
}

// nftablesRules does what Docker Engine 29 does with its nftables backend, by
// as many rules in as many chains: maps lead to the bridge's own chains, and
// a published port is a rule in each of two.
func nftablesRules(published []publication) string {
	var accept, dnat strings.Builder
	for _, p := range published {
		fmt.Fprintf(&accept, "ip daddr %s %s dport %d counter accept\n", containerAddr, p.proto, p.container)
		fmt.Fprintf(&dnat, "iifname != docker0 %s dport %d counter dnat to %s:%d\n",
			p.proto, p.host, containerAddr, p.container)
	}
	return fmt.Sprintf(`table ip docker {
	chain to-docker0 {
		ct state established,related counter accept
		iifname docker0 counter accept
%[1]s
		counter drop
	}
	chain from-docker0 {
		ct state established,related counter accept
		counter accept
	}
	chain nat-to-docker0 {
	}
	chain nat-from-docker0 {
		oifname != docker0 ip saddr %[3]s counter masquerade
	}
	chain ports {
%[2]s
	}
	map to {
		type ifname : verdict
		elements = { docker0 : jump to-docker0 }
	}
	map from {
		type ifname : verdict
		elements = { docker0 : jump from-docker0 }
	}
	map nat-to {
		type ifname : verdict
		elements = { docker0 : jump nat-to-docker0 }
	}
	map nat-from {
		type ifname : verdict
		elements = { docker0 : jump nat-from-docker0 }
	}
	chain direct {
		type filter hook prerouting priority raw; policy accept;
		ip daddr %[4]s iifname != docker0 counter drop
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local counter jump ports
	}
	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr != 127.0.0.0/8 fib daddr type local counter jump ports
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		oifname vmap @to
		iifname vmap @from
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		iifname vmap @nat-from
		oifname vmap @nat-to
	}
}
`, accept.String(), dnat.String(), subnet, containerAddr)
}
