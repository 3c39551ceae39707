package test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Not beside the other tests: it takes times.
func TestThousandEndpoints(t *testing.T) {
	const (
		count  = 1000
		sample = 100
		// limit is how much longer a command may take among a thousand
		// endpoints than among none.
		limit = 3
	)
	h := testutil.NewHost(t, "host")
	h.Ebpnet(t, "load")
	h.Ebpnet(t, "network", "create", "net", "--subnet", "172.30.0.0/16", "--subnet", subnet6)

	namespaces := make([]*testutil.Netns, count)
	for i := range namespaces {
		namespaces[i] = testutil.NewNetns(t, "c")
	}
	took := make([]time.Duration, count)
	for i, n := range namespaces {
		start := time.Now()
		h.Ebpnet(t, "endpoint", "add", fmt.Sprintf("c%d", i), "--network", "net", "--netns", n.Name)
		took[i] = time.Since(start)
	}
	first, last := median(took[:sample]), median(took[count-sample:])
	t.Logf("endpoint add, median of the first %d: %v; of the last %d: %v", sample, first, sample, last)
	if last > limit*first {
		t.Errorf("endpoint add takes %v among %d endpoints and %v at first", last, count, first)
	}

	all := timed(t, "endpoint ls", func() map[string]testutil.Endpoint { return endpoints(t, h) })
	if len(all) != count {
		t.Fatalf("%d endpoints are listed, want %d", len(all), count)
	}
	oldest, newest := all["c0"], all[fmt.Sprintf("c%d", count-1)]
	reaches := func() {
		t.Helper()
		for _, address := range newest.Addresses {
			ping(t, namespaces[0], address)
		}
		for _, address := range oldest.Addresses {
			ping(t, namespaces[count-1], address)
			ping(t, h.Netns, address)
		}
	}
	reaches()
	timed(t, "load", func() string { return h.Ebpnet(t, "load") })
	reaches()

	for i := range sample {
		start := time.Now()
		h.Ebpnet(t, "endpoint", "rm", fmt.Sprintf("c%d", i+1))
		took[i] = time.Since(start)
	}
	t.Logf("endpoint rm, median of %d: %v", sample, median(took[:sample]))
	reaches()

	// The others go with their namespaces.
	for _, n := range namespaces[1:] {
		n.Remove(t)
	}
	testutil.Eventually(t, "endpoints go with their namespaces", func() bool {
		h.Ebpnet(t, "load")
		return len(endpoints(t, h)) == 1
	})
	h.Ebpnet(t, "endpoint", "rm", "c0")
	h.Ebpnet(t, "network", "rm", "net")
}

// timed logs how long f takes.
func timed[T any](t *testing.T, what string, f func() T) T {
	t.Helper()
	start := time.Now()
	result := f()
	t.Logf("%s: %v", what, time.Since(start))
	return result
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}
