package test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// listedStation is what `fdb ls -o json` says of one.
type listedStation struct {
	Network    string   `json:"network"`
	MAC        string   `json:"mac"`
	Endpoint   string   `json:"endpoint"`
	Tunnel     string   `json:"tunnel"`
	Gateway    bool     `json:"gateway"`
	Learned    bool     `json:"learned"`
	AgeSeconds *float64 `json:"age_seconds"`
}

func listedStations(t *testing.T, h *testutil.Host, args ...string) (list []listedStation) {
	t.Helper()
	h.EbpnetJSON(t, &list, append([]string{"fdb", "ls"}, args...)...)
	return list
}

func TestFDBListsWhatIsKnown(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	createOther(t, h)
	a := h.NewContainer(t, "a", "net")
	h.NewContainer(t, "b", "other", "--mac", "02:00:00:00:00:0b")
	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2")
	h.Ebpnet(t, "endpoint", "add", "away", "--network", "net", "--tunnel", "peer", "--ip", "172.30.0.20", "--mac", "06:00:00:00:00:20")
	gateway := gatewayMAC(t, h).String()
	onNet := []listedStation{
		{Network: "net", MAC: a.MAC.String(), Endpoint: "a"},
		{Network: "net", MAC: "06:00:00:00:00:20", Endpoint: "away", Tunnel: "peer"},
		{Network: "net", MAC: gateway, Gateway: true},
	}
	onOther := []listedStation{
		{Network: "other", MAC: "02:00:00:00:00:0b", Endpoint: "b"},
		{Network: "other", MAC: gateway, Gateway: true},
	}
	byMAC := func(a, b listedStation) int { return strings.Compare(a.MAC, b.MAC) }
	slices.SortFunc(onNet, byMAC)
	slices.SortFunc(onOther, byMAC)
	expect := func(when string) {
		t.Helper()
		for _, c := range []struct {
			args []string
			want []listedStation
		}{
			{nil, slices.Concat(onNet, onOther)},
			{[]string{"--network", "net"}, onNet},
			{[]string{"--network", "other"}, onOther},
		} {
			if diff := cmp.Diff(c.want, listedStations(t, h, c.args...)); diff != "" {
				t.Errorf("%s, fdb ls %q (-want +got):\n%s", when, c.args, diff)
			}
		}
	}
	expect("added")
	for _, args := range [][]string{
		{},
		{"--network", "net"},
		{"--tunnel", "peer"},
		{"--endpoint", "a"},
		{"--network", "other", "--tunnel", "peer", "--endpoint", "away"},
	} {
		h.Ebpnet(t, append([]string{"fdb", "flush"}, args...)...)
		expect(fmt.Sprintf("after fdb flush %q", args))
	}
	h.Ebpnet(t, "load")
	expect("loaded again")
	table := h.Ebpnet(t, "fdb", "ls")
	for _, words := range [][]string{
		{"NETWORK", "MAC", "WHERE", "KIND", "AGE"},
		{"net", a.MAC.String(), "endpoint", "a", "known", "-"},
		{"net", "06:00:00:00:00:20", "endpoint", "away", "known", "-"},
		{"other", gateway, "gateway", "known", "-"},
	} {
		if !hasLine(table, words...) {
			t.Errorf("no line %q in\n%s", words, table)
		}
	}
	h.Ebpnet(t, "network", "create", "empty", "--subnet", "172.32.0.0/24")
	if list := listedStations(t, h, "--network", "empty"); len(list) != 1 || !list[0].Gateway {
		t.Errorf("a network without endpoints: %+v", list)
	}
}

