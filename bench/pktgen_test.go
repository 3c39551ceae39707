package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bench/generator"
	"github.com/ebpnet/ebpnet/datapath"
)

func TestGeneratedMeasuresPass(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, one := range topologies() {
		if !slices.Contains([]string{pktgenDrop, pktgenPort, pktgenGRE, overload}, one.family) {
			continue
		}
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			opt := once(one, one.name+"-all")
			rep, err := measureAll(t.Context(), opt, func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, r := range rep.Results {
				got = append(got, r.Measure)
				if r.Median <= 0 || r.Lost < 0 || r.Lost > 1 {
					t.Errorf("%s: median %v %s, lost %v", r.Measure, r.Median, r.Unit, r.Lost)
				}
			}
			for _, m := range measures() {
				if slices.Contains(familyOf(one).measures, m.name) {
					want = append(want, m.name)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("measures:\n%s", diff)
			}
			nothingLeft(t, one.name+"-all")
		})
	}
}

// What is measured as dropped is dropped, and for that reason.
func TestDropsAreOfUnknownTunnels(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, one := range topologies() {
		if one.family != pktgenDrop || one.kind == allDrop {
			continue
		}
		t.Run(one.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t.Context(), one.name+"-reason", 0)
			t.Cleanup(func() {
				if err := l.close(); err != nil {
					t.Error(err)
				}
			})
			p := one.build(l)
			if l.err != nil {
				t.Fatal(l.err)
			}
			tables, err := datapath.Open(pinDirectory(l.prefix + "-host"))
			if err != nil {
				t.Fatal(err)
			}
			defer tables.Close()
			var all uint64
			for _, s := range []generator.Stream{p.aim.stream, p.aim.stream6} {
				s.Size = s.Least()
				sent, arrived, err := p.aim.counted(func() (generator.Sent, error) {
					return s.Run(t.Context(), generator.Outlet{Netns: netnsPath(p.aim.outNetns), Device: p.aim.outDevice}, short)
				})
				if err != nil {
					t.Fatal(err)
				}
				drops, err := tables.Drops()
				if err != nil {
					t.Fatal(err)
				}
				var dropped uint64
				for _, d := range drops {
					if d.Reason == "unknown_tunnel" {
						dropped = d.Packets
					}
				}
				all += arrived
				// The outside may have said something of its own.
				const strays = 10
				if arrived == 0 || dropped+strays < all || dropped > all {
					t.Errorf("dropped %d when %d of %d had arrived after those before", dropped, arrived, sent.Frames)
				}
			}
		})
	}
}

// A generator by itself tells what it sent and what arrived.
func TestGenerate(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t.Context(), "generate", 0)
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	near, far := l.netns("near"), l.netns("far")
	l.veth(near, "eth0", far, "eth0")
	l.receiveByNAPI(far, "eth0")
	if l.err != nil {
		t.Fatal(l.err)
	}
	for _, more := range []string{
		"--source 192.0.2.1 --destination 192.0.2.2:7000",
		"--source [2001:db8::1]:4000 --destination [2001:db8::2]:7000 --protocol tcp-syn --size 200 --flows 100",
		"--source 192.0.2.1 --destination 192.0.2.2 --protocol gre --key 7 --rate 10000",
	} {
		args := strings.Fields("--netns " + near + " --device eth0 --to " + macText(serverMAC) + " " + more)
		var out bytes.Buffer
		if err := generate(append(args, "--duration", "50ms"), &out, io.Discard); err != nil {
			t.Errorf("%s: %v", more, err)
		}
		if !regexp.MustCompile(`^sent \d+ frames, \d+ a second\n$`).MatchString(out.String()) {
			t.Errorf("%s: %q", more, out.String())
		}
		out.Reset()
		args = append(args, "--duration", "50ms", "--count-netns", netnsPath(far), "--count-device", "eth0")
		if err := generate(args, &out, io.Discard); err != nil {
			t.Errorf("%s: %v", more, err)
		}
		if !regexp.MustCompile(`^sent +(\d+) frames, .*\nreceived +\d+ frames, .*\nlost +0\.\d%\n$`).MatchString(out.String()) {
			t.Errorf("%s: %q", more, out.String())
		}
	}
}

func TestParseGeneration(t *testing.T) {
	t.Parallel()
	const good = "--device eth0 --to 02:00:00:00:00:01 --source 192.0.2.1 --destination 192.0.2.2:9"
	g, err := parseGeneration(strings.Fields(good+" --netns outside --count-netns /run/x --count-device eth1 --rate 7"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if g.out.Netns != "/run/netns/outside" || g.in.Netns != "/run/x" || !g.count || g.stream.Rate != 7 || g.stream.Size != generator.MinSize {
		t.Errorf("got %+v", g)
	}
	for more, want := range map[string]string{
		"--size 59":               "size 59: want 60",
		"--size 1515":             "up to 1514",
		"--size 99999999999999":   "up to 1514",
		"--flows 0":               "--flows 0",
		"--flows 100000000000":    "flows",
		"--rate -1":               "rate -1",
		"--duration 0s":           "--duration 0s",
		"--cpu 4096":              "--cpu 4096",
		"--protocol sctp":         `--protocol "sctp"`,
		"--key 7":                 "with --protocol gre only",
		"--inner-to 02:0:0:0:0:1": "with --protocol gre only",
		"--source 2001:db8::1":    "want both IPv4 or both IPv6",
		"--source host":           "want an address or an address:port",
		"--destination 192.0.2.2": "want an address:port",
		"--protocol gre":          "with gre no port",
		"--to 02:00":              `--to "02:00": want a MAC`,
		"--count-netns x":         "want both",
		"--device=":               "no --device",
		"more":                    "unexpected argument",
		"--nothing":               "not defined",
		"--protocol gre --key -1 --destination 192.0.2.2": `--key "-1"`,
	} {
		_, err := parseGeneration(strings.Fields(good+" "+more), io.Discard)
		if !errors.Is(err, errUsage) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line of usage with %q", more, err, want)
		}
	}
	var help bytes.Buffer
	if _, err := parseGeneration([]string{"--help"}, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "-count-device") {
		t.Errorf("--help: %v\n%s", err, help.String())
	}
}

// What a connection gets beside a flood is told also where that is nothing.
func TestBesideNothing(t *testing.T) {
	needRoot(t)
	t.Parallel()
	deaf := topology{family: overload, build: func(l *lab) path {
		p := l.overloaded(translator{kind: iptables, build: buildIptables})
		l.in(l.prefix+"-host", "iptables", "-I", "FORWARD", "-p", "tcp", "-j", "DROP")
		p.pressure = &pressure{1, &limit{rate: 1000}}
		return p
	}}
	opt := once(deaf, "overload-deaf")
	opt.measures = slices.DeleteFunc(measures(), func(m measure) bool { return m.name != floodBeside })
	rep, err := measureAll(context.Background(), opt, func(string) {})
	if err != nil || rep.Results[0].Median != 0 {
		t.Errorf("%v transactions/s, %v; want none and no error", rep.Results, err)
	}
}
