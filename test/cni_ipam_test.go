package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestCNIHostLocal has Debian's host-local choose addresses and routes. It
// keeps each address that it gave out as a file.
func TestCNIHostLocal(t *testing.T) {
	h := newHost(t)
	c := testutil.NewCNI(t, h)
	data := t.TempDir()
	conf := func(more map[string]any) map[string]any {
		ipam := map[string]any{
			"type": "host-local", "dataDir": data, "ranges": [][]any{{map[string]string{"subnet": subnet4, "rangeStart": "172.30.0.100"}}},
			"routes": []map[string]string{{"dst": "0.0.0.0/0"}, {"dst": "10.20.0.0/16"}, {"dst": "10.21.0.0/16", "gw": "172.30.0.7"}},
		}
		for key, value := range more {
			ipam[key] = value
		}
		return cniNetwork(h, "net", "1.0.0", map[string]any{"subnets": []string{subnet4}, "ipam": ipam})
	}
	held := func(want ...string) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(data, "net", "172.*"))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, path := range found {
			got = append(got, filepath.Base(path))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("host-local holds: %s", diff)
		}
	}
	a, b := testutil.NewNetns(t, "a"), testutil.NewNetns(t, "b")
	atA, atB := testutil.Attachment{ContainerID: "a", Netns: a.Path(), Ifname: "eth0"}, testutil.Attachment{ContainerID: "b", Netns: b.Path(), Ifname: "eth0"}
	stdout := expectCall(t, c, "ADD", atA, conf(nil))
	r := decodeCNI(t, stdout)
	if r.IPs[0].Address != "172.30.0.100/24" || len(r.Routes) != 3 {
		t.Errorf("the result is %+v", r)
	}
	for _, want := range []string{"default via 172.30.0.1 ", "10.20.0.0/16 via 172.30.0.1 ", "10.21.0.0/16 via 172.30.0.7 "} {
		if routes := a.Run(t, "ip", "route"); !strings.Contains(routes, want) {
			t.Errorf("no %q in routes:\n%s", want, routes)
		}
	}
	checked := conf(nil)
	checked["prevResult"] = json.RawMessage(stdout)
	expectCall(t, c, "CHECK", atA, checked)
	a.Run(t, "ip", "route", "del", "10.21.0.0/16")
	expectFailure(t, c, cniInternal, "CHECK", atA, checked, "10.21.0.0/16")

	// A second ADD takes nothing from the first one.
	expectFailure(t, c, cniTaken, "ADD", atA, conf(nil), "exists already")
	held("172.30.0.100")
	expectCall(t, c, "ADD", atB, conf(nil))
	held("172.30.0.100", "172.30.0.101")
	ping(t, a, netip.MustParseAddr("172.30.0.101"))

	for range 2 {
		expectCall(t, c, "DEL", atB, conf(nil))
		held("172.30.0.100")
	}
	// What fails after host-local has chosen gives its choice back.
	h.NewContainer(t, "other", "net", "--ip", "172.30.0.150")
	for words, test := range map[string]struct {
		code uint
		ipam map[string]any
	}{
		"172.30.0.150":                {cniTaken, map[string]any{"ranges": [][]any{{map[string]string{"subnet": subnet4, "rangeStart": "172.30.0.150", "rangeEnd": "172.30.0.150"}}}}},
		"gateway 172.30.0.2":          {cniBadConf, map[string]any{"ranges": [][]any{{map[string]string{"subnet": subnet4, "gateway": "172.30.0.2"}}}}},
		"172.31.0.":                   {cniBadConf, map[string]any{"routes": []any{}, "ranges": [][]any{{map[string]string{"subnet": other4, "gateway": "172.30.0.1"}}}}},
		"no subnet of that family":    {cniBadConf, map[string]any{"routes": []map[string]string{{"dst": "2001:db8::/32"}}}},
		"default route by 172.30.0.2": {cniBadConf, map[string]any{"routes": []map[string]string{{"dst": "0.0.0.0/0", "gw": "172.30.0.2"}}}},
	} {
		expectFailure(t, c, test.code, "ADD", atB, conf(test.ipam), words)
		held("172.30.0.100")
		if n := veths(t, b); n != 0 {
			t.Errorf("%s: %d devices are left", words, n)
		}
	}
	a.Remove(t)
	expectCall(t, c, "DEL", atA, conf(nil))
	held()
}

// ipamScript is a plugin that keeps what it is called for, and gives one
// address. For the container "bad" it fails.
const ipamScript = `#!/bin/sh
echo $CNI_COMMAND $CNI_CONTAINERID >>%[1]s
cat >/dev/null
if [ "$CNI_CONTAINERID$CNI_COMMAND" = badADD ]; then echo '{"code": 123, "msg": "out of order"}'; exit 1; fi
if [ $CNI_COMMAND = STATUS ] && [ -e %[1]s.full ]; then echo '{"code": 50, "msg": "full"}'; exit 1; fi
if [ $CNI_COMMAND = ADD ]; then echo '{"cniVersion": "1.1.0", "ips": [{"address": "172.30.0.200/24"}], "dns": {"domain": "example.org"}}'; fi
`

// TestCNIDelegates tells the plugin that chooses addresses of each call.
func TestCNIDelegates(t *testing.T) {
	h := newHost(t)
	c := testutil.NewCNI(t, h)
	calls := filepath.Join(t.TempDir(), "calls")
	if err := os.WriteFile(filepath.Join(c.Plugins, "script"), fmt.Appendf(nil, ipamScript, calls), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := cniNetwork(h, "net", "1.1.0", map[string]any{"subnets": []string{subnet4}, "ipam": map[string]string{"type": "script"}})
	called := func(want ...string) {
		t.Helper()
		text, err := os.ReadFile(calls)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, strings.Split(strings.TrimSpace(string(text)), "\n")); diff != "" {
			t.Errorf("called for: %s", diff)
		}
		if err := os.Remove(calls); err != nil {
			t.Fatal(err)
		}
	}
	at := testutil.Attachment{ContainerID: "a", Netns: testutil.NewNetns(t, "a").Path(), Ifname: "eth0"}
	stdout := expectCall(t, c, "ADD", at, conf)
	if r := decodeCNI(t, stdout); r.IPs[0].Address != "172.30.0.200/24" || !strings.Contains(stdout, "example.org") {
		t.Errorf("the result is %s", stdout)
	}
	called("ADD a")
	conf["prevResult"] = json.RawMessage(stdout)
	expectCall(t, c, "CHECK", at, conf)
	called("CHECK a")
	delete(conf, "prevResult")
	expectCall(t, c, "STATUS", testutil.Attachment{}, conf)
	called("STATUS")
	if err := os.WriteFile(calls+".full", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	expectFailure(t, c, cniNotAvailable, "STATUS", testutil.Attachment{}, conf, "script", "full")
	called("STATUS")
	expectCall(t, c, "GC", testutil.Attachment{}, conf)
	called("GC")
	expectNoEndpoints(t, h)
	expectCall(t, c, "DEL", at, conf)
	called("DEL a")
	bad := testutil.Attachment{ContainerID: "bad", Netns: at.Netns, Ifname: "eth0"}
	expectFailure(t, c, 123, "ADD", bad, conf, "script", "out of order")
	called("ADD bad", "DEL bad")
}