func TestFDBListsWhatIsLearned(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	trunk, a := h.NewContainer(t, "trunk", "net", "--trunk"), h.NewContainer(t, "a", "net")
	trunkTap, tap := trunk.NewTap(t, testutil.Device), a.NewTap(t, testutil.Device)
	const mark = "from behind a trunk"
	learned := func() []listedStation {
		t.Helper()
		return slices.DeleteFunc(listedStations(t, h), func(s listedStation) bool { return !s.Learned })
	}
	speak := func() {
		t.Helper()
		frame := udpFrame(t, nobodysMAC, a.MAC, netip.AddrPortFrom(nobody4, service), netip.AddrPortFrom(a.IP4, service), mark)
		trunkTap.Send(t, frame)
		tap.Await(t, "a frame from behind the trunk", func(p gopacket.Packet) bool { return strings.HasSuffix(string(p.Data()), mark) })
	}
	speak()
	list := learned()
	if len(list) != 1 || list[0].MAC != nobodysMAC.String() || list[0].Endpoint != "trunk" || list[0].Network != "net" ||
		list[0].Tunnel != "" || list[0].Gateway || list[0].AgeSeconds == nil || *list[0].AgeSeconds < 0 || *list[0].AgeSeconds > 60 {
		t.Errorf("learned: %+v", list)
	}
	if table := h.Ebpnet(t, "fdb", "ls"); !slices.ContainsFunc(lines(table), func(line string) bool {
		words := strings.Fields(line)
		return len(words) == 6 && slices.Equal(words[:5], []string{"net", nobodysMAC.String(), "endpoint", "trunk", "learned"}) && strings.HasSuffix(words[5], "s")
	}) {
		t.Errorf("it is not shown in\n%s", table)
	}
	h.Ebpnet(t, "load")
	h.Ebpnet(t, "fdb", "flush", "--endpoint", "a")
	if n := len(learned()); n != 1 {
		t.Errorf("%d learned stations after others were forgotten", n)
	}
	for _, args := range [][]string{{}, {"--network", "net"}, {"--endpoint", "trunk"}} {
		h.Ebpnet(t, append([]string{"fdb", "flush"}, args...)...)
		if list := learned(); len(list) != 0 {
			t.Errorf("after fdb flush %q: %+v", args, list)
		}
		speak()
	}
	h.Ebpnet(t, "endpoint", "rm", "trunk")
	if list := learned(); len(list) != 0 {
		t.Errorf("after the trunk has gone: %+v", list)
	}
}

func TestLearnedTimeoutIsKept(t *testing.T) {
	h := newHost(t)
	expect := func(want float64) {
		t.Helper()
		if got := readSettings(t, h).Timeouts["fdb"]; got != want {
			t.Errorf("learned stations are kept for %v s, want %v", got, want)
		}
	}
	expect(300)
	h.Ebpnet(t, "load", "--timeout", "fdb=1000000s")
	expect(1e6)
	h.Ebpnet(t, "load")
	expect(1e6)
	_, stderr, code := h.TryEbpnet("load", "--timeout", "fdb=5s")
	if code != 0 || !strings.Contains(stderr, "IEEE 802.1Q") || !strings.Contains(stderr, "10s") {
		t.Errorf("shorter than the standard's shortest: exit code %d, %q", code, stderr)
	}
	expect(5)
	h.Ebpnet(t, "load", "--timeout", "fdb=default")
	expect(300)
}

func TestFDBListsWhatIsBehindATunnel(t *testing.T) {
	p := newPair(t, greKey, greKey)
	trunk := p.b.NewContainer(t, "trunk", "net", "--ip", "172.30.0.30", "--trunk")
	tap, web := trunk.NewTap(t, testutil.Device), p.web.NewTap(t, testutil.Device)
	const mark = "from behind a trunk on another host"
	speak := func() {
		t.Helper()
		tap.Send(t, udpFrame(t, nobodysMAC, p.web.MAC, netip.AddrPortFrom(nobody4, service), netip.AddrPortFrom(p.web.IP4, service), mark))
		web.Await(t, "a frame from behind the trunk", func(p gopacket.Packet) bool { return strings.HasSuffix(string(p.Data()), mark) })
	}
	learned := func() []listedStation {
		t.Helper()
		return slices.DeleteFunc(listedStations(t, p.a), func(s listedStation) bool { return s.MAC != nobodysMAC.String() })
	}
	for _, args := range [][]string{{"--tunnel", "peer"}, {"--network", "net", "--tunnel", "peer"}} {
		speak()
		list := learned()
		if len(list) != 1 || !list[0].Learned || list[0].Tunnel != "peer" || list[0].Endpoint != "" || list[0].AgeSeconds == nil {
			t.Errorf("learned: %+v", list)
		}
		if table := p.a.Ebpnet(t, "fdb", "ls"); !strings.Contains(table, "tunnel peer") {
			t.Errorf("it is not shown in\n%s", table)
		}
		p.a.Ebpnet(t, append([]string{"fdb", "flush"}, args...)...)
		if list := learned(); len(list) != 0 {
			t.Errorf("after fdb flush %q: %+v", args, list)
		}
	}
}
