// Demo shows the main job of ebpnet to people: two hosts made of network
// namespaces, an underlay and the world outside, real programs, and each
// command with the answer it got. `make demo` runs it. It exits with 1 if
// anything was not as it should be, and with 130 after an interrupt; in all
// cases it removes what it made.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// limit is how long the demo may take.
const limit = 2 * time.Minute

const (
	exitInterrupted = 130 // what a shell tells its caller after Ctrl-C
	exitTimedOut    = 124 // see timeout(1)
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	d, err := newDemo(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	if err := d.perform(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	switch ctx.Err() {
	case context.Canceled:
		fmt.Println("\nInterrupted. Everything is removed.")
		return exitInterrupted
	case context.DeadlineExceeded:
		fmt.Printf("\n✗ Not done within %v. Everything is removed.\n", limit)
		return 1
	}
	took := time.Since(start).Round(time.Second / 10)
	if d.failed > 0 {
		fmt.Printf("\n✗ %d of %d steps did not give what they should, in %v. Everything is removed.\n", d.failed, d.steps, took)
		return 1
	}
	fmt.Printf("\n✓ All %d steps gave what they should, in %v. Everything is removed.\n", d.steps, took)
	return 0
}

// perform builds the world, tells the story and, whatever happens in it, takes
// the world down again.
func (d *demo) perform() (err error) {
	defer func() {
		err = errors.Join(err, d.remove(), d.lock.Close())
	}()
	if err := d.build(); err != nil {
		if d.ctx.Err() != nil {
			return nil
		}
		return err
	}
	d.story()
	return nil
}

const legend = `
     web  worker                      redis1
       \  /                             |
   [ hostA 192.0.2.1 ]        [ hostB 192.0.2.2 ]
            \                         /
             ----- the underlay -----
                       |
          [ outside 192.0.2.254 ]

Each is a network namespace: what stands behind "web $" below ran in ebpnet-demo-web.`

func (d *demo) story() {
	fmt.Println(legend)
	d.setUp()
	d.reachEachOther()
	d.switchICC()
	d.link()
	d.masquerade()
	d.publish()
	d.count()
}

func (d *demo) setUp() {
	d.title("ebpnet on both hosts, and a network that spans them")
	for _, h := range []host{d.hostA, d.hostB} {
		d.do(h.place, "ebpnet load --uplink up0 --tunnel-address "+h.address, succeeds("loaded"))
		d.do(h.place, "ebpnet network create demo --subnet 172.30.0.0/24 --subnet fd00:30::/64 --key 42", succeeds("the network is there"))
	}
	d.do(d.hostA.place, "ebpnet tunnel add hostB --remote "+d.hostB.address, succeeds("hostA knows the way to hostB"))
	d.do(d.hostB.place, "ebpnet tunnel add hostA --remote "+d.hostA.address, succeeds("hostB knows the way to hostA"))

	d.title("Containers, and what each host is told of the other's")
	for _, c := range []struct {
		container
		home, away host
	}{{d.web, d.hostA, d.hostB}, {d.worker, d.hostA, d.hostB}, {d.redis1, d.hostB, d.hostA}} {
		addresses := fmt.Sprintf("--ip %s --ip %s --mac %s", c.ipv4, c.ipv6, c.mac)
		d.do(c.home.place, fmt.Sprintf("ebpnet endpoint add %s --network demo --netns %s %s", c.name, c.netns.Name, addresses),
			succeeds(c.name+" is on the network"))
		d.do(c.away.place, fmt.Sprintf("ebpnet endpoint add %s --network demo --tunnel %s %s", c.name, c.home.name, addresses),
			succeeds(c.away.name+" knows where it is"))
	}
	d.do(d.hostA.place, "ebpnet endpoint ls", contains("redis1", "all three are listed"))
	d.serve(d.redis1.place, "redis-server --bind 0.0.0.0 :: --protected-mode no --dir "+directory, "Ready to accept connections")
}

func (d *demo) reachEachOther() {
	d.title("Containers reach each other and the gateway")
	for _, to := range []struct{ address, says string }{
		{d.worker.ipv4, "web reaches worker on the same host"},
		{d.worker.ipv6, "by IPv6 as well"},
		{"172.30.0.1", "web reaches its gateway"},
		{"fd00:30::1", "by IPv6 as well"},
		{d.redis1.ipv4, "web reaches redis1 on the other host, in GRE"},
	} {
		d.do(d.web.place, "ping -c 1 -W 2 "+to.address, contains(" 0% packet loss", to.says).showing("bytes from"))
	}
}

func (d *demo) switchICC() {
	d.title("Without inter-container communication they do not")
	for _, h := range []host{d.hostA, d.hostB} {
		d.do(h.place, "ebpnet network set demo --icc=false", succeeds("switched, at once"))
	}
	for _, c := range []container{d.worker, d.redis1} {
		d.do(d.web.place, "ping -c 1 -W 1 "+c.ipv4, unanswered("web does not reach "+c.name).showing("packet loss"))
	}
	d.do(d.web.place, "ping -c 1 -W 2 172.30.0.1", contains(" 0% packet loss", "the gateway is no other container").showing("bytes from"))
	d.do(d.web.place, "timeout 1 redis-cli -h "+d.redis1.ipv4+" ping", unanswered("nor does redis-cli get through"))
}

func (d *demo) link() {
	d.title("A link lets web, and only web, use redis1 across the two hosts")
	for _, h := range []host{d.hostA, d.hostB} {
		d.do(h.place, "ebpnet link add web redis1:redis --port 6379/tcp", succeeds("linked"))
	}
	hosts := d.do(d.hostA.place, "ebpnet link hosts web", contains(d.redis1.ipv4+" redis redis1", "the lines for web's /etc/hosts"))
	d.check("web's /etc/hosts has them", d.web.setHosts(hosts))
	d.do(d.hostA.place, "ebpnet link env web", contains("REDIS_PORT_6379_TCP_ADDR="+d.redis1.ipv4, "as docker run --link would set them"))

	d.do(d.web.place, "timeout 5 redis-cli -h redis set greeting hello", contains("OK", "web finds redis by name, and writes"))
	d.do(d.web.place, "timeout 5 redis-cli -h redis1 get greeting", contains("hello", "and reads"))
	d.do(d.worker.place, "timeout 1 redis-cli -h "+d.redis1.ipv4+" get greeting", unanswered("worker is not linked"))
	d.do(d.web.place, "ping -c 1 -W 1 "+d.redis1.ipv4, unanswered("a link is its ports and nothing else").showing("packet loss"))
	d.do(d.redis1.place, "ping -c 1 -W 1 "+d.web.ipv4, unanswered("and goes one way").showing("packet loss"))
}

func (d *demo) masquerade() {
	d.title("The outside sees the host, never a container")
	for _, address := range []struct{ outside, host string }{{"192.0.2.254", "192.0.2.1"}, {"[2001:db8::fe]", "2001:db8::1"}} {
		d.do(d.web.place, "curl --silent --show-error --max-time 5 http://"+address.outside+"/", contains("you are "+address.host+"\n", "the web server saw hostA"))
	}
}

func (d *demo) publish() {
	d.title("A published port lets in whom it is for")
	d.do(d.hostB.place, "ebpnet port add redis1 16379:6379 --allow-from 192.0.2.254", contains("16379", "redis1 is published, for the outside alone"))
	d.do(d.outside, "timeout 5 redis-cli -h 192.0.2.2 -p 16379 get greeting", contains("hello", "the outside reads"))
	d.do(d.hostB.place, "timeout 5 redis-cli -h 127.0.0.1 -p 16379 get greeting", contains("hello", "so does the host itself"))
	d.do(d.hostA.place, "timeout 1 redis-cli -h 192.0.2.2 -p 16379 get greeting", unanswered("hostA is not allowed"))
}

func (d *demo) count() {
	d.title("Every packet is counted, and every drop has a reason")
	d.do(d.hostA.place, "ebpnet stats", contains("policy", "what policy dropped on hostA"))
	d.serve(d.hostA.place, "ebpnet serve --listen 127.0.0.1:9469", "")
	d.do(d.hostA.place, "curl --silent --show-error --retry 5 --retry-connrefused http://127.0.0.1:9469/metrics",
		contains(`reason="policy"`, "the same for Prometheus").showing(`packets_total{reason="policy"}`, `packets_total{endpoint="web"`))
}

// contains expects success and an answer with text in it.
func contains(text, says string) expectation {
	return expectation{says: says, ok: func(out string, err error) bool { return err == nil && strings.Contains(out, text) }}
}

func succeeds(says string) expectation { return contains("", says) }

// unanswered expects ping to have lost everything, or timeout to have ended
// the command.
func unanswered(says string) expectation {
	return expectation{says: says, ok: func(out string, err error) bool {
		var exit *exec.ExitError
		return errors.As(err, &exit) && (exit.ExitCode() == exitTimedOut || strings.Contains(out, " 100% packet loss"))
	}}
}
