package test

import (
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// flowShare reads what an endpoint has of the table of flows, and may have.
func flowShare(t *testing.T, h *testutil.Host, endpoint string) (share struct {
	Established int  `json:"established"`
	HalfOpen    int  `json:"half_open"`
	Limit       int  `json:"limit"`
	Set         bool `json:"set"`
},
) {
	t.Helper()
	e := struct {
		Flows any `json:"flows"`
	}{&share}
	h.EbpnetJSON(t, &e, "endpoint", "inspect", endpoint)
	return share
}

// TestFlowLimit gives a container a limit of flows: it holds for new ones, over a
// load, until it is taken back.
func TestFlowLimit(t *testing.T) {
	h, outside := newOutside(t)
	createNet(t, h)
	c := h.NewContainer(t, "c", "net")
	h.NewContainer(t, "d", "net")
	pings := func() bool {
		out, _ := c.Try("ping", "-c", "1", "-W", "1", outside.IP4.String())
		return strings.Contains(out, "1 received")
	}
	const capacity = 262144
	if got := flowShare(t, h, "c"); got.Set || got.Established != 0 || got.Limit < capacity*2/5 || got.Limit > capacity/2 {
		t.Errorf("at first: %+v, want nearly half of %d", got, capacity)
	}
	for range 3 {
		if !pings() {
			t.Fatal("no answer from outside")
		}
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-flows", "3")
	if got := flowShare(t, h, "c"); !got.Set || got.Established != 3 || got.Limit != 3 {
		t.Errorf("%+v, want all 3 flows that it may have", got)
	}
	for _, when := range []string{"set", "loaded again"} {
		h.ExpectDrops(t, "flow_limit", func() {
			if pings() {
				t.Errorf("%s: an answer to one flow more than it may have", when)
			}
		})
		h.Ebpnet(t, "load")
	}
	_, stderr, code := h.TryEbpnet("endpoint", "set", "c", "--max-flows", "2")
	if code != 0 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "new flows") || !strings.Contains(stderr, "established=3") {
		t.Errorf("a limit below what is there: exit code %d, %q", code, stderr)
	}
	if got := flowShare(t, h, "c"); got.Established != 3 {
		t.Errorf("%+v, want the 3 flows to go on", got)
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-flows", "default")
	if got := flowShare(t, h, "c"); got.Set || !pings() {
		t.Errorf("%+v after the limit was taken back", got)
	}

	before := everything(t, h)
	for _, bad := range []string{"", "0", "-1", "4194305", "many", "1e3", "99999999999999999999"} {
		refused(t, h, exitUsage, []string{"endpoint", "set", "c", "--max-flows", bad}, "limit of flows", "4194304", "default")
	}
	refused(t, h, exitUsage, []string{"endpoint", "set", "c", "--max-everything", "1"}, "max-everything")
	refused(t, h, exitFailure, []string{"endpoint", "set", "nobody", "--max-flows", "9"}, "nobody")
	if after := everything(t, h); after != before {
		t.Errorf("bad limits changed\n%s\nto\n%s", before, after)
	}
}
